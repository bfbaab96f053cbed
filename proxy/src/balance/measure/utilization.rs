//! What a worker reports of its load, and the capacity that follows from it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use outrigger_policy::effective::BackendUtilization;

use super::orca;

/// Reports that come faster than that, in nanoseconds, are not read: they would say the same.
const BETWEEN_REPORTS: u64 = 10_000_000;
/// So many requests make a rate.
const ENOUGH: u64 = 5;
/// How much a new capacity counts against the old one.
const NEW: f32 = 0.3;
/// A utilization below this says that the worker is idle, not that it could take a thousand times more.
const IDLE: f32 = 0.01;

/// What a worker that answers nothing well can take, in requests a second.
const LEAST: f32 = 0.001;

/// A worker's reports. None before the first one.
#[derive(Default)]
pub struct Utilization {
    /// The last one, as a part of 1.
    reported: AtomicU32,
    /// When it came, and since when they come without a gap.
    at: AtomicU64,
    since: AtomicU64,
    /// Requests and failures since `counted_from`.
    requests: AtomicU64,
    failures: AtomicU64,
    counted_from: AtomicU64,
    /// Requests a second that would fill it.
    capacity: AtomicU32,
    ignored: AtomicU64,
}

impl Utilization {
    /// Reads a report. One that cannot be read is counted and changes nothing.
    pub fn report(&self, text: &[u8], now: u64, settings: &BackendUtilization) {
        let before = self.at.load(Relaxed);
        if before != 0 && now < before.saturating_add(BETWEEN_REPORTS) {
            return;
        }
        match orca::utilization(text, &settings.metrics) {
            Ok(Some(utilization)) => {
                self.reported.store((utilization as f32).to_bits(), Relaxed);
                if self.is_over(before, now, settings) {
                    self.since.store(now, Relaxed);
                    self.capacity.store(0, Relaxed);
                }
                self.at.store(now.max(1), Relaxed);
            }
            Ok(None) => {} // a report without the metrics that were asked for
            Err(orca::Garbage) => _ = self.ignored.fetch_add(1, Relaxed),
        }
    }

    /// A request ended: now and then that makes a new capacity of the rate and of the last report.
    pub fn ended(&self, failed: bool, now: u64, settings: &BackendUtilization) {
        let requests = self.requests.fetch_add(1, Relaxed) + 1;
        if failed {
            self.failures.fetch_add(1, Relaxed);
        }
        let from = self.counted_from.load(Relaxed);
        let due = from.saturating_add(settings.update_period.as_nanos() as u64);
        let enough = from == 0 || due <= now && ENOUGH <= requests;
        if !enough || self.counted_from.compare_exchange(from, now.max(1), Relaxed, Relaxed).is_err() {
            return;
        }
        let requests = self.requests.swap(0, Relaxed) as f32;
        let failures = self.failures.swap(0, Relaxed) as f32;
        if from == 0 || self.is_over(self.at.load(Relaxed), now, settings) {
            return; // the first period begins, or nothing is reported
        }
        // What fails fast takes many requests and is of no use: only the others are capacity.
        let rate = (requests - failures) / (now.saturating_sub(from) as f32 / 1e9);
        let penalty = failures / requests * settings.error_penalty_percent as f32 / 100.0;
        let utilization = f32::from_bits(self.reported.load(Relaxed)) + penalty;
        let found = (rate / utilization.max(IDLE)).max(LEAST);
        let before = f32::from_bits(self.capacity.load(Relaxed));
        let capacity = if before == 0.0 { found } else { before + NEW * (found - before) };
        self.capacity.store(capacity.to_bits(), Relaxed);
    }

    /// Requests a second that would fill it; `None` while its reports do not count yet, or no more.
    pub fn capacity(&self, now: u64, settings: &BackendUtilization) -> Option<f32> {
        let at = self.at.load(Relaxed);
        let counts_from = self.since.load(Relaxed).saturating_add(settings.blackout_period.as_nanos() as u64);
        let capacity = f32::from_bits(self.capacity.load(Relaxed));
        (!self.is_over(at, now, settings) && counts_from <= now && 0.0 < capacity).then_some(capacity)
    }

    /// The last report; `None` when the worker does not report, or no more.
    pub fn reported(&self, now: u64, settings: &BackendUtilization) -> Option<f32> {
        self.last().filter(|_| !self.is_over(self.at.load(Relaxed), now, settings))
    }

    /// The last report, however old.
    pub fn last(&self) -> Option<f32> {
        (self.at.load(Relaxed) != 0).then(|| f32::from_bits(self.reported.load(Relaxed)))
    }

    /// Reports that could not be read.
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Relaxed)
    }

    fn is_over(&self, at: u64, now: u64, settings: &BackendUtilization) -> bool {
        at == 0 || at.saturating_add(settings.expiration_period.as_nanos() as u64) < now
    }
}
