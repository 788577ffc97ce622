//! Auto-renewal, by scripts: the store's replies, and the steps that follow, through both drivers.

mod common;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::task::Poll;

use common::script::{In, World, broken, claim, granted, held, ms, trouble, woken};
use verrou::{
    Fence, Health, Lease, Loss, Renew, RenewStep, Renewed, StoreError, Timestamp, Ttl, blocking,
    nonblocking,
};

/// Returns a ttl whose third is 800 ms; an eighth of that is 100 ms.
fn ttl() -> Ttl {
    Ttl::new(ms(2400)).expect("a ttl")
}

fn lease(ttl: Ttl) -> Lease {
    Lease::granted(claim(ttl), Some(Fence::FIRST), Timestamp::default())
}

/// Plays `script` to the auto-renewal of a lease of 2.4 s that was just granted.
#[track_caller]
fn check(script: impl Fn() -> Vec<In>, expected: &[&str]) {
    check_for(
        || Renew::new(lease(ttl()), ttl(), Timestamp::default()),
        script,
        expected,
    );
}

#[track_caller]
fn check_for(machine: impl Fn() -> Renew, script: impl Fn() -> Vec<In>, expected: &[&str]) {
    let world = World::new(script());
    let mut keeping = machine();
    let end = blocking::keep(&world, &world, &mut keeping, |machine, at_most| {
        world.note(health(machine));
        if world.rest("sleep", at_most) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    world.note(describe(end));
    assert_eq!(world.log(), expected, "blocking");

    let world = World::new(script());
    let mut keeping = machine();
    let stopped = poll_fn(|_| {
        if world.is_stopped() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let noted = |machine: &Renew| world.note(health(machine));
    let end = nonblocking::keep(&world, &world, &mut keeping, noted, |_| {}, stopped);
    let end = pollster::block_on(end);
    world.note(describe(end));
    assert_eq!(world.log(), expected, "nonblocking");
}

fn health(machine: &Renew) -> &'static str {
    match machine.health() {
        Health::Held => "held",
        Health::Renewed => "renewed",
        Health::Unknown(_) => "unknown",
        Health::Released => "released",
        Health::Lost(_) => "lost",
    }
}

fn describe(end: Result<(), Loss>) -> String {
    match end {
        Ok(()) => "stopped".into(),
        Err(loss) => format!("lost: {loss:?}"),
    }
}

#[test]
fn lease_is_renewed_at_every_third_of_the_ttl() {
    check(
        || vec![granted(0), granted(0).after(50), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 800ms",
            "renew@1.6s",
            "renewed",
            // Counted from before the request, not from its reply.
            "sleep 750ms",
            "stopped",
        ],
    );
}

#[test]
fn no_renewal_is_sent_before_it_is_due() {
    check(
        || vec![woken(100), woken(300), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "held",
            "sleep 700ms",
            "held",
            "sleep 400ms",
            "stopped",
        ],
    );
}

#[test]
fn old_lease_is_renewed_after_half_of_its_remaining_time() {
    check_for(
        || Renew::new(lease(ttl()), ttl(), Timestamp::new(ms(2000))),
        || vec![granted(0), In::Stop],
        &[
            // The world's clock starts at zero, but the remaining time was computed at two seconds.
            "held",
            "sleep 2.2s",
            "renew@2.2s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

#[test]
fn error_makes_the_lease_unknown_and_success_renews_it() {
    check(
        || vec![trouble(), broken(), granted(0), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "unknown",
            "sleep 100ms",
            "renew@900ms",
            "unknown",
            "sleep 100ms",
            "renew@1s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

#[test]
fn lease_stays_unknown_until_it_expires() {
    check(
        || vec![trouble().after(700), trouble().after(700)],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "unknown",
            "sleep 100ms",
            "renew@1.6s",
            "unknown",
            "sleep 100ms",
            "lost: Expired",
        ],
    );
    // A pause does not last longer than the lease.
    check(
        || vec![trouble().after(1550)],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "unknown",
            "sleep 50ms",
            "lost: Expired",
        ],
    );
    check(
        || vec![trouble().after(1600)],
        &["held", "sleep 800ms", "renew@800ms", "lost: Expired"],
    );
}

#[test]
fn refused_renewal_loses_the_lease() {
    check(
        || vec![granted(0), held()],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 800ms",
            "renew@1.6s",
            "lost: Revoked",
        ],
    );
}

#[test]
fn renewal_received_after_its_expiry_is_lost() {
    check(
        || vec![granted(0).after(2400)],
        &["held", "sleep 800ms", "renew@800ms", "lost: Expired"],
    );
    // After the old expiry, but before the new one: the store extended it in time.
    check(
        || vec![granted(0).after(2399), granted(0), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 500µs",
            "renew@3.1995s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

/// Without a wait, the driver of a slow store would never detect that the work has ended.
#[test]
fn slow_renewals_have_a_wait_between_them() {
    check(
        || vec![granted(0).after(900), granted(0).after(750), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 100ms",
            "renew@1.8s",
            "renewed",
            "sleep 100ms",
            "stopped",
        ],
    );
}

#[test]
fn expired_lease_is_lost_without_a_request() {
    check(
        || vec![woken(2400)],
        &["held", "sleep 800ms", "lost: Expired"],
    );
    check(
        || vec![granted(0), woken(9000)],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 800ms",
            "lost: Expired",
        ],
    );
}

#[test]
fn a_lease_without_ttl_is_confirmed() {
    check_for(
        || Renew::new(lease(Ttl::NEVER), Ttl::NEVER, Timestamp::default()),
        || vec![granted(0), trouble(), granted(0), In::Stop],
        &[
            "held",
            "sleep 10s",
            "renew@10s",
            "renewed",
            "sleep 10s",
            "renew@20s",
            "unknown",
            "sleep 1.25s",
            "renew@21.25s",
            "renewed",
            "sleep 10s",
            "stopped",
        ],
    );
    check_for(
        || Renew::new(lease(Ttl::NEVER), Ttl::NEVER, Timestamp::default()),
        || vec![held()],
        &["held", "sleep 10s", "renew@10s", "lost: Revoked"],
    );
}

#[test]
fn renewal_adds_no_expiry_to_a_lease_without_one() {
    check_for(
        || Renew::new(lease(Ttl::NEVER), ttl(), Timestamp::default()),
        || vec![granted(0), woken(2400), granted(0), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renewed",
            "sleep 800ms",
            "renew@3.2s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

#[test]
fn a_renewal_never_shortens() {
    let hour = Ttl::new(ms(3_600_000)).expect("a ttl");
    let at = |millis| Timestamp::new(ms(millis));
    let mut machine = Renew::new(lease(hour), ttl(), at(0));
    for now in [800, 1600, 2400] {
        let RenewStep::Renew(claim, _) = machine.next(at(now)) else {
            panic!("it is confirmed as often as any");
        };
        assert_eq!(claim.ttl.duration(), Some(ms(3_600_000 - now)));
        machine.received(at(now), Ok(Renewed::Granted));
        assert_eq!(machine.lease().ends(), Some(at(3_600_000)));
    }
}

/// The machine was suspended for longer than the ttl.
#[test]
fn expired_lease_is_taken_back_by_a_store_that_revives() {
    let reviving = || Renew::new(lease(ttl()), ttl(), Timestamp::default()).reviving(true);
    check_for(
        reviving,
        || vec![woken(9000), granted(0), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@9s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
    check_for(
        reviving,
        || vec![woken(9000), held()],
        &["held", "sleep 800ms", "renew@9s", "lost: Expired"],
    );
    // The store gets one request; an error does not prove that the lock is still held.
    check_for(
        reviving,
        || vec![woken(9000), trouble()],
        &["held", "sleep 800ms", "renew@9s", "lost: Expired"],
    );
    check_for(
        reviving,
        || vec![trouble().after(1500), trouble().after(200)],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "unknown",
            "sleep 100ms",
            "renew@2.4s",
            "lost: Expired",
        ],
    );
    // The machine was suspended while the store answered.
    check_for(
        reviving,
        || vec![granted(0).after(9000), granted(0), In::Stop],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renew@9.8s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

/// Each renewal takes at least the ttl.
#[test]
fn a_store_that_is_too_slow_for_the_ttl_loses_the_lease() {
    let reviving = || Renew::new(lease(ttl()), ttl(), Timestamp::default()).reviving(true);
    check_for(
        reviving,
        || vec![granted(0).after(2400), granted(0).after(2400)],
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renew@3.2s",
            "lost: Expired",
        ],
    );
    // A grant in time lies between two late ones.
    check_for(
        reviving,
        || {
            vec![
                granted(0).after(2400),
                granted(0),
                granted(0).after(2400),
                granted(0),
                In::Stop,
            ]
        },
        &[
            "held",
            "sleep 800ms",
            "renew@800ms",
            "renew@3.2s",
            "renewed",
            "sleep 800ms",
            "renew@4s",
            "renew@6.4s",
            "renewed",
            "sleep 800ms",
            "stopped",
        ],
    );
}

/// The lease has expired when the work is done.
#[test]
fn the_final_renewal_makes_at_most_two_requests() {
    let late = || vec![granted(0).after(2400), granted(0).after(2400)];
    let reviving = || Renew::new(lease(ttl()), ttl(), Timestamp::default()).reviving(true);

    let world = World::new(std::iter::once(woken(2400)).chain(late()).collect());
    let kept = blocking::keep(&world, &world, &mut reviving(), |_, at_most| {
        world.rest("sleep", at_most);
        ControlFlow::Break(())
    });
    assert_eq!(kept, Ok(()));
    assert_eq!(world.log(), ["sleep 800ms", "renew@2.4s", "renew@4.8s"]);

    let world = World::new(std::iter::once(woken(2400)).chain(late()).collect());
    let work = async { world.rest("work", ms(0)) };
    let mut machine = reviving();
    let kept = nonblocking::keep(&world, &world, &mut machine, |_| {}, |_| {}, work);
    assert_eq!(pollster::block_on(kept), Ok(true));
    assert_eq!(world.log(), ["work 0ns", "renew@2.4s", "renew@4.8s"]);
}

#[test]
fn cause_of_a_failed_renewal_is_recorded() {
    let at = |millis| Timestamp::new(ms(millis));
    for revives in [false, true] {
        let mut machine = Renew::new(lease(ttl()), ttl(), at(0)).reviving(revives);
        assert!(matches!(machine.next(at(800)), RenewStep::Renew(..)));
        machine.received(at(900), Err(StoreError::temporary("in trouble")));
        assert!(machine.failure().is_none());
        if let RenewStep::Renew(..) = machine.next(at(2400)) {
            assert!(revives);
            machine.received(at(2500), Err(StoreError::temporary("in trouble")));
        }
        assert!(matches!(
            machine.next(at(2500)),
            RenewStep::Lost(Loss::Expired)
        ));
        let failure = machine.failure().map(ToString::to_string);
        assert_eq!(failure.as_deref(), Some("in trouble"));
    }
}

#[test]
fn release_by_the_owner_is_not_a_loss() {
    let at = |millis| Timestamp::new(ms(millis));
    let mut machine = Renew::new(lease(ttl()), ttl(), at(0)).reviving(true);
    assert!(matches!(machine.next(at(800)), RenewStep::Renew(..)));
    machine.received(at(900), Ok(Renewed::Released));
    assert!(matches!(machine.health(), Health::Released));
    for now in [900, 9000] {
        assert!(matches!(machine.next(at(now)), RenewStep::Released));
    }
}

#[test]
fn late_reply_loses_the_lease_at_once() {
    let at = |millis| Timestamp::new(ms(millis));
    for reply in [
        Ok(Renewed::Granted),
        Err(StoreError::temporary("in trouble")),
    ] {
        let mut machine = Renew::new(lease(ttl()), ttl(), at(0));
        assert!(matches!(machine.next(at(800)), RenewStep::Renew(..)));
        machine.received(at(3200), reply);
        assert!(matches!(machine.health(), Health::Lost(Loss::Expired)));
    }
}

#[test]
fn step_is_repeated_until_its_result_is_recorded() {
    let at = |millis| Timestamp::new(ms(millis));
    let mut machine = Renew::new(lease(ttl()), ttl(), at(0));
    // No request is in flight.
    machine.received(at(0), Ok(Renewed::Lost));
    for _ in 0..2 {
        assert!(matches!(machine.next(at(0)), RenewStep::Wait(pause) if pause == ms(800)));
    }
    for _ in 0..2 {
        assert!(matches!(machine.next(at(900)), RenewStep::Renew(..)));
    }
    // The request was sent at 900 ms; a later call of `next` returns the same request.
    machine.next(at(1000));
    machine.received(at(1100), Ok(Renewed::Granted));
    assert_eq!(machine.lease().ends(), Some(at(3300)));
    for _ in 0..2 {
        assert!(matches!(
            machine.next(at(3300)),
            RenewStep::Lost(Loss::Expired)
        ));
    }
    // A lost lease stays lost, regardless of later replies and calls.
    machine.received(at(3300), Ok(Renewed::Granted));
    assert!(matches!(
        machine.next(at(0)),
        RenewStep::Lost(Loss::Expired)
    ));
}
