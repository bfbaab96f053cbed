//! How well a worker does, from 0 to 100, whether that gets better or worse, and why, in words.
//!
//! Every second a sample of each worker is taken: counts that only grow. What happened in a window is the difference of
//! two samples. Errors, answers that are slow beside the siblings', failed checks and reported load each take points
//! away; nothing else does, so a worker without traffic keeps its 100. The score decides nothing by itself: it is for
//! people and dashboards.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What the score is of.
pub const WINDOW: Duration = Duration::from_secs(30);
/// A trend is the difference between scores so far apart.
const TREND: Duration = Duration::from_secs(20);
/// A smaller difference is none.
const STEADY: i32 = 5;
/// With fewer answers in the window nothing is said of latency.
const ENOUGH: u64 = 20;

/// What is counted of a worker since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests that ended with an outcome.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Requests that were answered.
    pub answers: u64,
    /// Time to the heads of those answers, summed.
    pub latency: Duration,
    /// Active checks.
    pub checks: u64,
    /// Those of them that failed.
    pub failed_checks: u64,
    /// Whether the active checks say that it is healthy.
    pub healthy: bool,
    /// The utilization it reports of itself, where it does; 1 is all it can do.
    pub load: Option<f64>,
}

/// Whether a worker gets better or worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trend {
    /// Better.
    Improving,
    /// Neither.
    Steady,
    /// Worse.
    Degrading,
}

/// How well a worker does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// From 0 to 100.
    pub score: u8,
    /// Against the score of twenty seconds before.
    pub trend: Trend,
    /// What takes points away, the most first.
    pub reasons: Vec<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { score: 100, trend: Trend::Steady, reasons: Vec::new() }
    }
}

/// The samples of one worker over the window.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<(Instant, Sample)>,
    scores: VecDeque<(Instant, u8)>,
}

/// What happened in a window.
#[derive(Clone, Copy, Debug)]
struct Happened {
    requests: u64,
    failures: u64,
    /// The mean, where there were enough answers.
    latency: Option<f64>,
    checks: u64,
    failed_checks: u64,
}

/// Takes one sample of each worker and says how each does. `histories` and `samples` are in the same order.
pub fn assess(histories: &mut [History], samples: &[Sample], now: Instant) -> Vec<Health> {
    let happened: Vec<_> =
        histories.iter_mut().zip(samples).map(|(history, sample)| history.take(*sample, now)).collect();
    let mut means: Vec<_> = happened.iter().filter_map(|happened| happened.latency).collect();
    means.sort_by(f64::total_cmp);
    let assessed = histories.iter_mut().zip(samples).zip(&happened).map(|((history, sample), happened)| {
        let (score, reasons) = judge(happened, sample, median_beside(&means, happened.latency));
        Health { score, trend: history.trend(score, now), reasons }
    });
    assessed.collect()
}

impl History {
    fn take(&mut self, sample: Sample, now: Instant) -> Happened {
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
        let (_, first) = self.samples.front().copied().unwrap_or((now, sample));
        self.samples.push_back((now, sample));
        let requests = sample.requests - first.requests;
        let answers = sample.answers - first.answers;
        let latency = (sample.latency.saturating_sub(first.latency)).as_secs_f64() * 1e3;
        Happened {
            requests,
            failures: sample.failures.saturating_sub(first.failures).min(requests),
            latency: (ENOUGH <= answers).then(|| latency / answers as f64),
            checks: sample.checks - first.checks,
            failed_checks: sample.failed_checks - first.failed_checks,
        }
    }

    fn trend(&mut self, score: u8, now: Instant) -> Trend {
        while self.scores.get(1).is_some_and(|(at, _)| *at + TREND <= now) {
            self.scores.pop_front();
        }
        let before = self.scores.front().map_or(score, |(_, score)| *score);
        self.scores.push_back((now, score));
        let difference = i32::from(score) - i32::from(before);
        if difference.abs() < STEADY {
            Trend::Steady
        } else if difference < 0 {
            Trend::Degrading
        } else {
            Trend::Improving
        }
    }
}

/// The median of sorted means without a worker's own, where it has one.
fn median_beside(means: &[f64], own: Option<f64>) -> Option<f64> {
    let own = own.map_or(means.len(), |own| means.partition_point(|mean| mean.total_cmp(&own).is_lt()));
    let others = means.len() - usize::from(own < means.len());
    let other = |place: usize| means.get(place + usize::from(own <= place)).copied();
    Some((other(others.checked_sub(1)? / 2)? + other(others / 2)?) / 2.0)
}

/// The score, and what took points away.
fn judge(happened: &Happened, sample: &Sample, siblings: Option<f64>) -> (u8, Vec<String>) {
    let mut taken: Vec<(f64, String)> = Vec::new();
    if 0 < happened.failures {
        let percent = happened.failures as f64 * 100.0 / happened.requests as f64;
        let points =
            line(percent, &[(0.0, 0.0), (1.0, 5.0), (5.0, 20.0), (20.0, 50.0), (50.0, 80.0), (100.0, 100.0)]);
        taken.push((points, format!("{percent:.1} % of {} requests failed", happened.requests)));
    }
    if let (Some(own), Some(siblings)) = (happened.latency, siblings)
        && siblings + 1.0 < own
    {
        // A millisecond more is no matter, however fast the siblings are.
        let times = own / siblings.max(1.0);
        let points = line(times, &[(1.5, 0.0), (3.0, 20.0), (10.0, 50.0)]);
        let reason =
            format!("answers take {times:.1} times as long as its siblings' ({own:.1} ms, {siblings:.1} ms)");
        taken.push((points, reason));
    }
    if !sample.healthy {
        taken.push((90.0, "its health checks fail".to_owned()));
    } else if 0 < happened.failed_checks {
        let percent = happened.failed_checks as f64 * 100.0 / happened.checks as f64;
        let reason = format!("{} of {} health checks failed", happened.failed_checks, happened.checks);
        taken.push((line(percent, &[(0.0, 0.0), (10.0, 10.0), (50.0, 40.0), (100.0, 60.0)]), reason));
    }
    if let Some(load) = sample.load {
        let points = line(load, &[(0.8, 0.0), (0.95, 10.0), (1.2, 30.0)]);
        taken.push((points, format!("it reports a utilization of {:.0} %", load * 100.0)));
    }
    taken.retain(|(points, _)| 1.0 <= *points);
    taken.sort_by(|a, b| b.0.total_cmp(&a.0));
    let left = 100.0 - taken.iter().map(|(points, _)| points).sum::<f64>();
    (left.clamp(0.0, 100.0).round() as u8, taken.into_iter().map(|(_, reason)| reason).collect())
}

/// The height of a line through these points; level before the first and after the last.
fn line(x: f64, points: &[(f64, f64)]) -> f64 {
    let mut before = points[0];
    for point in points {
        if x < point.0 {
            if x <= before.0 {
                return before.1;
            }
            return before.1 + (point.1 - before.1) * (x - before.0) / (point.0 - before.0);
        }
        before = *point;
    }
    before.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Sample = Sample {
        requests: 0,
        failures: 0,
        answers: 0,
        latency: Duration::ZERO,
        checks: 0,
        failed_checks: 0,
        healthy: true,
        load: None,
    };

    /// What a worker does every second: requests, failures, and how many milliseconds an answer takes.
    type Second = (u64, u64, u64);

    /// The workers after so many seconds of doing this.
    fn after(seconds: &[(u64, &[Second])]) -> Vec<Health> {
        let start = Instant::now();
        let count = seconds[0].1.len();
        let mut histories: Vec<_> = (0..count).map(|_| History::default()).collect();
        let mut samples = vec![GOOD; count];
        let mut found = assess(&mut histories, &samples, start);
        let mut second = 0;
        for (lasting, doing) in seconds {
            for _ in 0..*lasting {
                second += 1;
                for (sample, (requests, failures, millis)) in samples.iter_mut().zip(*doing) {
                    sample.requests += requests;
                    sample.failures += failures;
                    sample.answers += requests;
                    sample.latency += Duration::from_millis(requests * millis);
                }
                found = assess(&mut histories, &samples, start + Duration::from_secs(second));
            }
        }
        found
    }

    #[test]
    fn what_does_well_and_what_does_nothing_has_a_hundred() {
        assert_eq!(after(&[(60, &[(100, 0, 5), (0, 0, 0), (90, 0, 7)])]), vec![Health::default(); 3]);
    }

    #[test]
    fn errors_take_points_and_are_named() {
        let found = after(&[(40, &[(100, 5, 5), (100, 0, 5)])]);
        assert_eq!((found[0].score, found[0].trend), (80, Trend::Steady));
        assert_eq!(found[0].reasons, ["5.0 % of 3000 requests failed"]);
        assert_eq!(found[1].score, 100);
        assert_eq!(after(&[(40, &[(100, 100, 5)])])[0].score, 0);
    }

    #[test]
    fn slow_answers_take_points_beside_faster_siblings_only() {
        let found = after(&[(40, &[(100, 0, 30), (100, 0, 10), (100, 0, 10)])]);
        assert_eq!(found[0].score, 80);
        assert_eq!(found[0].reasons, ["answers take 3.0 times as long as its siblings' (30.0 ms, 10.0 ms)"]);
        assert_eq!([found[1].score, found[2].score], [100, 100]);
        assert_eq!(
            after(&[(40, &[(100, 0, 300), (100, 0, 290)])])[0].score,
            100,
            "all are slow: it is the work"
        );
    }

    #[test]
    fn the_trend_follows_the_score() {
        let worse = after(&[(30, &[(100, 0, 5)]), (10, &[(100, 20, 5)])]);
        assert_eq!(worse[0].trend, Trend::Degrading);
        let better = after(&[(40, &[(100, 20, 5)]), (20, &[(100, 0, 5)])]);
        assert_eq!(better[0].trend, Trend::Improving, "{better:?}");
        assert_eq!(after(&[(40, &[(100, 20, 5)])])[0].trend, Trend::Steady);
        assert_eq!(after(&[(40, &[(100, 20, 5)]), (60, &[(100, 0, 5)])]), [Health::default()]);
    }

    #[test]
    fn checks_and_reported_load_count() {
        let start = Instant::now();
        let mut histories = [History::default()];
        assess(&mut histories, &[GOOD], start);
        let later = start + Duration::from_secs(10);
        let failing = Sample { checks: 10, failed_checks: 5, load: Some(0.95), ..GOOD };
        let found = assess(&mut histories, &[failing], later);
        assert_eq!(found[0].score, 50);
        assert_eq!(found[0].reasons, ["5 of 10 health checks failed", "it reports a utilization of 95 %"]);
        let found = assess(&mut histories, &[Sample { healthy: false, ..failing }], later);
        assert_eq!((found[0].score, found[0].reasons[0].as_str()), (0, "its health checks fail"));
    }

    #[test]
    fn the_median_leaves_the_worker_itself_out() {
        let means = [1.0, 2.0, 2.0, 5.0, 9.0];
        for (own, median) in
            [(None, 2.0), (Some(1.0), 3.5), (Some(2.0), 3.5), (Some(5.0), 2.0), (Some(9.0), 2.0)]
        {
            assert_eq!(median_beside(&means, own), Some(median), "{own:?}");
        }
        assert_eq!(median_beside(&[3.0], Some(3.0)), None, "it is alone");
        assert_eq!((median_beside(&[3.0], None), median_beside(&[], None)), (Some(3.0), None));
    }

    proptest! {
        /// More failures never make a better score, and the score stays in its range.
        #[test]
        fn more_failures_are_never_better(requests in 1..500u64, fewer in 0..500u64, more in 0..500u64) {
            let (fewer, more) = (fewer.min(more).min(requests), more.max(fewer).min(requests));
            let score = |failures| after(&[(5, &[(requests, failures, 5)])])[0].score;
            prop_assert!(score(more) <= score(fewer) && score(fewer) <= 100);
        }
    }
}
