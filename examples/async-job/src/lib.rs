//! A job that does its work on one machine at a time: a component for WASI 0.3 that acquires the lock `nightly`, renews its
//! lease while it works, and releases it.

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use verrou::async_lock::locks::{Acquisition, Kept, Lock, LockError, Retry};
use wasi::clocks0_3_0::monotonic_clock;

wit_bindgen::generate!({
    inline: "
        package example:async-job;

        world job {
          import verrou:async-lock/locks@0.1.0;
          import wasi:clocks/monotonic-clock@0.3.0;

          /// Works for `length` nanoseconds, if the lock can be acquired in `patience` nanoseconds. Returns the fencing
          /// token of the work that was done.
          export run: async func(length: u64, patience: u64) -> result<option<u64>, string>;

          /// Acquires the lock, and traps.
          export crash: async func();
        }
    ",
    path: ["../../wit", "../../wit/async"],
    generate_all,
});
export!(Job);

/// The lock's ttl: short, so that the lock is soon free if the host ends the job and does not release its locks.
const TTL: Duration = Duration::from_secs(5);

/// Wait without end: `run` drops the wait.
const WITHOUT_END: Retry = Retry {
    attempts: None,
    delay: None,
    max_delay: None,
    timeout: None,
};

struct Job;

impl Guest for Job {
    async fn run(length: u64, patience: u64) -> Result<Option<u64>, String> {
        let lock = Lock::create("nightly", Some(nanos(TTL))).map_err(message)?;
        let token = {
            let patience = pin!(monotonic_clock::wait_for(patience));
            // If the patience ends first, the call is dropped, and leaves the wait queue.
            match select(pin!(lock.acquire(WITHOUT_END)), patience).await {
                Either::Right(((), _)) => return Ok(None),
                Either::Left((acquired, _)) => match acquired.map_err(message)? {
                    Acquisition::Acquired(grant) => grant.fencing_token.unwrap_or(0),
                    Acquisition::GaveUp(_) | Acquisition::Stopped => return Ok(None),
                },
            }
        };
        {
            // The work, during which the lease is renewed.
            let work = pin!(monotonic_clock::wait_for(length));
            match select(work, pin!(lock.keep())).await {
                Either::Left(((), _)) => {}
                Either::Right((kept, _)) => {
                    return match kept.map_err(message)? {
                        Kept::Lost(loss) => Err(format!("the lock was lost: {loss:?}")),
                        Kept::Released | Kept::Stopped => Err("the lock was released".to_owned()),
                    };
                }
            }
        }
        lock.release().await.map_err(message)?;
        Ok(Some(token))
    }

    async fn crash() {
        let lock = Lock::create("nightly", None).expect("a lock");
        let acquired = lock.try_acquire().await.expect("an answer");
        assert!(acquired.is_none(), "the lock is held, and the job traps");
    }
}

fn message(error: LockError) -> String {
    error.message
}

fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}
