//! `verrou run`: a command that holds a lock for as long as it runs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use verrou::{Error, Health, Loss, Store};
use verrou_host::{AnyStore, LossSignal, StoreUrl};

use crate::arguments::{GlobalOptions, OnLost, Run};
use crate::ending::{Ending, Lifeline};
use crate::exit::Exit;
use crate::job::{Job, JobEvent};
use crate::nested;
use crate::output::{Failure, say};
use crate::store::{self, Guard};

/// The interval of the checks whether the processes that a command left behind have ended.
const LOOK: Duration = Duration::from_millis(10);

/// The time after which a running command's lease is watched: for a shorter command, the setup and
/// removal of the watch would take most of the time.
const WATCHED_AFTER: Duration = Duration::from_millis(100);

/// Acquires the lock, runs the command, and releases the lock. Returns the exit code.
pub(crate) fn run(global: &GlobalOptions, args: &Run) -> Result<u8, Failure> {
    let label = args.command.first().map(OsString::as_os_str);
    let mut options = store::options(global);
    options.label = Some(args.taking.described(label.unwrap_or_default()));
    options.zombies = args.taking.zombies();
    options.handed_on = true;
    let mut retry = args.taking.retry().map_err(Error::from)?;
    let (opened, name, url) = match (&args.target.file, args.target.name()) {
        (Some(path), _) => {
            let (opened, name) = store::open_path(global, path, &options)?;
            (opened, name, store::inherited())
        }
        (None, Some(name)) => {
            let (opened, url) = store::open_within(global, &options, &mut retry)?;
            (opened, name.clone(), Some(url))
        }
        (None, None) => return Err(Failure::new(Exit::Usage, "neither NAME nor --file")),
    };
    let (mut job, lost) = store::with_lock(&opened, &name, &args.taking, &retry, |_, held| {
        let command = command(args, &held, &opened, url.as_ref());
        let lifeline = match opened.lifeline(held.lease().claim()) {
            Ok(file) => file.map(|file| Lifeline {
                file,
                is_inherited: !args.close,
            }),
            Err(err) => {
                held.release()?;
                return Err(not_started(&args.command[0], &err));
            }
        };
        let ending = match args.on_lost {
            OnLost::Kill => Ending::Kill,
            OnLost::Term | OnLost::Ignore => Ending::Terminate { grace: args.grace },
        };
        let mut job = match Job::start(command, lifeline, ending) {
            Ok(job) => job,
            Err(err) => {
                held.release()?;
                return Err(not_started(&args.command[0], &err));
            }
        };
        if let Err(lost) = keep(&held, &opened, &mut job) {
            end_lost(global, args, lost, &mut job);
            if job.has_ended() {
                // Not earlier: the kernel's lock excludes other processes until the command is gone.
                drop(held);
            } else {
                // The guardian excludes other processes until the command is gone.
                job.leave();
                mem::forget(held);
            }
            return Ok((job, true));
        }
        match held.release() {
            Ok(()) => Ok((job, false)),
            Err(lost @ Error::Lost { .. }) => {
                end_lost(global, args, lost, &mut job);
                Ok((job, true))
            }
            Err(err) => {
                let ended = format!("{} had ended with {}", program(args), job.code());
                Err(Failure::from(err).advising(&ended))
            }
        }
    })?;
    // Not earlier: this may end this process, and the lock must be free before.
    Ok(if lost {
        job.reap();
        Exit::Lost.code()
    } else {
        job.end()
    })
}

/// Returns the command, with its lock in its environment.
fn command(args: &Run, held: &Guard<'_>, opened: &AnyStore, url: Option<&StoreUrl>) -> Command {
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    let lease = held.lease();
    let transfers = opened.capabilities().transfers;
    let mut set = |variable: &str, value: Option<OsString>| {
        match value {
            Some(value) => command.env(variable, value),
            // The value of an outer `verrou run` is that of another lock.
            None => command.env_remove(variable),
        };
    };
    set("VERROU_NAME", Some(lease.name().as_str().into()));
    set(
        "VERROU_FENCE",
        lease.fence().map(|fence| fence.to_string().into()),
    );
    set(
        "VERROU_LOCK",
        transfers.then(|| held.to_serialized().to_string().into()),
    );
    set(nested::VARIABLE, Some(nested::with(&lease).into()));
    // With `--file`, this is the URL from the environment, if any.
    if let Some(url) = url {
        command.env("VERROU_STORE", OsString::from(&url.clone().absolute()));
    }
    command
}

/// Keeps the lease alive until the command ends.
///
/// # Errors
///
/// Returns [`Error::Lost`] when the lock is lost.
fn keep(held: &Guard<'_>, store: &AnyStore, job: &mut Job) -> Result<(), Error> {
    let began = Instant::now();
    let mut watch = None;
    // The lease was not renewed while this process was stopped, or may have been.
    let mut was_stopped = false;
    let mut is_confirmed = true;
    loop {
        let event = held.keep(|machine, mut at_most| {
            if was_stopped {
                was_stopped = false;
                machine.suspect();
                return ControlFlow::Continue(());
            }
            if !is_confirmed {
                // If the store fails, the renewal is retried soon; until then the lease's own expiry
                // counts.
                is_confirmed = true;
                job.resume();
            }
            if matches!(machine.health(), Health::Released) {
                return match job.wait(Duration::MAX) {
                    JobEvent::Nothing => ControlFlow::Continue(()),
                    event => ControlFlow::Break(event),
                };
            }
            if watch.is_none() {
                let left = WATCHED_AFTER.saturating_sub(began.elapsed());
                if left.is_zero() {
                    // Without a watch, the renewals detect a loss.
                    watch = Some(store.loss_signal(held.lease().claim()).ok());
                } else {
                    at_most = at_most.min(left);
                }
            }
            let watch = watch.as_ref().and_then(Option::as_deref);
            // Read the descriptor in any case: if it stayed readable, every wait would end at once.
            let is_lost = watch.is_some_and(LossSignal::is_lost);
            // While the state of the lease is unknown, the renewal is retried soon anyway.
            let is_known = !matches!(machine.health(), Health::Unknown(_));
            if is_known && is_lost {
                machine.suspect();
                return ControlFlow::Continue(());
            }
            match job.wait_with(watch, at_most) {
                JobEvent::Nothing => ControlFlow::Continue(()),
                event => ControlFlow::Break(event),
            }
        })?;
        match event {
            JobEvent::Nothing => {}
            JobEvent::Ended => return Ok(()),
            // The command continues when the lock is confirmed to be still held.
            JobEvent::Stopped => {
                if job.stop() {
                    (was_stopped, is_confirmed) = (true, false);
                }
            }
            JobEvent::Continued => (was_stopped, is_confirmed) = (true, false),
        }
    }
}

/// Reports that the lock is lost, and ends all processes of the command, unless `--on-lost ignore` was
/// given.
fn end_lost(global: &GlobalOptions, args: &Run, lost: Error, job: &mut Job) {
    match args.on_lost {
        OnLost::Ignore => {}
        OnLost::Term => job.terminate(),
        OnLost::Kill => job.kill(),
    }
    // This includes processes that outlived the command itself.
    let is_gone = job.is_gone();
    let obstacle = job.obstacle().filter(|_| args.on_lost != OnLost::Ignore);
    say_lost(global, args, lost, job, obstacle);
    if !is_gone {
        bring_to_end(args, job);
    }
}

fn say_lost(global: &GlobalOptions, args: &Run, lost: Error, job: &Job, obstacle: Option<String>) {
    let program = program(args);
    let fate = obstacle.unwrap_or_else(|| match args.on_lost {
        OnLost::Ignore if job.has_ended() => format!("{program} had ended with {}", job.code()),
        OnLost::Ignore => format!("{program} continues without it"),
        _ if job.has_ended() => format!(
            "{program} had ended with {}; the processes it left behind are ended",
            job.code()
        ),
        OnLost::Term => format!("{program} is sent SIGTERM"),
        OnLost::Kill => format!("{program} is killed"),
    });
    let is_revoked = matches!(&lost, Error::Lost { loss, .. } if *loss == Loss::Revoked);
    let mut failure = Failure::from(lost);
    // The kernel's lock on a file cannot be force-released.
    if let (Some(path), true) = (&args.target.file, is_revoked) {
        failure = failure.advising(&format!("`{}` was removed or replaced", path.display()));
    }
    failure.advising(&fate).report(global.json);
}

/// Waits until the command has ended, or cannot be ended.
fn bring_to_end(args: &Run, job: &mut Job) {
    match args.on_lost {
        OnLost::Ignore => {
            // After a stop of both, the loss is found before the command continues.
            if !job.has_ended() {
                job.resume();
            }
            return wait_for_end(job);
        }
        OnLost::Term => {
            let began = Instant::now();
            loop {
                let left = args.grace.saturating_sub(began.elapsed());
                if job.is_gone() || left.is_zero() {
                    break;
                }
                let event = job.wait(if job.has_ended() {
                    left.min(LOOK)
                } else {
                    left
                });
                // The command may prompt on the terminal before it ends.
                if event == JobEvent::Stopped && job.requests_terminal() {
                    job.resume();
                }
            }
        }
        OnLost::Kill => {}
    }
    job.kill();
    while !job.has_ended() {
        if job.obstacle().is_some() {
            let program = program(args);
            return say(&format!("{program} continues without the lock"));
        }
        job.wait(Duration::MAX);
    }
}

/// Waits until the command ends by itself.
pub(super) fn wait_for_end(job: &mut Job) {
    while !job.has_ended() {
        match job.wait(Duration::MAX) {
            JobEvent::Stopped => {
                if job.stop() {
                    job.resume();
                }
            }
            JobEvent::Continued => job.resume(),
            JobEvent::Nothing | JobEvent::Ended => {}
        }
    }
}

/// Returns the failure to start `program`, with the exit code of a shell.
pub(super) fn not_started(program: &OsStr, why: &io::Error) -> Failure {
    let exit = match why.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        // execvp(3) reports a directory of PATH that may not be searched like a program that may not be
        // executed.
        io::ErrorKind::PermissionDenied if !is_found(program) => Exit::NotFound,
        _ => Exit::NotStarted,
    };
    Failure::new(
        exit,
        format!("cannot run `{}`: {why}", program.to_string_lossy()),
    )
}

/// Returns whether `program` is a path, or is in a directory of PATH.
fn is_found(program: &OsStr) -> bool {
    let directories = env::var_os("PATH").unwrap_or_default();
    let is_path = Path::new(program).components().count() > 1;
    is_path || env::split_paths(&directories).any(|directory| directory.join(program).exists())
}

fn program(args: &Run) -> String {
    format!("`{}`", args.command[0].to_string_lossy())
}
