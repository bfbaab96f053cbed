//! How many of a route's requests may be sent once more: a share of those of the last seconds.
//!
//! A share of what happened over a while, and not of what is in flight: a worker that hangs fails many requests in the
//! same moment, and one that fails fast has few in flight however many it fails. The idea and its reasons are Finagle's
//! (`RetryBudget`); the terms are those of the Gateway API (`retryConstraint`).
//!
//! Each data thread counts for itself and keeps to the share, so that the whole does. Only what is sent once more in the
//! present second is counted together, for the least rate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_policy::effective::RetryBudget;

const SLICES: usize = 10;

/// The requests of one route and thread over the last `interval`, in ten slices.
#[derive(Clone, Debug)]
pub struct Window {
    interval: Duration,
    newest: u64,
    slices: [Slice; SLICES],
    sum: Slice,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    requests: u64,
    repeats: u64,
}

impl Window {
    /// Nothing seen yet.
    pub fn new(interval: Duration) -> Self {
        Self { interval, newest: 0, slices: [Slice::default(); SLICES], sum: Slice::default() }
    }

    /// The time that it covers.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// A request came, so long after the thread began.
    pub fn request(&mut self, now: Duration) {
        self.advance(now).requests += 1;
        self.sum.requests += 1;
    }

    /// Whether one more may be sent: then it counts as sent.
    pub fn repeat(&mut self, budget: &RetryBudget, least: &LeastRate, now: Duration) -> bool {
        self.advance(now);
        let share = self.sum.requests * u64::from(budget.percent);
        let least_rate = if (self.sum.repeats + 1) * 100 <= share { u32::MAX } else { budget.min_retry_rate };
        let allowed = least.take(least_rate, now.as_secs());
        if allowed {
            self.advance(now).repeats += 1;
            self.sum.repeats += 1;
        }
        allowed
    }

    /// Forgets what is older than the window; the slice of this time.
    fn advance(&mut self, now: Duration) -> &mut Slice {
        let length = (self.interval.as_millis() as u64 / SLICES as u64).max(1);
        let slice = now.as_millis() as u64 / length;
        if self.newest < slice {
            for old in (self.newest + 1..=slice).take(SLICES) {
                let place = &mut self.slices[old as usize % SLICES];
                self.sum.requests -= place.requests;
                self.sum.repeats -= place.repeats;
                *place = Slice::default();
            }
            self.newest = slice;
        }
        &mut self.slices[self.newest as usize % SLICES]
    }
}

/// What was sent once more in this second, over all threads: the second and how much.
#[derive(Debug, Default)]
pub struct LeastRate(AtomicU64);

impl LeastRate {
    /// Takes one more, if there were fewer than `most` in this second.
    fn take(&self, most: u32, second: u64) -> bool {
        let taken = self.0.try_update(Relaxed, Relaxed, |word| {
            let taken = if word >> 32 == second { word as u32 } else { 0 };
            (taken < most).then_some(second << 32 | u64::from(taken + 1))
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(percent: u32, min_retry_rate: u32) -> RetryBudget {
        RetryBudget { percent, interval: Duration::from_secs(10), min_retry_rate }
    }

    proptest! {
        /// Whatever comes when: no more is sent once more than the share of the window's requests and the least rate.
        #[test]
        fn repeats_keep_to_the_budget(
            gaps in prop::collection::vec((0..400u64, 1..6u8), 1..400),
            percent in 0..=100u32,
            least in 0..4u32,
        ) {
            let (budget, rate) = (budget(percent, least), LeastRate::default());
            let mut window = Window::new(budget.interval);
            let mut now = 0;
            let mut requests: Vec<u64> = Vec::new();
            let mut repeats: Vec<u64> = Vec::new();
            for (gap, burst) in gaps {
                now += gap;
                let time = Duration::from_millis(now);
                for _ in 0..burst {
                    window.request(time);
                    requests.push(now);
                    if window.repeat(&budget, &rate, time) {
                        repeats.push(now);
                    }
                }
                let within = |times: &[u64]| times.iter().filter(|time| now < **time + 10_000).count() as u64;
                // A slice's length more than the window: what the oldest slice still counts.
                let before = |times: &[u64]| times.iter().filter(|time| now < **time + 21_000).count() as u64;
                let allowed = before(&requests) * u64::from(percent) / 100 + 11 * u64::from(least);
                prop_assert!(within(&repeats) <= allowed, "{} of {}", within(&repeats), allowed);
            }
        }
    }

    #[test]
    fn a_burst_may_use_what_calm_seconds_left() {
        let (budget, rate) = (budget(20, 0), LeastRate::default());
        let mut window = Window::new(budget.interval);
        for second in 0..9 {
            (0..100).for_each(|_| window.request(Duration::from_secs(second)));
        }
        let now = Duration::from_secs(9);
        assert_eq!((0..500).filter(|_| window.repeat(&budget, &rate, now)).count(), 180);
        let later = Duration::from_secs(60);
        assert!(!window.repeat(&budget, &rate, later), "the requests are forgotten with the seconds");
    }

    #[test]
    fn the_least_rate_is_not_on_top_of_the_share() {
        let (budget, rate) = (budget(50, 10), LeastRate::default());
        let mut window = Window::new(budget.interval);
        let now = Duration::from_secs(1);
        (0..100).for_each(|_| window.request(now));
        assert_eq!((0..100).filter(|_| window.repeat(&budget, &rate, now)).count(), 50);
    }

    #[test]
    fn the_least_rate_is_for_all_threads_together() {
        let (budget, rate) = (budget(0, 3), LeastRate::default());
        let mut windows = [Window::new(budget.interval), Window::new(budget.interval)];
        let mut at = |second| {
            let now = Duration::from_secs(second);
            windows
                .iter_mut()
                .map(|window| (0..5).filter(|_| window.repeat(&budget, &rate, now)).count())
                .sum::<usize>()
        };
        assert_eq!([1, 2].map(&mut at), [3, 3]);
    }
}
