//! Stores made of files, for the processes of one machine.

mod bare_lock;
#[cfg(target_os = "linux")]
mod wake_pipe;
mod ofd_lock;
mod fence_counter;
mod directory;
mod error;
mod exact_file;
mod fence_gate;
#[cfg(target_os = "linux")]
mod inotify;
mod file_lock;
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
pub(crate) mod fuzzing;
mod flock;
mod lease_file;
mod liveness;
mod host_identity;
mod durable_u64;
mod open_files;
pub(crate) mod os;
#[cfg_attr(not(target_os = "linux"), path = "queue_polling.rs")]
mod queue;
mod record;
mod reply;
mod store_directory;
#[cfg(target_os = "linux")]
mod tickets;
mod trusted_file;

use std::fmt;
use std::future;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use verrou::{AsyncStore, StoreError};

pub use bare_lock::BareLockStore;
pub use error::{FileError, OpenError};
pub use fence_gate::{Checked, FenceError, FenceGate};
pub use file_lock::FileLockStore;
use flock::{Attempt, BUSY_TIMEOUT};
#[cfg(feature = "server")]
pub(crate) use host_identity::this_process;
#[cfg(target_os = "linux")]
pub(crate) use inotify::Listener;
pub use lease_file::LeaseFileStore;
pub use record::Corruption;

use crate::host_store::HostStore;

/// Opens a store at a path.
type Open<S> = fn(&Path, &StoreOptions) -> Result<S, OpenError>;

/// A kind of store on this machine, by the scheme of its URLs.
pub(crate) struct LocalScheme {
    /// The scheme, without the colon.
    pub(crate) name: &'static str,
    pub(crate) open: Open<Box<dyn HostStore>>,
    pub(crate) open_async: Open<Arc<dyn AsyncStore>>,
}

/// The kinds of stores on this machine. A store whose operations block opens as an
/// [`Inline`](verrou::nonblocking::Inline) store for tasks.
pub(crate) static LOCAL_SCHEMES: [LocalScheme; 2] = [
    LocalScheme {
        name: "lease",
        open: |path, options| Ok(Box::new(LeaseFileStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(LeaseFileStore::open(path, options)?)),
    },
    LocalScheme {
        name: "file",
        open: |path, options| Ok(Box::new(FileLockStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(FileLockStore::open(path, options)?)),
    },
];

impl LocalScheme {
    /// Returns the scheme called `name`.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        LOCAL_SCHEMES.iter().find(|scheme| scheme.name == name)
    }
}

impl PartialEq for LocalScheme {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for LocalScheme {}

impl fmt::Debug for LocalScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalScheme").field(&self.name).finish()
    }
}

/// Options of a store. A caller begins with the default ones, and sets those that it needs.
///
/// ```
/// let mut options = verrou_host::StoreOptions::default();
/// options.label = Some("invoice 12".to_owned());
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Lets all members of this group, given by name or number, use the store. With `None`, a new
    /// directory belongs to this user alone, and an existing one keeps the group for which it was
    /// created.
    pub group: Option<String>,
    /// Allows the directory to be on any file system.
    pub any_file_system: bool,
    /// The label of the holder, for display: the program that runs, or the purpose of the lock. The
    /// default is the name of this process's program. The label stays in the record after the release.
    pub label: Option<String>,
    /// Whether a lease that has expired while processes of its holder still live is free.
    pub zombies: Zombies,
    /// Makes the descriptors that programs inherit unable to write the lock's file: a lock of the
    /// kernel is then taken on a second, read-only descriptor.
    pub handed_on: bool,
}

/// Whether an expired lease of which processes of the holder still live is free or held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "it is taken or it is not")]
pub enum Zombies {
    /// The lease is free, because it has expired.
    #[default]
    Take,
    /// The lease is held until those processes have ended.
    Wait,
}

impl StoreOptions {
    #[cfg(unix)]
    fn group_id(&self) -> Result<Option<u32>, OpenError> {
        let Some(group) = &self.group else {
            return Ok(None);
        };
        match nix::unistd::Group::from_name(group) {
            Ok(Some(found)) => Ok(Some(found.gid.as_raw())),
            // As in chown(1), a group name that consists of digits takes precedence over a number.
            _ => match group.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(OpenError::UnknownGroup {
                    group: group.clone(),
                }),
            },
        }
    }

    #[cfg(not(unix))]
    fn group_id(&self) -> Result<Option<u32>, OpenError> {
        match &self.group {
            Some(group) => Err(OpenError::UnknownGroup {
                group: group.clone(),
            }),
            None => Ok(None),
        }
    }
}

/// Waits for `pause`, in a task.
#[cfg(target_os = "linux")]
async fn sleep_in_task(pause: Duration) {
    let until = Instant::now() + pause;
    match Listener::new() {
        Ok(listener) => {
            future::poll_fn(|context| listener.poll(context, until)).await;
        }
        Err(_) => yield_once().await,
    }
}

#[cfg(not(target_os = "linux"))]
async fn sleep_in_task(_pause: Duration) {
    yield_once().await;
}

/// Yields to the other tasks of this thread once.
async fn yield_once() {
    let mut had_theirs = false;
    future::poll_fn(|context| {
        if std::mem::replace(&mut had_theirs, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs `operation`, and repeats it after pauses while a file is busy, for as long as a thread would wait for
/// that file. So a process that keeps the file locked does not block the other tasks of this thread.
pub(crate) async fn patiently<T>(
    operation: impl Fn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(5);

    let began = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let waited = began.elapsed();
        let attempt = Attempt {
            waited,
            is_last: BUSY_TIMEOUT <= waited,
        };
        match attempt.make(&operation) {
            Err(err) if is_busy(&err) && !attempt.is_last => sleep_in_task(pause).await,
            done => return done,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Runs `operation` without waiting for a file.
pub(crate) fn at_once<T>(operation: impl FnOnce() -> T) -> T {
    let only = Attempt {
        waited: Duration::ZERO,
        is_last: true,
    };
    only.make(operation)
}

fn is_busy(err: &StoreError) -> bool {
    let err = err.get_ref().downcast_ref();
    matches!(err, Some(FileError::Busy { .. }))
}

/// Returns a random duration between half of `pause` and all of it, so that waiters do not check at the
/// same time.
fn jitter(pause: Duration) -> Duration {
    let roll = getrandom::u32().unwrap_or_default();
    pause.mul_f64(0.5 + 0.5 * f64::from(roll) / f64::from(u32::MAX))
}
