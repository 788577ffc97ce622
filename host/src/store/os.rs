//! What the stores ask of the operating system's files: one function each, one split by system.

#[cfg(not(unix))]
#[path = "os/other.rs"]
mod imp;
#[cfg(unix)]
#[path = "os/unix.rs"]
mod imp;

pub(crate) use imp::{
    FileId, TELLS_LOCKERS, create, create_directory, id, id_at, locker, open, open_to_lock, read,
    suspicion, suspicious_directory, sync_directory, unsuitable_file_system, write_at,
};
