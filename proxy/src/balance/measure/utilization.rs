//! What a worker reports of its load, and the capacity that follows from it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use outrigger_policy::effective::BackendUtilization;

use super::{How, Stamped, Tick, orca};

/// Reports that come faster than that, in nanoseconds, are not read: they would say the same.
const BETWEEN_REPORTS: u64 = 10_000_000;
/// So many requests make a rate that is worth something, and so many a first one, which there is nothing to check by.
const ENOUGH: u64 = 5;
const SURE: u64 = 20;
/// How much a capacity found by many requests counts against the old one; by `SURE` requests half as much.
const NEW: f32 = 0.3;
/// After so many update periods without a new one a capacity is worth half of what it was.
const HALF: u64 = 10;
/// A pause of more update periods than that is no part of a rate: the worker was not asked.
const PAUSE: u64 = 3;
/// A utilization below this says that the worker is idle, not that it could take a thousand times more.
const IDLE: f32 = 0.01;

/// What a worker that answers nothing well can take, in requests a second.
const LEAST: f32 = 0.001;

/// A worker's reports. None before the first one. What every request asks or counts comes first, in one cache line.
#[derive(Default)]
#[repr(C)]
pub struct Utilization {
    /// When the last one came, and since when they come without a gap.
    at: AtomicU64,
    since: AtomicU64,
    /// Requests since `counted_from`.
    requests: AtomicU64,
    counted_from: AtomicU64,
    /// When the last request ended.
    ended_at: AtomicU64,
    /// When the capacity was found.
    found_at: AtomicU64,
    /// Requests a second that would fill it.
    capacity: AtomicU32,
    /// The last report, as a part of 1.
    reported: AtomicU32,
    /// What part of its requests failed in the last period.
    failed: Stamped,
    /// Failures since `counted_from`, and what was reported meanwhile: how often, and ten-thousandths in all.
    failures: AtomicU64,
    reports: AtomicU64,
    sum: AtomicU64,
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
                self.reports.fetch_add(1, Relaxed);
                self.sum.fetch_add((utilization * 1e4) as u64, Relaxed);
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

    /// A request ended: now and then that makes a new capacity of the rate and of what was reported meanwhile.
    pub fn ended(&self, how: How, now: u64, settings: &BackendUtilization) {
        if how != How::Answered {
            self.failures.fetch_add(1, Relaxed);
        }
        if how == How::FailedAfterHead {
            return; // it was counted with its head
        }
        let period = settings.update_period.as_nanos() as u64;
        let pause = now.saturating_sub(self.ended_at.swap(now, Relaxed));
        if period.saturating_mul(PAUSE) < pause {
            self.count_from(now);
            return;
        }
        let requests = self.requests.fetch_add(1, Relaxed) + 1;
        let before = f32::from_bits(self.capacity.load(Relaxed));
        let from = self.counted_from.load(Relaxed);
        let enough = if before == 0.0 { SURE } else { ENOUGH };
        if requests < enough || now < from.saturating_add(period) {
            return;
        }
        if self.counted_from.compare_exchange(from, now, Relaxed, Relaxed).is_ok()
            && let Some(found) = self.found(now, (now - from) as f32 / 1e9, settings)
        {
            let new = 1.0 - (1.0 - NEW) * self.certainty(now, settings);
            let new = new * requests as f32 / (requests + SURE) as f32;
            let capacity = if before == 0.0 { found } else { before + new * (found - before) };
            self.capacity.store(capacity.to_bits(), Relaxed);
            self.found_at.store(now, Relaxed);
        }
    }

    /// The capacity by what was counted in so many seconds, which begins anew; `None` when nothing was reported, and nothing
    /// failed that says more than the last report.
    fn found(&self, now: u64, seconds: f32, settings: &BackendUtilization) -> Option<f32> {
        let [requests, failures, reports, sum] = [&self.requests, &self.failures, &self.reports, &self.sum]
            .map(|count| count.swap(0, Relaxed) as f32);
        let failures = failures.min(requests);
        let failed = failures / requests.max(1.0);
        if failed != 0.0 || self.failed.get().is_some() {
            self.failed.update(|_| (failed, Tick::at(now)));
        }
        let reported = match reports {
            0.0 if failures == 0.0 => return None,
            0.0 => self.reported(now, settings)?,
            _ => sum / reports / 1e4,
        };
        // What fails fast takes many requests and is of no use: only the others are capacity.
        let utilization = reported + penalty(failed, settings);
        Some(((requests - failures) / seconds / utilization.max(IDLE)).max(LEAST))
    }

    fn count_from(&self, now: u64) {
        for count in [&self.requests, &self.failures, &self.reports, &self.sum] {
            count.store(0, Relaxed);
        }
        self.counted_from.store(now, Relaxed);
    }

    /// Requests a second that would fill it. While its reports do not count yet, or no more, it is the `mean` of all, less
    /// what of its requests failed. The longer ago any of that was found, the more it counts as the mean: a worker that gets
    /// nothing because of it could not prove otherwise.
    pub fn capacity(&self, now: u64, mean: f32, settings: &BackendUtilization) -> f32 {
        let (found, certainty) = match self.last_capacity(now, settings) {
            Some(found) => (found, self.certainty(now, settings)),
            None => self.unreported(now, mean, settings),
        };
        (mean + (found - mean) * certainty).max(LEAST)
    }

    /// What the failures of a worker that does not report make of the mean, and how sure that is.
    fn unreported(&self, now: u64, mean: f32, settings: &BackendUtilization) -> (f32, f32) {
        match self.failed.get() {
            Some((failed, at)) if failed != 0.0 => {
                let certainty = certainty(Tick::at(now).since(at), settings);
                (mean * (1.0 - failed) / (1.0 + penalty(failed, settings)), certainty)
            }
            _ => (mean, 1.0),
        }
    }

    /// The same as it was found.
    pub fn last_capacity(&self, now: u64, settings: &BackendUtilization) -> Option<f32> {
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

    fn certainty(&self, now: u64, settings: &BackendUtilization) -> f32 {
        certainty(now.saturating_sub(self.found_at.load(Relaxed)) as f32 / 1e9, settings)
    }

    fn is_over(&self, at: u64, now: u64, settings: &BackendUtilization) -> bool {
        at == 0 || at.saturating_add(settings.expiration_period.as_nanos() as u64) < now
    }
}

/// 1 for what was found just now, a half after `HALF` update periods, and so on towards 0.
fn certainty(age: f32, settings: &BackendUtilization) -> f32 {
    let half = settings.update_period.as_secs_f32() * HALF as f32;
    half / (half + age)
}

/// What failures add to the utilization, by what part of the requests failed.
fn penalty(failed: f32, settings: &BackendUtilization) -> f32 {
    failed * settings.error_penalty_percent as f32 / 100.0
}
