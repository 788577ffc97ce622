//! The store that the command line specifies, and a lock of it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Instant;

use verrou::blocking::{self, LockFactory};
use verrou::{Error, Name, Retry, Store};
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

use crate::arguments::{GlobalOptions, Taking};
use crate::exit::Exit;
use crate::nested;
use crate::output::{self, Failure, say};
use crate::wait_notice::Announced;

/// The environment variable that names the store if `--store` is not given.
const VARIABLE: &str = "VERROU_STORE";

/// A lock of the store.
pub(crate) type Lock<'a> = blocking::Lock<&'a Announced<'a, AnyStore>, System>;

/// A held lock of the store.
pub(crate) type Guard<'a> = blocking::Guard<&'a Announced<'a, AnyStore>, System>;

/// Returns the lock's name, or a usage error if there is none.
pub(crate) fn name(given: Option<&Name>) -> Result<&Name, Failure> {
    given.ok_or_else(|| Failure::new(Exit::Usage, "no NAME was given"))
}

/// Returns the URL of the store.
pub(crate) fn url(global: &GlobalOptions) -> Result<StoreUrl, Failure> {
    let invalid = |why| Failure::coded(Exit::Usage, "E_INVALID_STORE", why);
    let url = match (&global.store, variable()) {
        (Some(url), _) => url.clone(),
        (None, Some(text)) => StoreUrl::try_from(&*text)
            .map_err(|why| invalid(format!("the environment variable {VARIABLE}: {why}")))?,
        (None, None) => StoreUrl::default_location().map_err(|why| invalid(why.to_string()))?,
    };
    Ok(match &global.group {
        Some(group) => url.shared_with(group),
        None => url,
    })
}

fn variable() -> Option<OsString> {
    env::var_os(VARIABLE).filter(|text| !text.is_empty())
}

/// Returns the store that `VERROU_STORE` names. Its text, which commands inherit, has no password.
pub(crate) fn inherited() -> Option<StoreUrl> {
    StoreUrl::try_from(&*variable()?).ok()
}

fn is_default(global: &GlobalOptions) -> bool {
    global.store.is_none() && variable().is_none()
}

/// Returns the options with which the store is opened.
pub(crate) fn options(global: &GlobalOptions) -> StoreOptions {
    let mut options = StoreOptions::default();
    options.group.clone_from(&global.group);
    options.any_file_system = global.any_file_system;
    options
}

/// Opens the store.
pub(crate) fn open(global: &GlobalOptions) -> Result<AnyStore, Failure> {
    open_with(global, &options(global)).map(|(store, _)| store)
}

/// Opens the store, and returns it with its URL.
pub(crate) fn open_with(
    global: &GlobalOptions,
    options: &StoreOptions,
) -> Result<(AnyStore, StoreUrl), Failure> {
    let url = url(global)?;
    match AnyStore::open(&url, options) {
        Ok(store) => Ok((store, url)),
        Err(err) if is_default(global) => Err(Failure::from(err).advising(
            "this is the default store; name another with --store or VERROU_STORE, or its directory \
             with XDG_STATE_HOME",
        )),
        Err(err) => Err(err.into()),
    }
}

/// Opens the store as [`open_with`] does, to acquire a lock within the time limit of `retry`. While its server does not
/// answer, this tries again as `retry` says, and subtracts the time from the limit. Without a limit there is
/// one attempt: at a wrong address, the command would never end.
pub(crate) fn open_within(
    global: &GlobalOptions,
    options: &StoreOptions,
    retry: &mut Retry,
) -> Result<(AnyStore, StoreUrl), Failure> {
    let Some(limit) = retry.longest() else {
        return open_with(global, options);
    };
    let (began, mut attempts) = (Instant::now(), 0);
    loop {
        let opened = open_with(global, options);
        attempts += 1;
        let waited = began.elapsed();
        match (opened, retry.pause(attempts, waited, 0)) {
            (Ok(opened), _) => {
                *retry = retry.clone().timeout(limit.saturating_sub(waited));
                return Ok(opened);
            }
            (Err(failure), Some(pause)) if failure.is_temporary() => thread::sleep(pause),
            (Err(failure), _) => return Err(failure),
        }
    }
}

/// Opens the store; returns `None` if its directory does not exist.
pub(crate) fn open_existing(global: &GlobalOptions) -> Result<Option<AnyStore>, Failure> {
    let is_missing = url(global)?.directory().is_some_and(|directory| {
        matches!(directory.path.metadata(), Err(err) if err.kind() == io::ErrorKind::NotFound)
    });
    if is_missing {
        return Ok(None);
    }
    open(global).map(Some)
}

/// Returns the message for a store that does not exist.
pub(crate) fn missing(url: &StoreUrl) -> String {
    format!("there is no store {}", url.clone().absolute())
}

/// Opens the kernel's lock on the file `path`, for which grants may be unrecorded.
pub(crate) fn open_path(
    global: &GlobalOptions,
    path: &Path,
    options: &StoreOptions,
) -> Result<(AnyStore, Name), Failure> {
    let opened = AnyStore::open_path(path, global.store.as_ref(), options)?;
    if let Some(why) = opened.unrecorded {
        output::warn(
            global.json,
            &format!(
                "locked without a fencing token, because grants cannot be recorded: {}; name a \
                 directory for records with --store",
                output::chain(&*why),
            ),
        );
    }
    Ok((opened.store, opened.name))
}

/// Opens the store to acquire a lock with the options `taking`, for `command`. Returns it with the retry policy that is
/// left.
pub(crate) fn open_to_take(
    global: &GlobalOptions,
    taking: &Taking,
    command: &str,
) -> Result<(AnyStore, Retry), Failure> {
    let mut options = options(global);
    options.label = Some(taking.described(command.as_ref()));
    options.zombies = taking.zombies();
    let mut retry = taking.retry().map_err(Error::from)?;
    let (store, _) = open_within(global, &options, &mut retry)?;
    Ok((store, retry))
}

/// Acquires the lock `name` with the options `taking`, as `retry` says, and calls `work` with it.
pub(crate) fn with_lock<T>(
    store: &AnyStore,
    name: &Name,
    taking: &Taking,
    retry: &Retry,
    work: impl for<'a> FnOnce(&'a Lock<'a>, Guard<'a>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    nested::refuse(store, name).map_err(|failure| taking.not_acquired(failure))?;
    let announced = Announced(store);
    let lock = LockFactory::new(&announced, System).create_lock(name.as_str(), taking.ttl)?;
    let held = lock
        .guard_with(retry)
        .map_err(|err| not_acquired(err, store, taking))?;
    if let Some(before) = store.taken_over(held.lease().claim()) {
        say(&format!(
            "warning: the lock `{name}` was taken over from a holder whose lease has expired but \
             whose processes still run: {}",
            output::holder(&before),
        ));
    }
    work(&lock, held)
}

impl Taking {
    /// Returns `failure` with the exit code of `-E`.
    fn not_acquired(&self, failure: Failure) -> Failure {
        match self.conflict_exit_code {
            Some(code) => failure.exiting(code),
            None => failure,
        }
    }
}

/// Returns the failure to acquire the lock, with the present holder.
fn not_acquired(err: Error, store: &AnyStore, taking: &Taking) -> Failure {
    let failure = match &err {
        Error::Timeout { name, .. } => match store.holders(name).map(|mut holders| holders.pop()) {
            Ok(Some(found)) => Failure::coded(
                Exit::NotAcquired,
                err.code(),
                format!(
                    "cannot acquire the lock `{name}`: {}",
                    output::holder(&found)
                ),
            ),
            // The lock has been released since, or the store fails now.
            _ => err.into(),
        },
        // The command has not been started, so another attempt is safe.
        Error::Lost { name, .. } => Failure::coded(
            Exit::NotAcquired,
            err.code(),
            format!("the lock `{name}` was granted too late: its lease had expired by then"),
        ),
        _ => return err.into(),
    };
    taking.not_acquired(failure)
}
