use std::time::{Duration, Instant};

use super::*;
use crate::balance::laws::{backend_utilization, members, share_of};
use crate::balance::measure::{Ended, How, Measure};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    members: Vec<Member>,
    strategy: BackendUtilization,
    now: Instant,
}

impl Bench {
    fn new(count: usize, settings: effective::BackendUtilization) -> Self {
        let members = members(&vec![1; count]);
        let measure = Arc::new(Measure { utilization: Some(settings.clone()), ..Measure::default() });
        members.iter().for_each(|member| member.load.configure(&measure));
        let strategy = BackendUtilization::new(Weights::new(&members, None), &settings, &members);
        Self { members, strategy, now: Instant::now() }
    }

    /// Each member answers twenty times a second and reports what `report` says, if it says something.
    fn run(&mut self, seconds: u32, report: impl Fn(usize) -> Option<String>, fails: impl Fn(usize) -> bool) {
        for _ in 0..seconds * 20 {
            for (place, member) in self.members.iter().enumerate() {
                let mut answer = http::Response::builder();
                if let Some(report) = report(place) {
                    answer = answer.header("endpoint-load-metrics", report);
                }
                let (mut head, ()) = answer.body(()).expect("an answer").into_parts();
                member.load.heard(&mut head, self.now);
                assert!(head.headers.is_empty(), "the report is for the proxy alone");
                let how = if fails(place) { How::Failed } else { How::Answered };
                member.load.ended(Ended { sent: self.now, now: self.now, how });
            }
            self.now += SECOND / 20;
        }
    }

    fn shares(&self) -> Vec<f64> {
        (0..self.members.len())
            .map(|place| share_of(&self.strategy, &self.members, place, self.now))
            .collect()
    }
}

fn cpu(utilization: impl Fn(usize) -> f64) -> impl Fn(usize) -> Option<String> {
    move |place| Some(format!("TEXT cpu={}", utilization(place)))
}

#[test]
fn a_member_that_is_fuller_at_the_same_rate_gets_less() {
    let mut bench = Bench::new(4, backend_utilization());
    bench.run(20, cpu(|place| if place == 0 { 0.9 } else { 0.09 }), |_| false);
    assert_eq!(bench.shares()[0], 0.0, "{:?}", bench.shares());
    for place in 1..4 {
        bench.members[place].load.in_flight.store(20, Relaxed);
    }
    assert_eq!(bench.shares()[0], 1.0, "twenty in flight at members of ten times the capacity");
}

#[test]
fn reports_count_after_the_blackout_and_until_they_expire() {
    let mut bench = Bench::new(4, backend_utilization());
    let even = |shares: Vec<f64>| shares.iter().all(|share| (0.22..0.28).contains(share));
    let report = cpu(|place| if place == 0 { 0.9 } else { 0.09 });
    bench.run(9, &report, |_| false);
    assert!(even(bench.shares()), "nine seconds are not enough: {:?}", bench.shares());
    bench.run(3, &report, |_| false);
    assert_eq!(bench.shares()[0], 0.0);
    bench.run(20, |_| None, |_| false);
    assert_eq!(bench.shares()[0], 0.0, "the last report still counts");
    bench.run(60, |_| None, |_| false);
    assert!(even(bench.shares()), "it counts less and less: {:?}", bench.shares());
    bench.run(110, |_| None, |_| false);
    let known =
        |member: &Member| member.load.utilization.last_capacity(nanos(bench.now), &bench.strategy.settings);
    assert!(bench.members.iter().all(|member| known(member).is_none()), "nobody is known any more");
    bench.run(5, &report, |_| false);
    assert!(even(bench.shares()), "another blackout: {:?}", bench.shares());
}

#[test]
fn a_member_that_reports_nothing_counts_as_the_mean() {
    let mut bench = Bench::new(4, backend_utilization());
    bench.run(20, |place| (place != 3).then(|| String::from("TEXT cpu=0.3")), |_| false);
    assert!(bench.shares().iter().all(|share| (0.22..0.28).contains(share)), "{:?}", bench.shares());
}

#[test]
fn failures_are_no_capacity_and_add_to_the_utilization() {
    let shares = |error_penalty_percent: u32, one_in: u32| {
        let settings = effective::BackendUtilization { error_penalty_percent, ..backend_utilization() };
        let mut bench = Bench::new(4, settings);
        let requests = std::cell::Cell::new(0);
        let fails = |place| {
            requests.set(requests.get() + u32::from(place == 2));
            place == 2 && requests.get().is_multiple_of(one_in)
        };
        bench.run(20, cpu(|_| 0.1), fails);
        bench.shares()[2]
    };
    assert_eq!(shares(0, 1), 0.0, "who answers nothing well can take nothing");
    assert!(0.2 < shares(0, 5), "four fifths of the others' capacity are as good");
    assert_eq!(shares(100, 5), 0.0, "with the penalty it is three times as full");
}

#[test]
fn failures_count_without_a_report() {
    let shares = |reports: fn(usize) -> bool, seconds: u32| {
        let mut bench = Bench::new(4, backend_utilization());
        let requests = std::cell::Cell::new(0);
        let report = |place: usize| reports(place).then(|| String::from("TEXT cpu=0.3"));
        let fails = |place| {
            requests.set(requests.get() + u32::from(place == 2));
            place == 2 && requests.get().is_multiple_of(3)
        };
        bench.run(20, report, |_| false);
        bench.run(seconds, |place| report(place).filter(|_| place != 2), fails);
        bench.shares()[2]
    };
    assert!(0.2 < shares(|_| true, 0), "they are equal as long as nobody fails");
    assert_eq!(shares(|_| true, 5), 0.0, "it reported before");
    assert_eq!(shares(|place| place != 2, 5), 0.0, "it never reported");
    assert_eq!(shares(|_| false, 5), 0.0, "nobody does");
}

#[test]
fn an_answer_that_breaks_off_is_one_request() {
    let bench = Bench::new(1, backend_utilization());
    let load = &bench.members[0].load;
    let mut now = bench.now;
    for step in 0..400 {
        let (mut head, ()) = http::Response::builder()
            .header("endpoint-load-metrics", "TEXT cpu=0.5")
            .body(())
            .expect("an answer")
            .into_parts();
        load.heard(&mut head, now);
        load.ended(Ended { sent: now, now, how: How::Answered });
        if step % 2 == 0 {
            load.ended(Ended { sent: now, now, how: How::FailedAfterHead });
        }
        now += SECOND / 20;
    }
    let capacity = load.utilization.last_capacity(nanos(now), &backend_utilization()).expect("known");
    assert!((9.0..11.0).contains(&capacity), "half of twenty a second, at 0.5 + 0.5: {capacity}");
}

#[test]
fn the_highest_of_the_named_metrics_counts() {
    let metrics = ["cpu_utilization", "named_metrics.event_loop"].map(String::from).to_vec();
    let mut bench = Bench::new(4, effective::BackendUtilization { metrics, ..backend_utilization() });
    let lags = |place: usize| if place == 1 { 0.95 } else { 0.1 };
    let report = |place| {
        Some(format!(
            r#"JSON {{"cpu_utilization": 0.2, "named_metrics": {{"event_loop": {}}}}}"#,
            lags(place)
        ))
    };
    bench.run(20, report, |_| false);
    assert_eq!(bench.shares()[1], 0.0, "{:?}", bench.shares());
}

#[test]
fn garbage_changes_nothing_and_is_counted() {
    let mut bench = Bench::new(2, backend_utilization());
    bench.run(15, cpu(|_| 0.3), |_| false);
    let before = bench.members[0].load.utilization.last();
    bench.run(1, |_| Some(String::from("JSON {\"cpu_utilization\": ")), |_| false);
    assert_eq!(bench.members[0].load.utilization.ignored(), 20);
    assert_eq!((before, bench.members[0].load.utilization.last()), (Some(0.3), Some(0.3)));
}

#[test]
fn clients_may_get_the_report_too() {
    let bench =
        Bench::new(1, effective::BackendUtilization { keep_response_headers: true, ..backend_utilization() });
    let answer = http::Response::builder().header("endpoint-load-metrics", "TEXT cpu=0.5").body(());
    let (mut head, ()) = answer.expect("an answer").into_parts();
    bench.members[0].load.heard(&mut head, Instant::now());
    assert!(head.headers.contains_key("endpoint-load-metrics"));
    assert_eq!(bench.members[0].load.utilization.last(), Some(0.5));
}
