//! Opens when too large a part of the calls of the last while failed: resilience4j's time-based sliding window.
//!
//! The window is a ring of buckets, so it takes the same memory whatever the traffic. A bucket leaves it whole, as
//! old as the window is long; the window thus holds the last nine to ten tenths of its length, and never more.

use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::Trip;

const BUCKETS: usize = 10;

pub(super) struct FailureRate {
    /// In percent. `None`: never opens, and counts all the same, for the view.
    threshold: Option<u32>,
    minimum_calls: u64,
    window: Duration,
    buckets: [Option<Bucket>; BUCKETS],
    newest: usize,
}

#[derive(Clone, Copy)]
struct Bucket {
    start: Instant,
    counts: Counts,
}

/// Calls, and how many of them failed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) failures: u64,
}

impl FailureRate {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self {
            threshold: settings.failure_rate_threshold,
            minimum_calls: u64::from(settings.minimum_number_of_calls),
            window: settings.sliding_window,
            buckets: [None; BUCKETS],
            newest: 0,
        }
    }

    /// Keeps the counts. A window made shorter drops what is too old for it; one made longer fills up from here on.
    pub(super) fn reconfigure(&mut self, settings: &effective::Breaker) {
        let Self { buckets, newest, .. } = *self;
        *self = Self { buckets, newest, ..Self::new(settings) };
    }

    /// What is in the window at this time.
    pub(super) fn counts(&self, now: Instant) -> Counts {
        let recent = |bucket: &&Bucket| now.saturating_duration_since(bucket.start) < self.window;
        self.buckets.iter().flatten().filter(recent).fold(Counts::default(), |sum, bucket| Counts {
            calls: sum.calls + bucket.counts.calls,
            failures: sum.failures + bucket.counts.failures,
        })
    }

    /// The bucket of this time. Times come from several threads and may step back a little: the newest bucket takes
    /// what is older than itself.
    fn bucket(&mut self, now: Instant) -> &mut Bucket {
        let width = self.window / BUCKETS as u32;
        let open = |bucket: Bucket| now.saturating_duration_since(bucket.start) < width;
        if !self.buckets[self.newest].is_some_and(open) {
            self.newest = (self.newest + 1) % BUCKETS;
            self.buckets[self.newest] = None;
        }
        self.buckets[self.newest].get_or_insert(Bucket { start: now, counts: Counts::default() })
    }
}

impl Trip for FailureRate {
    fn observe(&mut self, failed: bool, now: Instant) -> bool {
        let bucket = self.bucket(now);
        bucket.counts.calls += 1;
        bucket.counts.failures += u64::from(failed);
        let Some(threshold) = self.threshold else { return false };
        let Counts { calls, failures } = self.counts(now);
        self.minimum_calls <= calls && u64::from(threshold) * calls <= 100 * failures
    }

    fn reset(&mut self) {
        self.buckets = [None; BUCKETS];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::breaker::tests::settings;

    fn rule(threshold: u32, minimum: u32) -> FailureRate {
        FailureRate::new(&effective::Breaker {
            failure_rate_threshold: Some(threshold),
            minimum_number_of_calls: minimum,
            sliding_window: Duration::from_secs(10),
            ..settings()
        })
    }

    #[test]
    fn opens_at_the_threshold_once_there_are_enough_calls() {
        let (mut rule, now) = (rule(50, 4), Instant::now());
        assert!(!rule.observe(true, now));
        assert!(!rule.observe(true, now));
        assert!(!rule.observe(false, now), "3 calls are too few");
        assert!(rule.observe(false, now), "2 of 4 failed: a success is a call too");
        assert!(!rule.observe(false, now), "2 of 5");
    }

    #[test]
    fn forgets_what_left_the_window() {
        let (mut rule, start) = (rule(100, 2), Instant::now());
        assert!(!rule.observe(true, start));
        let later = start + Duration::from_secs(10);
        assert_eq!(rule.counts(later), Counts::default());
        assert!(!rule.observe(true, later));
    }

    #[test]
    fn keeps_its_counts_when_the_window_changes() {
        let (mut rule, start) = (rule(100, 100), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        for n in 0..10 {
            rule.observe(true, second(n));
        }
        let with =
            |seconds| effective::Breaker { sliding_window: Duration::from_secs(seconds), ..settings() };
        rule.reconfigure(&with(100));
        assert_eq!(rule.counts(second(15)).calls, 10);
        rule.reconfigure(&with(5));
        assert_eq!(rule.counts(second(9)).calls, 5);
    }

    proptest! {
        /// The window holds everything of its last nine tenths, and nothing that is older than it is long.
        #[test]
        fn counts_the_last_while(steps in prop::collection::vec((0..2500u64, any::<bool>()), 1..200)) {
            let (mut rule, mut now) = (rule(100, u32::MAX), Instant::now());
            let mut calls = Vec::new();
            for (millis, failed) in steps {
                now += Duration::from_millis(millis);
                rule.observe(failed, now);
                calls.push((now, failed));
                let within = |seconds| {
                    let recent = move |(at, _): &&(Instant, bool)| now - *at < Duration::from_secs(seconds);
                    let calls: Vec<_> = calls.iter().filter(recent).collect();
                    (calls.len() as u64, calls.iter().filter(|(_, failed)| *failed).count() as u64)
                };
                let (least, most, got) = (within(9), within(10), rule.counts(now));
                prop_assert!((least.0..=most.0).contains(&got.calls), "{least:?} {got:?} {most:?}");
                prop_assert!((least.1..=most.1).contains(&got.failures), "{least:?} {got:?} {most:?}");
            }
        }
    }
}
