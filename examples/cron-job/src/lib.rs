//! A job that is started on many machines every night, and must do its work on one: a component that
//! acquires the lock `nightly`, renews its lease while it works, and releases it.
//!
//! Its arguments are the seconds of work, and the seconds to wait for the lock.

use std::time::Duration;

use verrou::lock::locks::{
    Acquiring, Attempt, Grant, Keeping, Lock, LockError, Loss, Progress, Retry,
};
use wasip2::cli::{environment, stderr, stdout};
use wasip2::clocks::monotonic_clock;
use wasip2::io::poll::poll;
use wasip2::io::streams::OutputStream;

wit_bindgen::generate!({
    inline: "
        package example:cron-job;

        world job {
          import verrou:lock/locks@0.1.0;
        }
    ",
    path: "../../wit",
    with: { "wasi:io/poll@0.2.0": wasip2::io::poll },
    generate_all,
});
wasip2::cli::command::export!(CronJob);

/// The lock's ttl: short, so that the lock is soon free if the host ends the job and does not release its locks.
const TTL: Duration = Duration::from_secs(5);

struct CronJob;

impl wasip2::exports::cli::run::Guest for CronJob {
    fn run() -> Result<(), ()> {
        job().map_err(|why| say(&stderr::get_stderr(), &format!("nightly: {why}")))
    }
}

fn job() -> Result<(), String> {
    let arguments = environment::get_arguments();
    let length = seconds(arguments.get(1), 3)?;
    let timeout = seconds(arguments.get(2), 1)?;
    let lock = Lock::create("nightly", Some(nanos(TTL))).map_err(message)?;
    let token = acquire(&lock, timeout)?;
    say(&stdout::get_stdout(), &format!("begin {token}"));
    work(&lock, length)?;
    say(&stdout::get_stdout(), &format!("end {token}"));
    lock.release().map_err(message)
}

/// Acquires the lock, and returns its fencing token.
fn acquire(lock: &Lock, timeout: Duration) -> Result<u64, String> {
    let retry = Retry {
        attempts: None,
        delay: None,
        max_delay: None,
        timeout: Some(nanos(timeout)),
    };
    let attempt = match lock.acquire(retry).map_err(message)? {
        Acquiring::Acquired(grant) => return token(&grant),
        Acquiring::Pending(attempt) => attempt,
    };
    loop {
        match attempt.poll().map_err(message)? {
            Progress::Acquired(grant) => return token(&grant),
            Progress::Wait(at_most) => wait(&attempt, at_most),
            Progress::Pause(pause) => sleep(pause),
            Progress::GaveUp(attempts) => {
                return Err(format!("the job runs elsewhere ({attempts} attempts)"));
            }
        }
    }
}

fn token(grant: &Grant) -> Result<u64, String> {
    let token = grant.fencing_token;
    token.ok_or("this store has no fencing tokens".into())
}

/// Waits until the lock may be free, for `at_most` nanoseconds. A store without a wait queue does not notify.
fn wait(attempt: &Attempt, at_most: u64) {
    let clock = monotonic_clock::subscribe_duration(at_most);
    match attempt.subscribe() {
        Some(freed) => {
            poll(&[&freed, &clock]);
        }
        None => clock.block(),
    }
}

/// Works while the lock is held. The renewal is polled before each part of the work.
fn work(lock: &Lock, length: Duration) -> Result<(), String> {
    let renewal = lock.keep().map_err(message)?;
    let end = monotonic_clock::now().saturating_add(nanos(length));
    loop {
        let soon = match renewal.poll() {
            Keeping::Held(soon) => soon,
            Keeping::Unknown(doubt) => {
                say(&stderr::get_stderr(), &format!("nightly: {}", doubt.why));
                doubt.wait
            }
            Keeping::Released => return Err("the lock was released elsewhere".into()),
            Keeping::Lost(Loss::Expired) => {
                return Err("the lease expired before its renewal".into());
            }
            Keeping::Lost(Loss::Revoked) => return Err("the lease was revoked".into()),
        };
        let left = end.saturating_sub(monotonic_clock::now());
        if left == 0 {
            return Ok(());
        }
        // One part of the work, until the renewal must be polled again.
        sleep(soon.min(left));
    }
}

fn sleep(nanoseconds: u64) {
    monotonic_clock::subscribe_duration(nanoseconds).block();
}

/// Reads an argument in whole seconds.
fn seconds(argument: Option<&String>, default: u64) -> Result<Duration, String> {
    let seconds = argument.map_or(Ok(default), |argument| argument.parse());
    let wrong = |why| format!("{}: {why}", argument.map_or("", String::as_str));
    seconds.map(Duration::from_secs).map_err(wrong)
}

fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn message(error: LockError) -> String {
    error.message
}

/// Writes a line, and ignores a closed stream.
fn say(stream: &OutputStream, line: &str) {
    let _ = stream.blocking_write_and_flush(format!("{line}\n").as_bytes());
}
