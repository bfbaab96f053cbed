use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_policy::effective::{OverrideState, Wait};

use super::*;
use crate::breaker::tests::{FAILURE, SUCCESS, call, settings};

fn shared() -> SharedBreaker {
    SharedBreaker::new(BreakerName::Service)
}

#[test]
fn without_a_breaker_everything_passes() {
    let (shared, now) = (shared(), Instant::now());
    for _ in 0..100 {
        let era = shared.acquire(now).expect("no breaker");
        assert_eq!(shared.record(era, call(FAILURE), now), None);
    }
    assert!(shared.admits(now));
    assert_eq!(shared.view(now), View::NONE);
}

#[test]
fn configuring_it_starts_a_new_era() {
    let (shared, now) = (shared(), Instant::now());
    let mut earlier = vec![shared.acquire(now).expect("no breaker")];
    for settings in [Some(settings()), None, Some(settings())] {
        shared.configure(settings.as_ref(), None, now);
        for era in &earlier {
            (0..3).for_each(|_| assert_eq!(shared.record(*era, call(FAILURE), now), None));
        }
        let view = shared.view(now);
        assert_eq!(
            (view.state, view.calls, view.tally),
            ("closed", 0, View::NONE.tally),
            "stragglers decide nothing"
        );
        earlier.push(shared.acquire(now).expect("closed"));
    }
}

#[test]
fn a_change_keeps_its_state() {
    let (shared, now) = (shared(), Instant::now());
    shared.configure(Some(&settings()), None, now);
    let era = shared.acquire(now).expect("closed");
    assert_eq!(shared.record(era, call(FAILURE), now), None);
    shared.configure(Some(&settings()), None, now);
    assert_eq!(shared.record(era, call(FAILURE), now), Some(Transition::Opened));
    shared.configure(Some(&settings()), None, now);
    assert!(!shared.admits(now));
    shared.configure(None, None, now);
    assert!(shared.admits(now));
}

/// Many threads, a clock that runs fast, and settings that change: in the end nothing is left taken.
#[test]
fn no_permit_is_lost_between_threads() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 30_000;
    let shared = shared();
    let probing = effective::Breaker {
        wait: Wait { initial: Duration::from_millis(1), ..settings().wait },
        permitted_calls_in_half_open: 3,
        ..settings()
    };
    let start = Instant::now();
    shared.configure(Some(&probing), None, start);
    let (clock, opened, closed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let count = |transition: Option<Transition>| match transition {
        Some(Transition::Closed) => _ = closed.fetch_add(1, Relaxed),
        Some(Transition::Opened | Transition::Reopened) => _ = opened.fetch_add(1, Relaxed),
        Some(Transition::HalfOpened) | None => (),
    };
    let work = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut permits = Vec::new();
        for _ in 0..ROUNDS {
            let now = start + Duration::from_micros(clock.fetch_add(50, Relaxed));
            if shared.admits(now) {
                permits.extend(shared.acquire(now));
            }
            if random.u8(..) < 200 && !permits.is_empty() {
                let era = permits.swap_remove(random.usize(..permits.len()));
                match random.u8(..10) {
                    0..6 => count(shared.record(era, call(SUCCESS), now)),
                    6..9 => count(shared.record(era, call(FAILURE), now)),
                    _ => shared.abandon(era),
                }
            }
            match random.u32(..10_000) {
                0 => shared.configure(None, None, now),
                1..9 => shared.configure(Some(&probing), None, now),
                _ => (),
            }
        }
        permits.into_iter().for_each(|era| shared.abandon(era));
    };
    let work = &work;
    std::thread::scope(|scope| (0..THREADS).for_each(|seed| drop(scope.spawn(move || work(seed)))));
    assert!([opened, closed].iter().all(|count| 100 < count.load(Relaxed)), "it went through every state");
    shared.configure(Some(&probing), None, start);
    let inner = shared.inner.lock();
    let breaker = inner.breaker.as_ref().expect("configured");
    if let Phase::HalfOpen { taken, succeeded, permitted, .. } = breaker.phase {
        assert_eq!(taken, succeeded);
        assert!(succeeded < permitted);
    }
}

const START: i64 = 1_900_000_000_000;

fn at(now: Instant) -> At {
    At { now, random: 0 }
}

fn opened(shared: &SharedBreaker, now: Instant) {
    shared.configure(Some(&settings()), None, now);
    let era = shared.acquire(now).expect("closed");
    shared.record(era, call(FAILURE), now);
    assert_eq!(shared.record(era, call(FAILURE), now), Some(Transition::Opened));
}

fn command(action: Action, millis: i64) -> Command {
    Command { action, reason: String::from("a test"), until_unix_millis: START + millis }
}

#[test]
fn an_open_breaker_is_asked_without_its_lock() {
    let (shared, now) = (shared(), Instant::now());
    opened(&shared, now);
    let _locked = shared.inner.lock();
    assert!(!shared.admits(now) && shared.acquire(now).is_none() && !shared.half_open());
    assert_eq!(shared.retry_after(now + Duration::from_secs(2)), Some(Duration::from_secs(3)));
    assert!(shared.admits(now + Duration::from_secs(5)), "its time is over");
}

#[test]
fn a_look_makes_it_half_open_without_a_request() {
    let (shared, now) = (shared(), Instant::now());
    opened(&shared, now);
    let later = now + Duration::from_secs(5);
    shared.tick(at(later), START);
    assert!(shared.half_open());
    let probe = shared.acquire(later).expect("one probe");
    assert!(shared.half_open() && !shared.admits(later), "the probe is taken");
    shared.abandon(probe);
    assert!(shared.admits(later));
}

#[test]
fn an_override_of_the_policy_ends_by_itself() {
    let (shared, now) = (shared(), Instant::now());
    let held = BreakerOverride {
        breaker: BreakerName::Service,
        state: OverrideState::Open,
        until_unix_millis: START + 1000,
        reason: String::from("a leak"),
    };
    shared.configure(None, Some(&held), now);
    assert!(shared.admits(now), "it is not known yet what time it is");
    shared.tick(at(now), START);
    assert!(!shared.admits(now) && shared.acquire(now).is_none() && shared.pass_over().is_none());
    assert_eq!(shared.retry_after(now), Some(Duration::from_secs(1)));
    let view = shared.view(now);
    assert_eq!((view.state, view.cause.as_deref()), ("open", Some("held open by the policy: a leak")));
    shared.configure(Some(&settings()), Some(&held), now);
    assert!(!shared.admits(now), "a change of the policy that keeps it keeps it");
    shared.tick(at(now), START + 999);
    assert!(!shared.admits(now));
    shared.tick(at(now), START + 1000);
    assert!(shared.admits(now));
    assert_eq!(shared.view(now).hold, None);
}

#[test]
fn what_the_api_said_survives_a_policy_and_ends_by_itself() {
    let (shared, now) = (shared(), Instant::now());
    opened(&shared, now);
    shared.command(command(Action::Close, 1000), now, START).expect("always possible");
    assert!(shared.admits(now) && shared.acquire(now).is_some());
    shared.configure(Some(&settings()), None, now);
    shared.configure(None, None, now);
    shared.configure(Some(&settings()), None, now);
    assert_eq!(shared.view(now).hold.map(|hold| (hold.by, hold.action)), Some(("api", "close")));
    let era = shared.acquire(now).expect("held closed");
    (0..5).for_each(|_| assert_eq!(shared.record(era, call(FAILURE), now), None));
    shared.tick(at(now), START + 1000);
    assert_eq!(shared.record(era, call(FAILURE), now), Some(Transition::Opened), "it decides again");
}

#[test]
fn a_reset_sets_an_override_of_the_policy_aside_for_its_time() {
    let (shared, now) = (shared(), Instant::now());
    let held = BreakerOverride {
        breaker: BreakerName::Service,
        state: OverrideState::Open,
        until_unix_millis: START + 9000,
        reason: String::from("a leak"),
    };
    shared.configure(None, Some(&held), now);
    shared.command(command(Action::Reset, 1000), now, START).expect("always possible");
    assert!(shared.admits(now));
    assert_eq!(shared.command(command(Action::HalfOpen, 1000), now, START), Err(NoBreaker));
    shared.tick(at(now), START + 1000);
    assert!(!shared.admits(now), "the policy's holds again");
}

#[test]
fn its_share_grows_after_it_closed() {
    let (shared, now) = (shared(), Instant::now());
    let ramping = effective::Breaker { recovery_ramp: Duration::from_secs(10), ..settings() };
    opened(&shared, now);
    shared.configure(Some(&ramping), None, now);
    let closed = now + Duration::from_secs(5);
    let probe = shared.acquire(closed).expect("one probe");
    assert_eq!(shared.record(probe, call(SUCCESS), closed), Some(Transition::Closed));
    let share = |seconds| {
        let now = closed + Duration::from_secs(seconds);
        (0..1000u64).filter(|i| shared.takes_share(now, i * (u64::MAX / 1000))).count()
    };
    let shares = [0, 2, 5, 9, 10].map(share);
    for (share, expected) in shares.into_iter().zip([100, 280, 550, 910, 1000]) {
        assert!(share.abs_diff(expected) <= 2, "{shares:?}");
    }
    assert!(shared.admits(closed), "it is closed; the share is for who chooses");
    shared.tick(at(closed + Duration::from_secs(10)), START);
    assert!(shared.takes_share(closed, u64::MAX), "the ramp is over");
}
