//! The acquire state machine, by scripts: the store's replies, and the steps that follow, through all
//! three drivers.

mod common;

use std::time::Duration;

use common::script::{In, World, broken, claim, granted, held, held_for, ms, trouble, woken};
use verrou::polled::Progress;
use verrou::{
    Acquire, AcquireStep, Acquired, Backoff, Clock, Error, Fence, Lease, Owner, Retry, StoreError,
    Timestamp, Ttl, blocking, nonblocking, polled,
};

/// Returns a policy of an attempt every 100 ms.
fn retry() -> Retry {
    Retry::default().delay(ms(100)).expect("a delay")
}

fn second() -> Ttl {
    Ttl::new(ms(1000)).expect("a ttl")
}

/// Plays `script` to a lock of one second.
#[track_caller]
fn check(retry: &Retry, script: impl Fn() -> Vec<In>, expected: &[&str]) {
    check_for(second(), retry, script, expected);
}

#[track_caller]
fn check_for(ttl: Ttl, retry: &Retry, script: impl Fn() -> Vec<In>, expected: &[&str]) {
    let machine = |world: &World| Acquire::new(claim(ttl), retry.clone(), world.now());

    let world = World::new(script());
    let end = blocking::acquire(&world, &world, machine(&world));
    world.note(describe(&end));
    assert_eq!(world.log(), expected, "blocking");

    let world = World::new(script());
    let end = pollster::block_on(nonblocking::acquire(&world, &world, machine(&world)));
    world.note(describe(&end));
    assert_eq!(world.log(), expected, "nonblocking");

    let world = World::new(script());
    let lock = polled::Lock::new(&world, &world, "lock", ttl.duration()).expect("a lock");
    let end = drive(&world, lock.acquire(retry, [7; 16]));
    assert_eq!(lock.lease().as_ref(), end.as_ref().ok());
    drop(lock);
    world.note(describe(&end));
    assert_eq!(world.log(), expected, "polled");
}

/// Polls `attempt` to its end, waiting as `world` waits.
fn drive(world: &World, mut attempt: polled::Attempt<&World, &World>) -> Result<Lease, Error> {
    loop {
        match attempt.poll()? {
            Progress::Wait(at_most) => world.rest("wait", at_most),
            Progress::Pause(pause) => world.rest("sleep", pause),
            Progress::Acquired(lease) => return Ok(lease),
        };
    }
}

fn describe(end: &Result<Lease, Error>) -> String {
    match end {
        Ok(lease) => {
            let fence = lease.fence().map_or(0, Fence::get);
            match lease.ends() {
                Some(ends) => format!("held until {:?}, fence {fence}", ends.since_start()),
                None => format!("held, fence {fence}"),
            }
        }
        Err(Error::Timeout { attempts, .. }) => format!("timeout after {attempts}"),
        Err(Error::Lost { loss, .. }) => format!("lost: {loss:?}"),
        Err(Error::Storage(err)) => format!("storage: {err}"),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn free_lock_is_acquired_at_once() {
    let at_once = ["acquire@0ns", "held until 1s, fence 7"];
    check(&retry(), || vec![granted(7)], &at_once);
    check(&Retry::NEVER, || vec![granted(7)], &at_once);
}

#[test]
fn a_lease_without_ttl_has_no_end() {
    check_for(
        Ttl::NEVER,
        &retry(),
        || vec![granted(7).after(5000)],
        &["acquire@0ns", "held, fence 7"],
    );
}

#[test]
fn a_lease_is_counted_from_before_its_own_request() {
    check(
        &retry(),
        || vec![held(), held(), granted(7).after(50)],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@100ms",
            "wait 100ms",
            "acquire@200ms",
            "held until 1.2s, fence 7",
        ],
    );
}

#[test]
fn the_last_attempt_is_at_the_deadline() {
    check(
        &Retry::default().timeout(ms(300)),
        || vec![held(), held(), held()],
        &[
            "acquire@0ns",
            "wait 250ms",
            "acquire@250ms",
            "wait 50ms",
            "acquire@300ms",
            "timeout after 3",
        ],
    );
}

#[test]
fn the_last_attempt_can_succeed() {
    check(
        &Retry::default().timeout(ms(300)),
        || vec![held(), held(), granted(7)],
        &[
            "acquire@0ns",
            "wait 250ms",
            "acquire@250ms",
            "wait 50ms",
            "acquire@300ms",
            "held until 1.3s, fence 7",
        ],
    );
}

#[test]
fn slow_store_does_not_delay_the_deadline() {
    check(
        &retry().timeout(ms(300)),
        || vec![held().after(290), held()],
        &[
            "acquire@0ns",
            "wait 10ms",
            "acquire@300ms",
            "timeout after 2",
        ],
    );
    check(
        &retry().timeout(ms(300)),
        || vec![held().after(301)],
        &["acquire@0ns", "timeout after 1"],
    );
}

#[test]
fn a_timeout_of_zero_is_one_attempt() {
    check(
        &retry().timeout(Duration::ZERO),
        || vec![held()],
        &["acquire@0ns", "timeout after 1"],
    );
    check(
        &retry().timeout(Duration::ZERO),
        || vec![granted(7)],
        &["acquire@0ns", "held until 1s, fence 7"],
    );
}

#[test]
fn maximum_timeout_is_no_timeout() {
    check(
        &retry().timeout(Duration::MAX),
        || vec![held(), granted(7)],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@100ms",
            "held until 1.1s, fence 7",
        ],
    );
}

#[test]
fn attempts_are_limited() {
    check(
        &retry().attempts(3).expect("attempts"),
        || vec![held(), held(), held()],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@100ms",
            "wait 100ms",
            "acquire@200ms",
            "timeout after 3",
        ],
    );
    check(
        &Retry::NEVER,
        || vec![held()],
        &["acquire@0ns", "timeout after 1"],
    );
}

#[test]
fn an_attempt_after_an_early_wake_does_not_count() {
    check(
        &retry().attempts(2).expect("attempts"),
        || vec![held(), woken(30), held(), woken(30), held(), held()],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@30ms",
            "wait 70ms",
            "acquire@60ms",
            "wait 40ms",
            "acquire@100ms",
            "timeout after 2",
        ],
    );
}

/// A store that ends each wait at once gets no requests in a busy loop.
#[test]
fn waits_that_end_at_once_become_pauses() {
    let script = || {
        let mut script = vec![held()];
        script.extend((0..101).flat_map(|_| [woken(0), held()]));
        script.extend((0..100).map(|_| held()));
        script
    };
    let mut expected = vec!["acquire@0ns".to_owned()];
    expected.extend((0..101).flat_map(|_| ["wait 100ms", "acquire@0ns"].map(str::to_owned)));
    expected.extend((1..=100).flat_map(|at| ["sleep 1ms".to_owned(), format!("acquire@{at}ms")]));
    expected.push("timeout after 2".to_owned());
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    check(&retry().attempts(2).expect("attempts"), script, &expected);
}

/// A store whose waits each last a millisecond is not in a busy loop.
#[test]
fn waits_of_a_millisecond_do_not_become_pauses() {
    let seconds = Retry::default().delay(ms(1000)).expect("a delay");
    let script = || {
        let mut script = vec![held()];
        script.extend((1..300).flat_map(|_| [woken(1), held()]));
        script.extend([woken(1), granted(7)]);
        script
    };
    let mut expected = vec!["acquire@0ns".to_owned()];
    expected.extend((1..=300).flat_map(|at| {
        let left = ms(1001 - at);
        [format!("wait {left:?}"), format!("acquire@{at}ms")]
    }));
    expected.push("held until 1.3s, fence 7".to_owned());
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    check(&seconds, script, &expected);
}

#[test]
fn an_attempt_after_an_early_wake_can_succeed() {
    check(
        &retry().attempts(2).expect("attempts"),
        || vec![held(), woken(30), granted(7)],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@30ms",
            "held until 1.03s, fence 7",
        ],
    );
}

#[test]
fn overlong_wait_counts_as_one() {
    check(
        &retry().attempts(3).expect("attempts"),
        || vec![held(), woken(5000), held(), held()],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@5s",
            "wait 100ms",
            "acquire@5.1s",
            "timeout after 3",
        ],
    );
}

#[test]
fn waiter_retries_when_the_record_expires() {
    check(
        &retry().attempts(2).expect("attempts"),
        || vec![held_for(40), held_for(20), held(), held_for(1000)],
        &[
            "acquire@0ns",
            "wait 40ms",
            "acquire@40ms",
            "wait 20ms",
            "acquire@60ms",
            "wait 40ms",
            "acquire@100ms",
            "timeout after 2",
        ],
    );
}

#[test]
fn waiter_does_not_retry_in_a_busy_loop() {
    check(
        &retry().timeout(ms(100)),
        || vec![held_for(0), granted(7)],
        &[
            "acquire@0ns",
            "wait 1ms",
            "acquire@1ms",
            "held until 1.001s, fence 7",
        ],
    );
}

#[test]
fn temporary_errors_are_retried_after_a_pause() {
    check(
        &retry(),
        || vec![trouble(), trouble(), granted(7)],
        &[
            "acquire@0ns",
            "sleep 100ms",
            "acquire@100ms",
            "sleep 100ms",
            "acquire@200ms",
            "held until 1.2s, fence 7",
        ],
    );
}

#[test]
fn failing_store_gets_no_request_during_a_pause() {
    check(
        &retry(),
        || vec![trouble(), woken(30), woken(30), granted(7)],
        &[
            "acquire@0ns",
            "sleep 100ms",
            "sleep 70ms",
            "sleep 40ms",
            "acquire@100ms",
            "held until 1.1s, fence 7",
        ],
    );
}

#[test]
fn last_error_is_returned_after_a_release() {
    check(
        &retry().attempts(2).expect("attempts"),
        || vec![trouble(), trouble(), held()],
        &[
            "acquire@0ns",
            "sleep 100ms",
            "acquire@100ms",
            "release@100ms",
            "storage: in trouble",
        ],
    );
}

#[test]
fn timeout_after_an_error_sends_a_release() {
    check(
        &retry().attempts(2).expect("attempts"),
        || vec![trouble(), held(), granted(0)],
        &[
            "acquire@0ns",
            "sleep 100ms",
            "acquire@100ms",
            "release@100ms",
            "timeout after 2",
        ],
    );
}

#[test]
fn timeout_after_refusals_sends_no_release() {
    check(
        &Retry::NEVER,
        || vec![held_for(500)],
        &["acquire@0ns", "timeout after 1"],
    );
}

#[test]
fn permanent_error_is_returned_after_a_release() {
    for undone in [granted, |_| held(), |_| trouble(), |_| broken()] {
        check(
            &retry(),
            || vec![broken(), undone(0)],
            &["acquire@0ns", "release@0ns", "storage: broken"],
        );
    }
}

#[test]
fn grant_received_after_expiry_is_requested_again() {
    check(
        &retry(),
        || vec![granted(7).after(1000), granted(8)],
        &[
            "acquire@0ns",
            "sleep 100ms",
            "acquire@1.1s",
            "held until 2.1s, fence 8",
        ],
    );
}

#[test]
fn grant_received_after_expiry_is_released() {
    check(
        &Retry::NEVER,
        || vec![granted(7).after(1000), held()],
        &["acquire@0ns", "release@1s", "lost: Expired"],
    );
    check(
        &retry().timeout(ms(1500)),
        || {
            vec![
                granted(7).after(1000),
                held().after(300),
                held(),
                granted(0),
            ]
        },
        &[
            "acquire@0ns",
            "sleep 100ms",
            "acquire@1.1s",
            "wait 100ms",
            "acquire@1.5s",
            "release@1.5s",
            "timeout after 3",
        ],
    );
}

#[test]
fn grant_received_just_before_expiry_is_accepted() {
    check(
        &Retry::NEVER,
        || vec![granted(7).after(999)],
        &["acquire@0ns", "held until 1s, fence 7"],
    );
}

/// Returns the pauses of one machine whose attempts are all refused.
fn pauses(owner: u128, backoff: Backoff, count: usize) -> Vec<Duration> {
    let mut claim = claim(second());
    claim.owner = Owner::from_bytes(owner.to_be_bytes());
    let retry = Retry::default().backoff(backoff).expect("a backoff");
    let mut now = Timestamp::default();
    let mut machine = Acquire::new(claim, retry, now);
    let mut pauses = Vec::new();
    while pauses.len() < count {
        match machine.next(now) {
            AcquireStep::Acquire(_) => machine.received(now, Ok(Acquired::BUSY)),
            AcquireStep::Wait(_, pause) => {
                pauses.push(pause);
                now = now.saturating_add(pause);
                machine.waited(now);
            }
            other => panic!("{other:?}"),
        }
    }
    pauses
}

#[test]
fn jitter_stays_within_its_bounds_and_spreads() {
    let (first, cap) = (ms(64), ms(400));
    let ceilings = [64, 128, 256, 400, 400, 400].map(ms);
    let mut sums = [Duration::ZERO; 6];
    for owner in 0..500_u128 {
        let owner = owner.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let pauses = pauses(owner, Backoff::Jittered { first, cap }, 6);
        for ((pause, ceiling), sum) in pauses.iter().zip(ceilings).zip(&mut sums) {
            assert!((ms(1)..=ceiling).contains(pause), "{pauses:?}");
            *sum += *pause;
        }
    }
    for (sum, ceiling) in sums.into_iter().zip(ceilings) {
        let mean = sum / 500;
        assert!(
            (ceiling * 2 / 5..=ceiling * 3 / 5).contains(&mean),
            "{mean:?} of {ceiling:?}"
        );
    }
}

/// The first results of `SplitMix64` for the seed zero, of which a pause uses the 16 highest bits:
/// `0xe220a8397b1dcdaf`, `0x6e789e6aa1b965f4`, `0x06c45d188009454f`.
#[test]
fn jitter_is_drawn_by_splitmix64() {
    let longest = ms(0xffff);
    let jittered = Backoff::Jittered {
        first: longest,
        cap: longest,
    };
    assert_eq!(
        pauses(0, jittered, 3),
        [0xe220, 0x6e78, 0x06c4].map(ms).to_vec()
    );
}

#[test]
fn jitter_can_be_capped_at_the_first_ceiling() {
    let (first, cap) = (ms(64), ms(64));
    let pauses = pauses(3, Backoff::Jittered { first, cap }, 6);
    assert!(pauses.iter().all(|pause| (ms(1)..=cap).contains(pause)));
}

#[test]
fn jitter_never_overflows() {
    let (first, cap) = (Duration::from_secs(1), Duration::from_secs(u64::MAX / 4));
    let ceiling = |attempt: u32| first * 2_u32.saturating_pow(attempt.min(31));
    let pauses = pauses(3, Backoff::Jittered { first, cap }, 40);
    for (attempt, pause) in (0..).zip(pauses) {
        assert!(pause <= ceiling(attempt), "{attempt}: {pause:?}");
    }
}

#[test]
fn step_is_repeated_until_its_result_is_recorded() {
    let zero = Timestamp::default();
    let mut machine = Acquire::new(
        claim(second()),
        retry().attempts(2).expect("attempts"),
        zero,
    );
    let mut steps = Vec::new();
    let mut step = |machine: &mut Acquire, now| {
        let step = format!("{:?}", machine.next(now));
        assert_eq!(format!("{:?}", machine.next(now)), step);
        steps.push(step.split(['(', ' ']).next().unwrap_or_default().to_owned());
    };
    step(&mut machine, zero);
    // No wait is under way; an attempt ends only with its reply.
    machine.waited(zero);
    step(&mut machine, zero);
    machine.received(zero, Err(StoreError::temporary("in trouble")));
    step(&mut machine, zero);
    // No request is in flight.
    machine.received(zero, Ok(Acquired::BUSY));
    step(&mut machine, zero);
    let later = Timestamp::new(ms(100));
    machine.waited(later);
    step(&mut machine, later);
    machine.received(later, Ok(Acquired::BUSY));
    step(&mut machine, later);
    machine.released();
    step(&mut machine, later);
    machine.received(later, Ok(Acquired::Granted { fence: None }));
    step(&mut machine, later);
    assert_eq!(
        steps,
        [
            "Acquire", "Acquire", "Sleep", "Sleep", "Acquire", "Release", "Done", "Done"
        ]
    );
}

/// A store whose count of grants went back protects nothing: its grant is released, and an error is
/// returned.
#[test]
fn grant_with_a_smaller_fencing_token_is_released() {
    let after = |seen, script| {
        let world = World::new(script);
        let machine = Acquire::new(claim(second()), retry(), world.now());
        let end = blocking::acquire(&world, &world, machine.after(Fence::new(seen)));
        if let Err(err) = &end {
            let text = format!("{err:?}");
            assert!(text.contains(&format!("after token {seen}")), "{text}");
        }
        world.note(describe(&end));
        world.log()
    };
    let greater = after(6, vec![granted(7)]);
    assert_eq!(greater, ["acquire@0ns", "held until 1s, fence 7"]);
    for seen in [7, 8, u64::MAX] {
        let log = after(seen, vec![granted(7), granted(0)]);
        let [requested, undone, end] = &log[..] else {
            panic!("{log:?}");
        };
        assert_eq!([requested, undone], ["acquire@0ns", "release@0ns"]);
        let why =
            format!("storage: the store granted the lock under fencing token 7 after token {seen}");
        assert!(end.starts_with(&why), "{end}");
    }
}

/// Runs `script` against a lock of one second in a store that notifies, through the drivers that wait.
#[track_caller]
fn check_notified(retry: &Retry, script: impl Fn() -> Vec<In>, expected: &[&str]) {
    let machine = |world: &World| Acquire::new(claim(second()), retry.clone(), world.now());

    let world = World::notifying(script());
    let end = blocking::acquire(&world, &world, machine(&world));
    world.note(describe(&end));
    assert_eq!(world.log(), expected, "blocking");

    let world = World::notifying(script());
    let end = pollster::block_on(nonblocking::acquire(&world, &world, machine(&world)));
    world.note(describe(&end));
    assert_eq!(world.log(), expected, "nonblocking");
}

#[test]
fn waiter_of_a_notifying_store_retries_every_ten_seconds() {
    check_notified(
        &retry(),
        || vec![held(), held(), held(), woken(3), granted(7)],
        &[
            "acquire@0ns",
            "wait 10s",
            "acquire@10s",
            "wait 10s",
            "acquire@20s",
            "wait 10s",
            "acquire@20.003s",
            "held until 21.003s, fence 7",
        ],
    );
    let seldom = Retry::default().delay(ms(20_000)).expect("a delay");
    check_notified(
        &seldom,
        || vec![held(), granted(7)],
        &[
            "acquire@0ns",
            "wait 20s",
            "acquire@20s",
            "held until 21s, fence 7",
        ],
    );
}

#[test]
fn waiter_of_a_notifying_store_makes_counted_attempts_on_time() {
    check_notified(
        &retry().attempts(3).expect("attempts"),
        || vec![held(), woken(30), held(), held(), held()],
        &[
            "acquire@0ns",
            "wait 100ms",
            "acquire@30ms",
            "wait 70ms",
            "acquire@100ms",
            "wait 100ms",
            "acquire@200ms",
            "timeout after 3",
        ],
    );
}

#[test]
fn waiter_of_a_notifying_store_retries_at_expiry_and_deadline() {
    check_notified(
        &retry().timeout(ms(2500)),
        || vec![held_for(700), held(), held()],
        &[
            "acquire@0ns",
            "wait 700ms",
            "acquire@700ms",
            "wait 1.8s",
            "acquire@2.5s",
            "timeout after 3",
        ],
    );
}
