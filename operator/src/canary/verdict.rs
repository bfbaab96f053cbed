//! Whether a new version is worse than the old one by more than a margin. Pure.
//!
//! A margin alone would judge by chance: of 100 requests of a version that fails once in a hundred, three failures are
//! no rarity. So the new version is worse when even the favourable end of a confidence interval lies beyond the
//! margin. For error rates that is the interval of the difference of two proportions by Newcombe ("Interval estimation
//! for the difference between independent proportions", 1998, method 10), which holds for small samples and rare
//! failures, where the usual one does not. For latencies it is the interval of a percentile by the ranks of the sample
//! (Conover, "Practical Nonparametric Statistics", 1999, §3.2), which holds for any distribution.

use std::time::Duration;

use outrigger_policy::effective::CanaryAnalysis;
use outrigger_policy::sample::Sample;

/// The quantile of the normal distribution for 99.5 %, one-sided.
const Z: f64 = 2.576;
/// Latencies that differ by less are never worse, whatever the ratio.
const SMALLEST: Duration = Duration::from_millis(1);
/// With fewer latencies nothing is said of a percentile.
const FEWEST: u64 = 20;

/// What is said of a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is not enough to say anything: of what there is to be more.
    Waiting(String),
    /// It is not known to be worse.
    NotWorse,
    /// It is, and how.
    Worse(String),
}

/// What an old version is remembered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Requests.
    pub(super) requests: u64,
    /// Of those, the failures.
    pub(super) failures: u64,
    /// The upper end of the interval of its latency, if it is known.
    pub(super) latency: Option<Duration>,
}

impl Reference {
    /// What a sample of the old version says.
    pub(super) fn of(sample: &Sample, percentile: u32) -> Self {
        let Sample { requests, failures, .. } = *sample;
        Self { requests, failures, latency: percentile_at(sample, percentile, Z) }
    }
}

/// Judges the new version, whose share is this, by what it answered.
pub(super) fn judge(rules: &CanaryAnalysis, weight: u32, old: &Reference, new: &Sample) -> Verdict {
    let missing = |have: u64, of: &str| {
        let least = rules.minimum_requests;
        (have < least).then(|| Verdict::Waiting(format!("{of} ({have} of {least} requests so far)")))
    };
    if let Some(waiting) = missing(old.requests, "the old version") {
        return waiting;
    }
    if weight == 0 {
        return Verdict::NotWorse; // it was sent nothing
    }
    if let Some(waiting) = missing(new.requests, "the new version") {
        return waiting;
    }
    match error_rate(rules, old, new).or_else(|| latency(rules, old, new)) {
        Some(why) => Verdict::Worse(why),
        None => Verdict::NotWorse,
    }
}

fn error_rate(rules: &CanaryAnalysis, old: &Reference, new: &Sample) -> Option<String> {
    let margin = f64::from(rules.max_error_rate_margin) / 100.0;
    let least = least_difference((new.failures, new.requests), (old.failures, old.requests));
    (margin < least).then(|| {
        let old_rate = old.failures as f64 / old.requests.max(1) as f64;
        format!(
            "its error rate is {:.2} % of {} requests, the old version's {:.2} % of {}: worse by more than the {} \
             percentage points allowed (maxErrorRateMargin)",
            new.error_rate() * 100.0,
            new.requests,
            old_rate * 100.0,
            old.requests,
            rules.max_error_rate_margin,
        )
    })
}

fn latency(rules: &CanaryAnalysis, old: &Reference, new: &Sample) -> Option<String> {
    let least = percentile_at(new, rules.latency_percentile, -Z)?;
    let old = old.latency?;
    let allowed = old.mul_f64(1.0 + f64::from(rules.max_latency_margin) / 100.0).max(old + SMALLEST);
    (allowed < least).then(|| {
        let millis = |latency: Duration| latency.as_secs_f64() * 1000.0;
        format!(
            "{} % of its answers take at least {:.1} ms, of the old version's at most {:.1} ms: longer by more than \
             the {} % allowed (maxLatencyMargin, latencyPercentile)",
            100 - rules.latency_percentile,
            millis(least),
            millis(old),
            rules.max_latency_margin,
        )
    })
}

/// The lower end of the interval of the difference of two proportions.
fn least_difference(new: (u64, u64), old: (u64, u64)) -> f64 {
    let [p_new, p_old] = [new, old].map(|(failures, requests)| failures as f64 / requests.max(1) as f64);
    let (low, _) = wilson(new);
    let (_, high) = wilson(old);
    p_new - p_old - ((p_new - low).powi(2) + (high - p_old).powi(2)).sqrt()
}

/// Wilson's interval of a proportion.
fn wilson((failures, requests): (u64, u64)) -> (f64, f64) {
    let n = requests.max(1) as f64;
    let p = failures as f64 / n;
    let square = Z * Z;
    let centre = (p + square / (2.0 * n)) / (1.0 + square / n);
    let half = Z / (1.0 + square / n) * (p * (1.0 - p) / n + square / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// A percentile of the latencies, moved by so many standard deviations of its rank.
fn percentile_at(sample: &Sample, percentile: u32, deviations: f64) -> Option<Duration> {
    let latencies = sample.latencies();
    if latencies < FEWEST {
        return None;
    }
    let (n, q) = (latencies as f64, f64::from(percentile) / 100.0);
    let rank = n * q + deviations * (n * q * (1.0 - q)).sqrt();
    sample.of_rank(rank.ceil().clamp(1.0, n))
}

#[cfg(test)]
mod tests {
    use outrigger_policy::sample::bucket;

    use super::*;

    const RULES: CanaryAnalysis = CanaryAnalysis {
        max_error_rate_margin: 1,
        max_latency_margin: 25,
        latency_percentile: 95,
        minimum_requests: 100,
        interval: Duration::from_secs(10),
    };

    /// So many requests, each failing and each as slow as chance has it.
    fn sample(random: &mut fastrand::Rng, requests: u64, error_rate: f64, millis: f64) -> Sample {
        let mut sample = Sample { requests, ..Sample::default() };
        for _ in 0..requests {
            if random.f64() < error_rate {
                sample.failures += 1;
            } else {
                let latency = Duration::from_secs_f64(millis / 1000.0 * -random.f64().max(1e-9).ln());
                *sample.latency.entry(bucket(latency) as u16).or_default() += 1;
            }
        }
        sample
    }

    /// How many of 1000 canaries of these versions are switched back at a look after `requests` of the new one.
    fn switched_back(requests: u64, old: (f64, f64), new: (f64, f64)) -> usize {
        let mut random = fastrand::Rng::with_seed(7);
        let judged = (0..1000).filter(|_| {
            let old = sample(&mut random, requests * 9, old.0, old.1);
            let new = sample(&mut random, requests, new.0, new.1);
            let verdict = judge(&RULES, 10, &Reference::of(&old, RULES.latency_percentile), &new);
            matches!(verdict, Verdict::Worse(_))
        });
        judged.count()
    }

    #[test]
    fn an_equal_version_is_hardly_ever_switched_back() {
        for rate in [0.0, 0.001, 0.01, 0.05, 0.3] {
            assert!(switched_back(100, (rate, 20.0), (rate, 20.0)) <= 5, "{rate}");
        }
    }

    #[test]
    fn a_version_at_the_margin_is_switched_back_as_rarely_as_is_said() {
        assert!(switched_back(500, (0.01, 20.0), (0.02, 20.0)) <= 12);
        assert!(switched_back(500, (0.0, 20.0), (0.0, 25.0)) <= 12);
    }

    #[test]
    fn a_version_that_is_clearly_worse_is_switched_back() {
        assert!(450 < switched_back(100, (0.0, 20.0), (0.05, 20.0)), "often at the first look");
        assert!(995 < switched_back(500, (0.0, 20.0), (0.05, 20.0)), "and soon after always");
        assert!(995 < switched_back(200, (0.01, 20.0), (0.2, 20.0)));
        assert!(995 < switched_back(500, (0.0, 20.0), (0.0, 60.0)));
    }

    #[test]
    fn a_better_version_is_never_worse() {
        assert_eq!(switched_back(200, (0.05, 60.0), (0.0, 20.0)), 0);
    }

    #[test]
    fn little_latencies_do_not_count_by_their_ratio() {
        assert_eq!(switched_back(1000, (0.0, 0.1), (0.0, 0.3)), 0);
    }

    #[test]
    fn nothing_is_said_before_there_is_enough() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut enough = |requests| sample(&mut random, requests, 1.0, 1.0);
        let (many, few) = (enough(100), enough(99));
        let old = |sample| Reference::of(sample, 95);
        let waiting = Verdict::Waiting("the new version (99 of 100 requests so far)".to_owned());
        assert_eq!(judge(&RULES, 10, &old(&many), &few), waiting);
        assert!(matches!(judge(&RULES, 10, &old(&few), &many), Verdict::Waiting(_)));
        assert_eq!(judge(&RULES, 0, &old(&many), &few), Verdict::NotWorse, "it was sent nothing");
    }

    #[test]
    fn the_interval_is_newcombes() {
        // his example (a): 56 of 70 and 48 of 80, 95 %: 0.0524 to 0.3339
        let scale = Z / 1.959_964;
        let difference = least_difference((56, 70), (48, 80));
        assert!(difference < 0.0524 && 0.2 - scale * (0.2 - 0.0524) - 0.01 < difference, "{difference}");
        assert!((wilson((0, 10)).0).abs() < 1e-12 && wilson((0, 10)).1 < 0.4);
    }
}
