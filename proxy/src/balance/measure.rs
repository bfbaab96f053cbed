//! What is known of a worker's speed and load: kept with the worker, so that it outlives strategies and policies.
//!
//! Each estimate is one or two atomic words that every answer updates, without a lock. An answer that is lost in a race
//! is one of thousands; what must not be torn, such as a level and its trend, shares a word. Only what the policy in
//! force asks for is kept (`Measure`); the rest costs nothing.

mod budget;
mod failing;
mod forecast;
pub mod orca;
mod response_time;
mod utilization;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode, response};
use outrigger_policy::effective::{self, Policy, Strategy};

pub use self::budget::Budget;
pub use self::failing::Failing;
pub use self::forecast::{Ahead, Forecast};
pub use self::response_time::ResponseTime;
pub use self::utilization::Utilization;

/// What the strategies look at. What they all do comes first, in one cache line: over hundreds of workers each line is
/// one more to wait for. Aligned, for an allocator may put it across two.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Load {
    /// Requests sent to the worker and not yet done.
    pub in_flight: AtomicU32,
    measuring: AtomicBool,
    measure: ArcSwap<Measure>,
    /// Whether its last requests failed: kept whatever the policy asks for.
    pub failing: Failing,
    /// The moving average of its response times.
    pub response_time: ResponseTime,
    /// It asked to be left alone until then.
    retry_at: AtomicU64,
    /// How many requests it can take within the latency objective.
    pub budget: Budget,
    ready_at: AtomicU64,
    /// Where its response time and its requests in flight are heading.
    pub forecast: Forecast,
    /// What it reports.
    pub utilization: Utilization,
}

/// Which estimates are kept, and how: those of the first route, in the order of matching, whose strategy needs one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// Response times.
    pub response_time: Option<effective::PeakEwma>,
    /// Forecasts.
    pub forecast: Option<effective::Predictive>,
    /// Reports.
    pub utilization: Option<effective::BackendUtilization>,
    /// Budgets.
    pub budget: Option<effective::CostAware>,
}

/// A request that the worker answered, or failed to.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// When it was sent.
    pub sent: Instant,
    /// When the head of the answer came, or the failure was found.
    pub now: Instant,
    /// What became of it.
    pub how: How,
}

/// What became of a request, as far as it is the worker's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The head of an answer came that is no failure so far.
    Answered,
    /// The worker failed.
    Failed,
    /// The worker failed after the head of its answer had been taken for a good one.
    FailedAfterHead,
}

impl Measure {
    /// What this policy asks for.
    pub fn of(policy: &Policy) -> Self {
        let mut measure = Self::default();
        policy.routes.iter().for_each(|route| measure.add(&route.load_balancer.strategy));
        measure
    }

    /// What this strategy looks at is kept too, unless it is already kept in another way.
    pub(super) fn add(&mut self, strategy: &Strategy) {
        match strategy {
            Strategy::PeakEwma(settings) => _ = self.response_time.get_or_insert(*settings),
            Strategy::Predictive(settings) => _ = self.forecast.get_or_insert(*settings),
            Strategy::BackendUtilization(settings) => {
                self.utilization.get_or_insert_with(|| settings.clone());
            }
            Strategy::CostAware(settings) => _ = self.budget.get_or_insert(*settings),
            Strategy::RoundRobin
            | Strategy::Random
            | Strategy::LeastRequest(_)
            | Strategy::ConsistentHash(_) => {}
        }
    }
}

impl Load {
    /// Says which estimates are kept from now on. Those that were kept before stay as they are. All workers share what is
    /// said: of hundreds of copies none would be in the cache.
    pub fn configure(&self, measure: &Arc<Measure>) {
        if **self.measure.load() != **measure {
            self.measure.store(measure.clone());
            self.measuring.store(**measure != Measure::default(), Relaxed);
        }
    }

    /// How many requests a strategy is to think it has: those in flight, and of a worker that keeps failing more, for it has
    /// few in flight because it fails.
    pub fn counts_as(&self, now: Instant) -> u64 {
        let in_flight = u64::from(self.in_flight.load(Relaxed));
        if self.failing.is_over() {
            return in_flight;
        }
        ((in_flight + 1) << self.failing.doublings(Tick::of(now))) - 1
    }

    /// Whether so many of its last requests failed that it counts as busier than it is.
    pub fn keeps_failing(&self, now: Instant) -> bool {
        !self.failing.is_over() && self.failing.doublings(Tick::of(now)) != 0
    }

    /// Whether a request would wait for nothing there.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.counts_as(now) == 0
    }

    /// The worker became ready.
    pub fn set_ready(&self, now: Instant) {
        self.ready_at.store(nanos(now), Relaxed);
        TIMES_READY.fetch_add(1, Relaxed);
    }

    /// When it became ready.
    pub fn ready_at(&self) -> u64 {
        self.ready_at.load(Relaxed)
    }

    /// Learns from a request that ended.
    pub fn ended(&self, ended: Ended) {
        let failed = ended.how != How::Answered;
        if failed {
            self.failing.failed(ended.how == How::FailedAfterHead, Tick::of(ended.now));
        } else {
            self.failing.answered(ended.now);
        }
        if !self.measuring.load(Relaxed) {
            return;
        }
        let measure = self.measure.load();
        let took = ended.now.saturating_duration_since(ended.sent);
        let counts_as = |penalty: Duration| if failed { took.max(penalty) } else { took }.as_secs_f32();
        if let Some(settings) = &measure.response_time {
            let decay = settings.decay_time.as_secs_f32();
            self.response_time.observe(counts_as(settings.penalty), Tick::of(ended.now), decay);
        }
        if let Some(settings) = &measure.forecast {
            let in_flight = self.in_flight.load(Relaxed);
            self.forecast.observe(
                [counts_as(settings.penalty), in_flight as f32],
                nanos(ended.now),
                settings,
            );
        }
        if let Some(settings) = &measure.utilization {
            self.utilization.ended(ended.how, nanos(ended.now), settings);
        }
        if let Some(settings) = &measure.budget {
            let late = settings.latency_objective < took;
            let in_flight = self.in_flight.load(Relaxed);
            let verdict = budget::Verdict { late, failed, in_flight };
            self.budget.observe(verdict, Tick::of(ended.now), settings.latency_objective.as_secs_f32());
        }
    }

    /// Reads what the head of an answer says of the worker, and takes the report out of it unless clients are to get it.
    pub fn heard(&self, head: &mut response::Parts, now: Instant) {
        if !self.measuring.load(Relaxed) {
            return;
        }
        let measure = self.measure.load();
        if let Some(settings) = &measure.utilization {
            let read =
                |report: &HeaderValue| self.utilization.report(report.as_bytes(), nanos(now), settings);
            if settings.keep_response_headers {
                head.headers.get(&orca::HEADER).map(read);
            } else {
                head.headers.remove(&orca::HEADER).as_ref().map(read);
            }
        }
        // A 429 is about the client, and nothing that a client does is held against a worker.
        if head.status == StatusCode::SERVICE_UNAVAILABLE
            && let Some(settings) = &measure.response_time
            && let Some(seconds) =
                head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok())
        {
            let wait = Duration::from_secs(seconds).min(settings.max_retry_after);
            self.retry_at.store(nanos(now + wait), Relaxed);
        }
    }

    /// The utilization that it reports, as a part of 1; `None` where nobody asks for it, or where it does not report.
    pub fn reported(&self, now: Instant) -> Option<f32> {
        self.utilization.reported(nanos(now), self.measure.load().utilization.as_ref()?)
    }

    /// Whether it asked to be left alone for now.
    pub fn is_to_be_left_alone(&self, now: u64) -> bool {
        now < self.retry_at.load(Relaxed)
    }

    /// The time, in seconds, that a worker of which nothing is known is taken to need: the first request is sent at
    /// once, to learn; the others wait for what becomes of it.
    pub fn first_request_costs(&self, unknown: f32) -> f32 {
        if self.in_flight.load(Relaxed) == 0 { 0.0 } else { unknown }
    }
}

static TIMES_READY: AtomicU64 = AtomicU64::new(0);

/// How many times workers of this process became ready: whoever remembers that need not look at each again.
pub fn times_ready() -> u64 {
    TIMES_READY.load(Relaxed)
}

/// A moment, in nanoseconds since a moment before the process served: what an atomic word can hold.
pub fn nanos(now: Instant) -> u64 {
    static BASE: OnceLock<Instant> = OnceLock::new();
    // An hour back, so that moments noted before the first call are told apart too.
    let base = BASE.get_or_init(|| now.checked_sub(Duration::from_secs(3600)).unwrap_or(now));
    u64::try_from(now.saturating_duration_since(*base).as_nanos()).unwrap_or(u64::MAX)
}

/// A moment in units of 65,536 ns, of which half a word can hold three days; then it wraps, so only short
/// stretches mean anything, and what is older than that counts as recent once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(u32);

const SECONDS_A_TICK: f32 = 65.536e-6;

impl Tick {
    /// The tick of a moment.
    pub fn of(now: Instant) -> Self {
        Self::at(nanos(now))
    }

    /// The same of a moment in nanoseconds.
    fn at(nanos: u64) -> Self {
        Self((nanos >> 16) as u32)
    }

    /// Seconds from an earlier tick to this one; 0 when that is later, as another thread's may be.
    fn since(self, earlier: Self) -> f32 {
        let ticks = self.0.wrapping_sub(earlier.0) as i32;
        if ticks < 0 && i32::MIN / 2 < ticks {
            0.0
        } else {
            self.0.wrapping_sub(earlier.0) as f32 * SECONDS_A_TICK
        }
    }
}

/// A number and the tick it is of, in one word. The word 0 is none: no estimate was made yet.
#[derive(Default)]
struct Stamped(AtomicU64);

impl Stamped {
    fn get(&self) -> Option<(f32, Tick)> {
        unpack(self.0.load(Relaxed))
    }

    fn update(&self, change: impl Fn(Option<(f32, Tick)>) -> (f32, Tick)) {
        let mut before = self.0.load(Relaxed);
        loop {
            let (value, tick) = change(unpack(before));
            let after = u64::from(value.to_bits()) << 32 | u64::from(tick.0);
            match self.0.compare_exchange_weak(before, after.max(1), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => before = now,
            }
        }
    }
}

fn unpack(word: u64) -> Option<(f32, Tick)> {
    (word != 0).then(|| (f32::from_bits((word >> 32) as u32), Tick(word as u32)))
}

#[cfg(test)]
mod tests;
