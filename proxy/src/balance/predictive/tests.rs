use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::balance::laws::{members, predictive, share_of};
use crate::balance::measure::{Ended, How, Measure};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    members: Vec<Member>,
    strategy: Predictive,
    now: Instant,
}

impl Bench {
    fn new(count: usize) -> Self {
        let members = members(&vec![1; count]);
        let measure = Arc::new(Measure { forecast: Some(predictive()), ..Measure::default() });
        members.iter().for_each(|member| member.load.configure(&measure));
        let strategy = Predictive::new(Weights::new(&members, None), predictive(), &members);
        Self { members, strategy, now: Instant::now() }
    }

    /// Lets every member answer each tenth of a second for so long, with the response times that `took` says.
    fn run(&mut self, lasting: Duration, took: impl Fn(usize, Duration) -> Duration) {
        let start = self.now;
        while self.now < start + lasting {
            for (place, member) in self.members.iter().enumerate() {
                let took = took(place, self.now - start);
                member.load.ended(Ended { sent: self.now, now: self.now + took, how: How::Answered });
            }
            self.now += 100 * MILLI;
        }
    }

    fn ahead(&self, place: usize) -> f32 {
        self.members[place].load.forecast.ahead(nanos(self.now), &predictive()).expect("known").response_time
    }

    fn share(&self, place: usize) -> f64 {
        share_of(&self.strategy, &self.members, place, self.now)
    }
}

#[test]
fn a_straight_line_is_carried_on() {
    let mut bench = Bench::new(1);
    bench.run(30 * SECOND, |_, at| 10 * MILLI + at / 1000); // a millisecond more each second
    let in_five_seconds = 0.010 + 0.035;
    assert!((bench.ahead(0) - in_five_seconds).abs() < 0.002, "{}", bench.ahead(0));
    let (level, trend) = bench.members[0].load.forecast.line();
    assert!((level - 0.040).abs() < 0.001 && (trend - 0.001).abs() < 0.0001, "{level} {trend}");
}

#[test]
fn a_constant_is_forecast_as_itself() {
    let mut bench = Bench::new(1);
    bench.run(20 * SECOND, |_, _| 10 * MILLI);
    assert!((bench.ahead(0) - 0.010).abs() < 1e-4, "{}", bench.ahead(0));
}

#[test]
fn a_member_that_slows_down_loses_requests_before_it_is_slow() {
    let mut bench = Bench::new(4);
    let degrades = |place: usize, at: Duration| {
        if place == 2 { 10 * MILLI + at / 500 } else { 10 * MILLI } // two milliseconds more each second
    };
    bench.run(4 * SECOND, degrades);
    let now_takes = 10 * MILLI + 4 * SECOND / 500;
    assert!(now_takes < 20 * MILLI, "it is not twice as slow yet");
    assert_eq!(bench.share(2), 0.0);
    assert!((0.3..0.37).contains(&bench.share(0)));
}

#[test]
fn one_that_recovers_is_trusted_again() {
    let mut bench = Bench::new(4);
    bench.run(10 * SECOND, |place, _| if place == 2 { 100 * MILLI } else { 10 * MILLI });
    assert_eq!(bench.share(2), 0.0);
    bench.run(10 * SECOND, |_, _| 10 * MILLI);
    assert!((0.2..0.3).contains(&bench.share(2)), "{}", bench.share(2));
}

#[test]
fn one_that_gets_nothing_is_tried_again() {
    let mut bench = Bench::new(2);
    bench.run(10 * SECOND, |place, _| if place == 0 { 100 * MILLI } else { 10 * MILLI });
    let slow = bench.members.remove(0);
    bench.run(60 * SECOND, |_, _| 10 * MILLI);
    bench.members.insert(0, slow);
    assert_eq!(bench.share(0), 1.0, "a minute later it is not known any more");
}

#[test]
fn failures_count_as_slowness() {
    let mut bench = Bench::new(4);
    for _ in 0..50 {
        for (place, member) in bench.members.iter().enumerate() {
            member.load.ended(Ended {
                sent: bench.now,
                now: bench.now + MILLI,
                how: if place == 3 { How::Failed } else { How::Answered },
            });
        }
        bench.now += 100 * MILLI;
    }
    assert_eq!(bench.share(3), 0.0);
}

#[test]
fn a_load_that_grows_counts_as_grown() {
    let mut bench = Bench::new(2);
    for step in 0..100 {
        for (place, member) in bench.members.iter().enumerate() {
            let in_flight = if place == 0 { step / 5 } else { 10 };
            member.load.in_flight.store(in_flight, std::sync::atomic::Ordering::Relaxed);
            member.load.ended(Ended { sent: bench.now, now: bench.now + MILLI, how: How::Answered });
        }
        bench.now += 100 * MILLI;
    }
    let growth = |place: usize| {
        bench.members[place].load.forecast.ahead(nanos(bench.now), &predictive()).expect("known").load_growth
    };
    assert!((0.3..0.8).contains(&growth(0)), "{}", growth(0));
    assert!(growth(1) < 0.05, "{}", growth(1));
}
