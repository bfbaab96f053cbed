//! Where a worker's response time and its requests in flight are heading: Holt's linear method, twice.
//!
//! Sums are kept over an interval; the first answer or choice after its end makes one observation of their means. With
//! observations `x` at uneven distances `d` (Wright 1986; `a` and `b` are what the settings say for one interval):
//!
//! ```text
//! level' = a x + (1 - a) (level + d trend)
//! trend' = b (level' - level) / d + (1 - b) trend
//! in h seconds: level + h trend s
//! ```
//!
//! A trend is also made by chance, and the horizon multiplies it. `s` is what of the trend is more than that: with the
//! deviation `e` that chance gives a trend, `s = max(0, 1 - (2 e / trend)^2)`, the positive-part shrinkage of James and
//! Stein (1961). By `trend' = trend + a b error / d`, `e` is about `a sqrt(b / 2) / d` times that of the errors of
//! the forecasts for the next interval.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use outrigger_policy::effective::Predictive;

/// A silence of so many intervals starts the forecast anew.
const SILENCE: f32 = 10.0;
/// A forecast is at most so many times the level, and at least that part of it: a straight line knows no bounds.
const FACTOR: f32 = 10.0;
const PART: f32 = 0.25;

/// How much a new error counts against what they were.
const NEW_ERROR: f32 = 0.2;
/// The standard deviation of normal errors, in mean absolute ones.
const DEVIATION: f32 = 1.25;

/// The forecast of one worker, in one cache line. None before the first interval is over.
#[derive(Default)]
#[repr(align(64))]
pub struct Forecast {
    /// Of the current interval: answers, and above `IN_FLIGHT` the requests in flight, each summed.
    answers: AtomicU64,
    /// Of the current interval: response times, summed.
    micros: AtomicU64,
    /// When the current interval ends, and when the last observation was made.
    due: AtomicU64,
    observed: AtomicU64,
    response_time: Line,
    load: Line,
}

/// How many bits the answers of an interval have: 16 million.
const IN_FLIGHT: u32 = 24;

/// What will be at the horizon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    /// The response time, in seconds.
    pub response_time: f32,
    /// By what part of what it is now the load will have grown; 0 when it falls.
    pub load_growth: f32,
}

impl Forecast {
    /// Takes note of a response time, in seconds, and of the requests in flight.
    pub fn observe(&self, [seconds, in_flight]: [f32; 2], now: u64, settings: &Predictive) {
        self.end_interval(now, settings);
        self.answers.fetch_add(((in_flight as u64) << IN_FLIGHT) + 1, Relaxed);
        self.micros.fetch_add((seconds * 1e6) as u64, Relaxed);
    }

    /// Makes an observation of the interval that is over, as of its end, and begins the next. Where nobody answered in it
    /// there is nothing to observe.
    fn end_interval(&self, now: u64, settings: &Predictive) {
        let due = self.due.load(Relaxed);
        if now < due {
            return;
        }
        let interval = settings.interval.as_nanos() as u64;
        if self.due.compare_exchange(due, now + interval, Relaxed, Relaxed).is_err() {
            return;
        }
        // Whoever moved `due` has this interval for itself.
        let answers = self.answers.swap(0, Relaxed);
        let micros = self.micros.swap(0, Relaxed);
        let count = (answers % (1 << IN_FLIGHT)) as f32;
        if count == 0.0 {
            return;
        }
        let before = self.observed.swap(due.max(1), Relaxed);
        let interval = settings.interval.as_secs_f32();
        let distance = if before == 0 { interval } else { seconds_between(before, due).max(interval / 2.0) };
        let anew = before == 0 || SILENCE * interval < distance;
        let means = [micros as f32 / 1e6 / count, (answers >> IN_FLIGHT) as f32 / count];
        for (line, mean) in [&self.response_time, &self.load].into_iter().zip(means) {
            if anew { line.start(mean) } else { line.observe(mean, distance, settings) }
        }
    }

    /// The forecast at this time; `None` before the first answer. It fades while no answers come, so that a worker which was
    /// slow is tried again.
    pub fn ahead(&self, now: u64, settings: &Predictive) -> Option<Ahead> {
        self.end_interval(now, settings);
        let observed = self.observed.load(Relaxed);
        if observed == 0 {
            return self.mean_so_far().map(|response_time| Ahead { response_time, load_growth: 0.0 });
        }
        let horizon = settings.horizon.as_secs_f32();
        let age = (seconds_between(observed, now) - settings.interval.as_secs_f32()).max(0.0);
        let fading = if age == 0.0 { 1.0 } else { (-age / (2.0 * horizon)).exp() };
        Some(Ahead {
            response_time: self.response_time.ahead(horizon) * fading,
            load_growth: self.load.growth(horizon) * fading,
        })
    }

    /// The mean response time of the first interval: by it a worker that fails or is slow is known before that is over.
    fn mean_so_far(&self) -> Option<f32> {
        let answers = self.answers.load(Relaxed) % (1 << IN_FLIGHT);
        (answers != 0).then(|| self.micros.load(Relaxed) as f32 / 1e6 / answers as f32)
    }

    /// The level and the trend of its response time, in seconds and seconds a second.
    pub fn line(&self) -> (f32, f32) {
        self.response_time.get()
    }
}

fn seconds_between(earlier: u64, now: u64) -> f32 {
    now.saturating_sub(earlier) as f32 / 1e9
}

/// A level and its trend per second, in one word, and what follows from them when they change.
#[derive(Default)]
struct Line {
    word: AtomicU64,
    /// The mean absolute error of what they forecast for the next interval.
    error: AtomicU32,
    /// What of the trend is more than chance.
    sure_trend: AtomicU32,
}

impl Line {
    fn get(&self) -> (f32, f32) {
        let word = self.word.load(Relaxed);
        (f32::from_bits((word >> 32) as u32), f32::from_bits(word as u32))
    }

    fn set(&self, [level, trend]: [f32; 2], error: f32, sure_trend: f32) {
        self.word.store(u64::from(level.to_bits()) << 32 | u64::from(trend.to_bits()), Relaxed);
        self.error.store(error.to_bits(), Relaxed);
        self.sure_trend.store(sure_trend.to_bits(), Relaxed);
    }

    fn start(&self, mean: f32) {
        self.set([mean, 0.0], 0.0, 0.0);
    }

    fn observe(&self, mean: f32, distance: f32, settings: &Predictive) {
        let (level, trend) = self.get();
        let interval = settings.interval.as_secs_f32();
        let parts = [settings.level_percent, settings.trend_percent].map(|percent| percent as f32 / 100.0);
        let [a, b] = parts.map(|part| 1.0 - (1.0 - part).powf(distance / interval));
        let expected = level + distance * trend;
        let next = (a * mean + (1.0 - a) * expected).max(0.0);
        let trend = b * (next - level) / distance + (1.0 - b) * trend;
        let before = f32::from_bits(self.error.load(Relaxed));
        let error = before + NEW_ERROR * ((mean - expected).abs() - before);
        let chance = parts[0] * (parts[1] / 2.0).sqrt() / interval * DEVIATION * error;
        let sure = if trend == 0.0 { 0.0 } else { (1.0 - (2.0 * chance / trend).powi(2)).max(0.0) };
        self.set([next, trend], error, trend * sure);
    }

    fn ahead(&self, horizon: f32) -> f32 {
        let (level, _) = self.get();
        (level + horizon * self.sure_trend()).clamp(level * PART, level * FACTOR)
    }

    /// By what part it will have grown, of at least 1; 0 when it falls.
    fn growth(&self, horizon: f32) -> f32 {
        let rise = horizon * self.sure_trend();
        if rise <= 0.0 { 0.0 } else { (rise / self.get().0.max(1.0)).min(FACTOR) }
    }

    fn sure_trend(&self) -> f32 {
        f32::from_bits(self.sure_trend.load(Relaxed))
    }
}
