use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::*;
use crate::balance::Usable;
use crate::balance::laws::{choice, members, peak_ewma, share_of};
use crate::balance::measure::{Ended, How, Measure};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    members: Vec<Member>,
    strategy: PeakEwma,
    now: Instant,
}

impl Bench {
    fn new(weights: &[u32]) -> Self {
        let members = members(weights);
        let measure = Arc::new(Measure { response_time: Some(peak_ewma()), ..Measure::default() });
        members.iter().for_each(|member| member.load.configure(&measure));
        let strategy = PeakEwma::new(Weights::new(&members, None), peak_ewma(), &members);
        Self { members, strategy, now: Instant::now() }
    }

    fn answers(&self, place: usize, took: Duration, failed: bool) {
        let how = if failed { How::Failed } else { How::Answered };
        self.members[place].load.ended(Ended { sent: self.now, now: self.now + took, how });
    }

    fn share(&self, place: usize) -> f64 {
        share_of(&self.strategy, &self.members, place, self.now)
    }
}

#[test]
fn a_slower_member_gets_nothing_while_the_others_are_idle() {
    let mut bench = Bench::new(&[1; 4]);
    (0..4).for_each(|place| bench.answers(place, if place == 1 { 10 * MILLI } else { MILLI }, false));
    bench.now += MILLI;
    assert_eq!(bench.share(1), 0.0);
    assert!((0.3..0.37).contains(&bench.share(0)));
    [0, 2, 3].into_iter().for_each(|place| bench.members[place].load.in_flight.store(12, Relaxed));
    assert_eq!(bench.share(1), 1.0, "twelve requests ahead take longer than it does");
}

#[test]
fn a_rise_is_taken_whole_and_a_fall_by_and_by() {
    let mut bench = Bench::new(&[1]);
    let average =
        |bench: &Bench| bench.members[0].load.response_time.at(Tick::of(bench.now), 10.0).expect("known");
    bench.answers(0, MILLI, false);
    bench.answers(0, 100 * MILLI, false);
    bench.now += 100 * MILLI;
    assert!((average(&bench) - 0.1).abs() < 1e-4);
    bench.now += 10 * SECOND;
    assert!((average(&bench) - 0.1 / std::f32::consts::E).abs() < 1e-3, "it fades without answers");
    bench.answers(0, MILLI, false);
    bench.now += MILLI;
    let expected = 0.1 / std::f32::consts::E + 0.001 * (1.0 - 1.0 / std::f32::consts::E);
    assert!((average(&bench) - expected).abs() < 1e-3);
}

#[test]
fn a_member_that_fails_fast_attracts_nothing_and_is_tried_again_later() {
    for count in [4, 20] {
        let mut bench = Bench::new(&vec![1; count]);
        for place in 0..count {
            bench.answers(place, MILLI, place == 0);
        }
        bench.now += MILLI;
        assert_eq!(bench.share(0), 0.0, "of {count}");
        for _ in 0..100 {
            bench.now += SECOND;
            (1..count).for_each(|place| bench.answers(place, MILLI, false));
        }
        assert!(
            0.0 < bench.share(0),
            "of {count}: after a hundred seconds its failure counts less than a millisecond"
        );
    }
}

#[test]
fn where_all_fail_all_share() {
    let mut bench = Bench::new(&[1; 4]);
    (0..4).for_each(|place| bench.answers(place, MILLI, true));
    bench.now += MILLI;
    (0..4).for_each(|place| assert!((0.22..0.28).contains(&bench.share(place))));
}

#[test]
fn a_member_that_is_new_gets_one_request_at_once() {
    let mut bench = Bench::new(&[1; 4]);
    (0..3).for_each(|place| bench.answers(place, MILLI, false));
    bench.now += MILLI;
    assert_eq!(bench.share(3), 1.0);
    bench.members[3].load.in_flight.store(1, Relaxed);
    assert_eq!(bench.share(3), 0.0, "the next waits for what becomes of the first");
}

#[test]
fn under_load_members_share_by_weight() {
    let bench = Bench::new(&[1, 2, 5]);
    (0..3).for_each(|place| bench.answers(place, MILLI, false));
    let all: Usable = (0..3).collect();
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..800 {
        let picked = bench.strategy.pick(&Choice { now: bench.now + MILLI, ..choice(&all, random.u64(..)) });
        bench.members[picked.expect("usable")].load.in_flight.fetch_add(1, Relaxed);
    }
    let loads: Vec<_> = bench.members.iter().map(|member| member.load.in_flight.load(Relaxed)).collect();
    assert!((80..=120).contains(&loads[0]) && (170..=230).contains(&loads[1]), "{loads:?}");
}

#[test]
fn retry_after_is_honoured_while_others_can_take_the_requests() {
    let mut bench = Bench::new(&[1; 4]);
    (0..4).for_each(|place| bench.answers(place, MILLI, false));
    let heard = |status: StatusCode, after: &str, place: usize| {
        let response = http::Response::builder().status(status).header("retry-after", after).body(());
        let (mut head, ()) = response.expect("an answer").into_parts();
        bench.members[place].load.heard(&mut head, bench.now);
    };
    heard(StatusCode::SERVICE_UNAVAILABLE, "30", 0);
    heard(StatusCode::OK, "30", 1);
    heard(StatusCode::SERVICE_UNAVAILABLE, "soon", 2);
    heard(StatusCode::TOO_MANY_REQUESTS, "30", 3);
    let mut shares = |after| {
        bench.now += after;
        (0..4).for_each(|place| bench.answers(place, MILLI, false));
        bench.now += MILLI;
        [0, 1, 2, 3].map(|place| 0.2 < bench.share(place))
    };
    assert_eq!(shares(29 * SECOND), [false, true, true, true]);
    assert_eq!(shares(2 * SECOND), [true; 4]);
    let only: Usable = [0].into_iter().collect();
    let picked = bench.strategy.pick(&choice(&only, 1));
    assert_eq!(picked, Some(0), "better late than never");
}

#[test]
fn retry_after_is_honoured_for_so_long_at_most() {
    let bench = Bench::new(&[1; 2]);
    let response = http::Response::builder().status(503).header("retry-after", "86400").body(());
    let (mut head, ()) = response.expect("an answer").into_parts();
    bench.members[0].load.heard(&mut head, bench.now);
    let alone = |seconds: u32| bench.members[0].load.is_to_be_left_alone(nanos(bench.now + seconds * SECOND));
    assert!(alone(299) && !alone(301));
}
