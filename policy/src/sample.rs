//! What a version answered: counts, and a histogram of latencies that merges.
//!
//! The histogram has eight buckets for each doubling, so a bucket's middle is within 4.5 % of everything in it (as in
//! DDSketch: Masson, Rim, Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch", 2019). Only buckets that are not
//! empty cross the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets of a histogram: from 64 µs to more than two minutes; the first and the last take what lies beyond.
pub const BUCKETS: usize = 168;
/// The upper bound of the first bucket, in nanoseconds.
const FIRST: f64 = 64_000.0;
const PER_DOUBLING: f64 = 8.0;

/// What a version answered in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Requests that were answered or failed.
    pub requests: u64,
    /// Of those, the failures.
    pub failures: u64,
    /// Requests by the bucket of their latency; on the wire a list of pairs, for JSON knows no numbers as keys.
    #[serde(default, with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub latency: BTreeMap<u16, u64>,
}

mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<u16, u64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u16, u64>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

/// The bucket of a latency.
pub fn bucket(latency: Duration) -> usize {
    let ratio = latency.as_nanos() as f64 / FIRST;
    if ratio <= 1.0 {
        return 0;
    }
    ((ratio.log2() * PER_DOUBLING).ceil() as usize).min(BUCKETS - 1)
}

/// The middle of a bucket, in the sense of ratios.
pub fn middle(bucket: usize) -> Duration {
    let nanos = FIRST * ((bucket as f64 - 0.5) / PER_DOUBLING).exp2();
    Duration::from_nanos(nanos as u64)
}

impl Sample {
    /// Adds what was answered elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures.min(other.requests));
        for (bucket, count) in other.latency.iter().take(BUCKETS) {
            let place = usize::from(*bucket).min(BUCKETS - 1) as u16;
            let known = self.latency.entry(place).or_default();
            *known = known.saturating_add(*count);
        }
    }

    /// The failures' share; 0 without requests.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failures as f64 / self.requests as f64 }
    }

    /// How many latencies there are.
    pub fn latencies(&self) -> u64 {
        self.latency.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The latency of this rank among all, counted from 1 and held between the first and the last; `None` without any.
    pub fn of_rank(&self, rank: f64) -> Option<Duration> {
        let mut seen = 0_u64;
        for (bucket, count) in &self.latency {
            seen = seen.saturating_add(*count);
            if rank <= seen as f64 {
                return Some(middle(usize::from(*bucket)));
            }
        }
        self.latency.keys().next_back().map(|bucket| middle(usize::from(*bucket)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(millis: &[u64]) -> Sample {
        let mut sample = Sample { requests: millis.len() as u64, ..Sample::default() };
        for millis in millis {
            *sample.latency.entry(bucket(Duration::from_millis(*millis)) as u16).or_default() += 1;
        }
        sample
    }

    #[test]
    fn ranks_are_found() {
        let mut one = sample(&(1..=100).collect::<Vec<_>>());
        one.add(&sample(&[1000; 100]));
        assert_eq!((one.requests, one.latencies()), (200, 200));
        for (rank, expected) in [(0.3, 1.0), (50.0, 50.0), (100.0, 100.0), (101.0, 1000.0), (999.0, 1000.0)] {
            let found = one.of_rank(rank).expect("there are some").as_secs_f64() * 1000.0;
            assert!((found / expected - 1.0).abs() < 0.06, "{rank}: {found}");
        }
        assert_eq!(Sample::default().of_rank(1.0), None);
    }

    #[test]
    fn a_sample_from_elsewhere_cannot_break_the_sum() {
        let mut sum = Sample::default();
        let wild = Sample { requests: 5, failures: u64::MAX, latency: [(u16::MAX, u64::MAX)].into() };
        sum.add(&wild);
        sum.add(&wild);
        assert_eq!((sum.requests, sum.failures, sum.error_rate()), (10, 10, 1.0));
        assert!(sum.of_rank(1.0).is_some());
    }

    proptest! {
        #[test]
        fn a_buckets_middle_is_near_everything_in_it(nanos in 64_001_u64..100_000_000_000) {
            let latency = Duration::from_nanos(nanos);
            let found = middle(bucket(latency)).as_secs_f64() / latency.as_secs_f64();
            prop_assert!((found - 1.0).abs() < 0.046, "{found}");
        }

        #[test]
        fn buckets_are_in_order(a in 0_u64..u64::MAX / 2, b in 0_u64..u64::MAX / 2) {
            let [a, b] = [a.min(b), a.max(b)].map(|nanos| bucket(Duration::from_nanos(nanos)));
            prop_assert!(a <= b && b < BUCKETS);
        }
    }
}
