//! What the stores ask of the operating system's files: one function each, one split by system.

#[cfg(not(unix))]
#[path = "os/other.rs"]
mod imp;
#[cfg(unix)]
#[path = "os/unix.rs"]
mod imp;

#[cfg(target_os = "linux")]
pub(crate) use imp::is_trusted;
pub(crate) use imp::{
    FileId, create, create_directory, duplicate_to_inherit, group_of_directory, id, id_at,
    is_kernels, is_linked, is_owned, locker, names, number, open, open_read_only, open_to_lock,
    open_to_look, read_at, suspicion, suspicious_directory, sync_directory, unsuitable_file_system,
    write_at,
};
