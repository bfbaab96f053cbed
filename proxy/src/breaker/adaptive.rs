//! Opens on what deviates from normal: learns the failure rate and the mean latency of one period after the other,
//! and holds the window against the mean and so many standard deviations, within floor and ceiling.
//!
//! Mean and variance are exponentially weighted (Finch, "Incremental calculation of weighted mean and variance",
//! 2009): a period weighs as much as its length is of the learning window. To the variance between periods comes
//! that of a sample as small as the window, so that a quiet hour opens nothing by chance. A period that lies above a
//! threshold teaches nothing: a failure that lasts does not become normal.

use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::rules::{Cause, Seen, Trip};
use super::window::Counts;

/// Periods after which there is a normal.
const LEARNED: u32 = 3;
/// Latencies are taken to vary by a tenth of their mean at least.
const LEAST_SPREAD: f64 = 0.1;
/// The length of a period where the window has none.
const PERIOD: Duration = Duration::from_secs(10);

pub(super) struct Adaptive {
    /// `None`: off, and nothing is learned.
    settings: Option<effective::Adaptive>,
    minimum_calls: u64,
    length: Duration,
    period: Option<(Instant, Counts)>,
    failure_rate: Normal,
    micros: Normal,
}

/// What is normal.
#[derive(Clone, Copy, Default)]
struct Normal {
    mean: f64,
    variance: f64,
    periods: u32,
}

/// What was learned, and what it makes the thresholds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Learned {
    /// The normal failure rate, in percent; `None` until something was learned.
    pub normal_failure_rate: Option<f64>,
    /// The failure rate at which it opens, in percent.
    pub failure_rate_threshold: f64,
    /// The normal mean latency, in milliseconds; `None` until something was learned.
    pub normal_latency_millis: Option<f64>,
    /// The mean latency at which it opens, in milliseconds.
    pub latency_threshold_millis: f64,
}

impl Adaptive {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        let mut rule = Self {
            settings: None,
            minimum_calls: 0,
            length: PERIOD,
            period: None,
            failure_rate: Normal::default(),
            micros: Normal::default(),
        };
        rule.reconfigure(settings);
        rule
    }

    /// What was learned, held against a window of so many calls.
    pub(super) fn learned(&self, calls: u64) -> Option<Learned> {
        let settings = self.settings.as_ref()?;
        let (rate, micros) = (self.failure_rate, self.micros);
        Some(Learned {
            normal_failure_rate: rate.is_learned().then_some(rate.mean),
            failure_rate_threshold: self.rate_threshold(settings, calls),
            normal_latency_millis: micros.is_learned().then_some(micros.mean / 1000.0),
            latency_threshold_millis: self.micros_threshold(settings) / 1000.0,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a window are far below 2^52")]
    fn rate_threshold(&self, settings: &effective::Adaptive, calls: u64) -> f64 {
        let [floor, ceiling] = settings.failure_rate.map(f64::from);
        let Normal { mean, variance, .. } = self.failure_rate;
        if !self.failure_rate.is_learned() {
            return ceiling;
        }
        let of_a_sample = mean * (100.0 - mean) / calls.max(self.minimum_calls).max(1) as f64;
        let spread = (variance + of_a_sample).sqrt();
        (mean + f64::from(settings.deviations) * spread).clamp(floor, ceiling)
    }

    fn micros_threshold(&self, settings: &effective::Adaptive) -> f64 {
        let [floor, ceiling] = settings.latency.map(|bound| bound.as_secs_f64() * 1e6);
        let Normal { mean, variance, .. } = self.micros;
        if !self.micros.is_learned() {
            return ceiling;
        }
        let spread = variance.sqrt().max(LEAST_SPREAD * mean);
        (mean + f64::from(settings.deviations) * spread).clamp(floor, ceiling)
    }

    fn learn(&mut self, settings: &effective::Adaptive, period: &Counts) {
        let (rate, micros) = (period.failure_rate(), period.mean_micros());
        let normal = period.calls >= self.minimum_calls
            && rate < self.rate_threshold(settings, period.calls)
            && micros < self.micros_threshold(settings);
        if normal {
            let weight = (self.length.as_secs_f64() / settings.learning_window.as_secs_f64()).min(1.0);
            self.failure_rate.learn(rate, weight);
            self.micros.learn(micros, weight);
        }
    }
}

impl Normal {
    fn is_learned(&self) -> bool {
        LEARNED <= self.periods
    }

    fn learn(&mut self, value: f64, weight: f64) {
        self.periods = self.periods.saturating_add(1);
        let weight = weight.max(1.0 / f64::from(self.periods)); // the first ones weigh the same
        let off = value - self.mean;
        self.mean += weight * off;
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
    }
}

impl Trip for Adaptive {
    /// What was learned stays learned, until the section is removed.
    fn reconfigure(&mut self, settings: &effective::Breaker) {
        if settings.adaptive.is_none() {
            (self.failure_rate, self.micros, self.period) = (Normal::default(), Normal::default(), None);
        }
        self.settings = settings.adaptive;
        self.minimum_calls = u64::from(settings.minimum_number_of_calls);
        self.length = match settings.window {
            effective::Window::Time(length) => length,
            effective::Window::Calls(_) => PERIOD,
        };
    }

    fn observe(&mut self, seen: &Seen, window: &Counts, now: Instant) -> Option<Cause> {
        let settings = self.settings?;
        if let Some((start, period)) = self.period
            && self.length <= now.saturating_duration_since(start)
        {
            self.learn(&settings, &period);
            self.period = None;
        }
        self.period.get_or_insert((now, Counts::default())).1.count(seen);
        if window.calls < self.minimum_calls {
            return None;
        }
        let (rate, threshold) = (window.failure_rate(), self.rate_threshold(&settings, window.calls));
        if threshold <= rate {
            let normal = self.failure_rate.in_words(|normal| format!("normal {normal:.1} %"));
            return Some(format!("failure rate {rate:.1} %, threshold {threshold:.1} %, {normal}"));
        }
        let (micros, threshold) = (window.mean_micros(), self.micros_threshold(&settings));
        if threshold <= micros {
            let normal = self.micros.in_words(|normal| format!("normal {:.1} ms", normal / 1000.0));
            let [mean, threshold] = [micros, threshold].map(|micros| micros / 1000.0);
            return Some(format!("mean latency {mean:.1} ms, threshold {threshold:.1} ms, {normal}"));
        }
        None
    }

    fn reset(&mut self) {
        self.period = None;
    }
}

impl Normal {
    fn in_words(&self, words: impl FnOnce(f64) -> String) -> String {
        if self.is_learned() { words(self.mean) } else { String::from("normal not learned yet") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::tests::settings;

    const ADAPTIVE: effective::Adaptive = effective::Adaptive {
        learning_window: Duration::from_secs(600),
        deviations: 4,
        failure_rate: [5, 50],
        latency: [Duration::from_millis(100), Duration::from_secs(10)],
    };

    fn rule() -> Adaptive {
        Adaptive::new(&effective::Breaker {
            adaptive: Some(ADAPTIVE),
            minimum_number_of_calls: 20,
            window: effective::Window::Time(Duration::from_secs(10)),
            ..settings()
        })
    }

    /// Periods of so many calls, of which the first so many fail; the last cause found.
    fn periods(rule: &mut Adaptive, each: &[(u64, u64)], latency: Duration) -> Option<Cause> {
        let mut found = None;
        for (failures, calls) in each {
            let start = rule.period.map_or_else(Instant::now, |(start, _)| start + Duration::from_secs(10));
            let mut window = Counts::default();
            for i in 0..*calls {
                let seen = Seen { failed: i < *failures, latency, ..Seen::default() };
                window.count(&seen);
                // the window as it is when the period is over, for these are about whole periods
                let whole = Counts { failures: *failures, calls: *calls, ..window };
                let window = if i + 1 == *calls { whole } else { too_few(i) };
                found = rule.observe(&seen, &window, start).or(found);
            }
        }
        found
    }

    fn too_few(calls: u64) -> Counts {
        Counts { calls: calls.min(19), ..Counts::default() }
    }

    const FAST: Duration = Duration::from_millis(50);

    #[test]
    fn the_threshold_is_explained() {
        let mut rule = rule();
        assert_eq!(
            rule.learned(1000).map(|learned| learned.failure_rate_threshold),
            Some(50.0),
            "the ceiling"
        );
        assert_eq!(periods(&mut rule, &[(18, 1000); 5], FAST), None);
        let learned = rule.learned(1000).expect("on");
        assert_eq!(learned.normal_failure_rate.map(|rate| (10.0 * rate).round()), Some(18.0));
        // The sample of 1000 calls varies by sqrt(1.8 % * 98.2 % / 1000) = 0.42 %: floor.
        assert!((learned.failure_rate_threshold - 5.0).abs() < 0.01, "{learned:?}");
        // One of 200 by 0.94 %: 1.8 % + 4 * 0.94 % = 5.6 %.
        let small = rule.learned(200).expect("on").failure_rate_threshold;
        assert!((small - 5.56).abs() < 0.05, "{small}");
        let cause = periods(&mut rule, &[(12, 200)], FAST).expect("6 % are too many");
        assert_eq!(cause, "failure rate 6.0 %, threshold 5.6 %, normal 1.8 %");
    }

    #[test]
    fn what_is_not_normal_does_not_become_normal() {
        let mut rule = rule();
        periods(&mut rule, &[(0, 100); 4], FAST);
        periods(&mut rule, &[(40, 100); 50], FAST);
        let learned = rule.learned(100).expect("on");
        assert_eq!((learned.normal_failure_rate, learned.failure_rate_threshold), (Some(0.0), 5.0));
    }

    #[test]
    fn latency_that_deviates_opens() {
        let mut rule = rule();
        assert_eq!(periods(&mut rule, &[(0, 100); 4], Duration::from_millis(200)), None);
        assert_eq!(periods(&mut rule, &[(0, 100)], Duration::from_millis(250)), None, "within four tenths");
        let cause = periods(&mut rule, &[(0, 100)], Duration::from_millis(400)).expect("twice as slow");
        assert!(cause.starts_with("mean latency 400.0 ms, threshold 29"), "{cause}");
        assert!(cause.contains("normal 21"), "{cause}");
    }

    #[test]
    fn few_calls_teach_nothing_and_open_nothing() {
        let mut rule = rule();
        assert_eq!(periods(&mut rule, &[(19, 19); 9], FAST), None);
        assert_eq!(rule.learned(19).expect("on").normal_failure_rate, None);
    }
}
