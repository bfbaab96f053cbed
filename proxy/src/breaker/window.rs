//! The sliding window: the calls of the last while, or the last so many calls (resilience4j's time-based and
//! count-based windows). Every rule reads the same one.
//!
//! A time-based window is a ring of buckets, so it takes the same memory whatever the traffic. A bucket leaves it
//! whole, as old as the window is long; the window thus holds the last nine to ten tenths of its length, and never
//! more. A count-based one keeps eight bytes for each call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::rules::Seen;

const BUCKETS: usize = 10;

/// What is in a window.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Calls.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many of them were slow.
    pub slow: u64,
    /// How long they took together, in microseconds.
    pub micros: u64,
}

impl Counts {
    fn of(seen: &Seen) -> Self {
        Self {
            calls: 1,
            failures: seen.failed.into(),
            slow: seen.slow.into(),
            micros: u64::try_from(seen.latency.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Counts one more call.
    pub(super) fn count(&mut self, seen: &Seen) {
        self.add(&Self::of(seen));
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.slow += other.slow;
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// The part of the calls that failed, in percent; 0 where there were none.
    #[expect(clippy::cast_precision_loss, reason = "counts of a window are far below 2^52")]
    pub fn failure_rate(&self) -> f64 {
        100.0 * self.failures as f64 / self.calls.max(1) as f64
    }

    /// The mean latency, in microseconds; 0 where there were no calls.
    #[expect(clippy::cast_precision_loss, reason = "the times of a window are far below 2^52 microseconds")]
    pub fn mean_micros(&self) -> f64 {
        self.micros as f64 / self.calls.max(1) as f64
    }
}

/// A sliding window.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and there is one for each breaker"
)]
pub(super) enum SlidingWindow {
    Time(TimeWindow),
    Calls(CallWindow),
}

impl SlidingWindow {
    pub(super) fn new(window: effective::Window) -> Self {
        match window {
            effective::Window::Time(length) => Self::Time(TimeWindow::new(length)),
            effective::Window::Calls(size) => Self::Calls(CallWindow {
                size: size as usize,
                calls: VecDeque::new(),
                sum: Counts::default(),
            }),
        }
    }

    /// Keeps what is counted. A window made shorter drops what is too old for it; one made longer fills up from here
    /// on; one that is measured in something else starts anew.
    pub(super) fn reconfigure(&mut self, window: effective::Window) {
        match (self, window) {
            (Self::Time(time), effective::Window::Time(length)) => {
                (time.length, time.width) = (length, length / BUCKETS as u32);
                time.whole_until = None;
            }
            (Self::Calls(calls), effective::Window::Calls(size)) => {
                calls.size = size as usize;
                calls.shrink();
            }
            (this, window) => *this = Self::new(window),
        }
    }

    pub(super) fn add(&mut self, seen: &Seen, now: Instant) {
        match self {
            Self::Time(time) => time.add(&Counts::of(seen), now),
            Self::Calls(calls) => calls.add(seen),
        }
    }

    /// What is in the window at this time.
    pub(super) fn counts(&self, now: Instant) -> Counts {
        match self {
            Self::Time(time) => time.counts(now),
            Self::Calls(calls) => calls.sum,
        }
    }

    pub(super) fn reset(&mut self) {
        match self {
            Self::Time(time) => *time = TimeWindow::new(time.length),
            Self::Calls(calls) => {
                calls.calls.clear();
                calls.sum = Counts::default();
            }
        }
    }
}

pub(super) struct TimeWindow {
    length: Duration,
    /// A bucket's.
    width: Duration,
    buckets: [Option<Bucket>; BUCKETS],
    newest: usize,
    /// Of all buckets.
    sum: Counts,
    /// Before this no bucket leaves, and `sum` is what is in the window.
    whole_until: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Bucket {
    start: Instant,
    counts: Counts,
}

impl TimeWindow {
    fn new(length: Duration) -> Self {
        Self {
            length,
            width: length / BUCKETS as u32,
            buckets: [None; BUCKETS],
            newest: 0,
            sum: Counts::default(),
            whole_until: None,
        }
    }

    fn add(&mut self, counts: &Counts, now: Instant) {
        if !self.is_whole(now) {
            self.forget(now);
        }
        self.bucket(now).counts.add(counts);
        self.sum.add(counts);
    }

    fn counts(&self, now: Instant) -> Counts {
        if self.is_whole(now) { self.sum } else { self.sum_of(|bucket| bucket.is_recent(now, self.length)) }
    }

    fn is_whole(&self, now: Instant) -> bool {
        self.whole_until.is_some_and(|until| now < until)
    }

    /// Lets go of the buckets that have left the window.
    fn forget(&mut self, now: Instant) {
        let length = self.length;
        for place in &mut self.buckets {
            *place = place.filter(|bucket| bucket.is_recent(now, length));
        }
        self.settle(now);
    }

    /// Sums anew, and finds out when the next bucket leaves.
    fn settle(&mut self, now: Instant) {
        self.sum = self.sum_of(|_| true);
        let oldest = self.buckets.iter().flatten().map(|bucket| bucket.start).min();
        self.whole_until = Some(oldest.unwrap_or(now) + self.length);
    }

    fn sum_of(&self, counts: impl Fn(&Bucket) -> bool) -> Counts {
        self.buckets.iter().flatten().filter(|bucket| counts(bucket)).fold(
            Counts::default(),
            |mut sum, bucket| {
                sum.add(&bucket.counts);
                sum
            },
        )
    }

    /// The bucket of this time. Times come from several threads and may step back a little: the newest bucket takes
    /// what is older than itself.
    fn bucket(&mut self, now: Instant) -> &mut Bucket {
        if !self.buckets[self.newest].is_some_and(|bucket| bucket.is_recent(now, self.width)) {
            self.newest = (self.newest + 1) % BUCKETS;
            if self.buckets[self.newest].take().is_some() {
                self.settle(now);
            }
        }
        self.buckets[self.newest].get_or_insert(Bucket { start: now, counts: Counts::default() })
    }
}

impl Bucket {
    /// Whether it began less than that long ago.
    fn is_recent(&self, now: Instant, length: Duration) -> bool {
        now.saturating_duration_since(self.start) < length
    }
}

pub(super) struct CallWindow {
    size: usize,
    calls: VecDeque<Packed>,
    sum: Counts,
}

/// A call: microseconds, and in the lowest two bits whether it failed and was slow.
#[derive(Clone, Copy)]
struct Packed(u64);

impl Packed {
    fn counts(self) -> Counts {
        Counts { calls: 1, failures: self.0 & 1, slow: self.0 >> 1 & 1, micros: self.0 >> 2 }
    }
}

impl CallWindow {
    fn add(&mut self, seen: &Seen) {
        let Counts { failures, slow, micros, .. } = Counts::of(seen);
        let packed = Packed(micros.min(u64::MAX >> 2) << 2 | slow << 1 | failures);
        self.calls.push_back(packed);
        self.sum.add(&packed.counts());
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.size < self.calls.len() {
            let Some(oldest) = self.calls.pop_front() else { return };
            let gone = oldest.counts();
            self.sum.calls -= 1;
            self.sum.failures -= gone.failures;
            self.sum.slow -= gone.slow;
            self.sum.micros = self.sum.micros.saturating_sub(gone.micros);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(failed: bool) -> Seen {
        Seen { failed, slow: !failed, local_origin: false, latency: Duration::from_millis(2) }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn forgets_what_left_the_window() {
        let (mut window, start) = (SlidingWindow::new(effective::Window::Time(seconds(10))), Instant::now());
        window.add(&seen(true), start);
        assert_eq!(window.counts(start), Counts { calls: 1, failures: 1, slow: 0, micros: 2000 });
        assert_eq!(window.counts(start + seconds(10)), Counts::default());
    }

    #[test]
    fn keeps_its_counts_when_its_length_changes() {
        let (mut window, start) = (SlidingWindow::new(effective::Window::Time(seconds(10))), Instant::now());
        (0..10).for_each(|n| window.add(&seen(true), start + seconds(n)));
        window.reconfigure(effective::Window::Time(seconds(100)));
        assert_eq!(window.counts(start + seconds(15)).calls, 10);
        window.reconfigure(effective::Window::Time(seconds(5)));
        assert_eq!(window.counts(start + seconds(9)).calls, 5);
        window.reconfigure(effective::Window::Calls(5));
        assert_eq!(window.counts(start).calls, 0, "it is measured in something else now");
    }

    #[test]
    fn a_window_of_calls_holds_the_last() {
        let (mut window, now) = (SlidingWindow::new(effective::Window::Calls(4)), Instant::now());
        for failed in [true, true, false, false, false] {
            window.add(&seen(failed), now);
        }
        assert_eq!(window.counts(now), Counts { calls: 4, failures: 1, slow: 3, micros: 8000 });
        window.reconfigure(effective::Window::Calls(3));
        assert_eq!(window.counts(now), Counts { calls: 3, failures: 0, slow: 3, micros: 6000 });
        window.reconfigure(effective::Window::Calls(9));
        (0..9).for_each(|_| window.add(&seen(true), now));
        assert_eq!(window.counts(now), Counts { calls: 9, failures: 9, slow: 0, micros: 18_000 });
    }

    proptest! {
        /// The window holds everything of its last nine tenths, and nothing that is older than it is long.
        #[test]
        fn holds_the_last_while(steps in prop::collection::vec((0..2500u64, any::<bool>()), 1..200)) {
            let mut window = SlidingWindow::new(effective::Window::Time(seconds(10)));
            let (mut now, mut calls) = (Instant::now(), Vec::new());
            for (millis, failed) in steps {
                now += Duration::from_millis(millis);
                window.add(&seen(failed), now);
                calls.push((now, failed));
                let within = |length| {
                    let recent = move |(at, _): &&(Instant, bool)| now - *at < seconds(length);
                    let calls: Vec<_> = calls.iter().filter(recent).collect();
                    (calls.len() as u64, calls.iter().filter(|(_, failed)| *failed).count() as u64)
                };
                let (least, most, got) = (within(9), within(10), window.counts(now));
                prop_assert!((least.0..=most.0).contains(&got.calls), "{least:?} {got:?} {most:?}");
                prop_assert!((least.1..=most.1).contains(&got.failures), "{least:?} {got:?} {most:?}");
                prop_assert_eq!(got.slow, got.calls - got.failures);
            }
        }
    }
}
