//! How many lines one place in the code may log: a burst, and then so many a second. What clients can cause, they can
//! cause ten thousand times a second, in our own code and in that of libraries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

use super::own_line;

/// Lines at once: as many as there may be workers whose state changes at the same time.
const BURST: u32 = 300;
/// Time after which there may be one more.
const EACH: Duration = Duration::from_millis(100);

/// The limits of all places.
pub(super) struct Limit {
    places: Mutex<HashMap<Identifier, Place>>,
    exempt: &'static [&'static str],
    suppressed: AtomicU64,
}

/// A place in the code.
struct Place {
    of: &'static Metadata<'static>,
    lines: Bucket,
    suppressed: u64,
}

/// A token bucket, by the time at which it is full again.
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let next = self.full_at.max(now) + EACH;
        let allowed = next <= now + EACH * BURST;
        if allowed {
            self.full_at = next;
        }
        allowed
    }
}

impl Limit {
    /// Limits for all targets but these.
    pub(super) fn new(exempt: &'static [&'static str]) -> Self {
        Self { places: Mutex::default(), exempt, suppressed: AtomicU64::new(0) }
    }

    /// Whether this place may log a line. Whoever asked for debug lines gets all of them.
    pub(super) fn admits(&self, of: &'static Metadata<'static>, now: Instant) -> bool {
        if Level::INFO < *of.level() || self.exempt.contains(&of.target()) {
            return true;
        }
        let mut places = self.places.lock();
        let new = || Place { of, lines: Bucket { full_at: now }, suppressed: 0 };
        let place = places.entry(of.callsite()).or_insert_with(new);
        let admitted = place.lines.take(now);
        if !admitted {
            place.suppressed += 1;
            self.suppressed.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// How many lines were suppressed since the process started.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed.load(Relaxed)
    }

    /// A line for each place of which lines were suppressed since the last call.
    pub(super) fn said(&self) -> String {
        let mut places = self.places.lock();
        let suppressed = places.values_mut().filter(|place| 0 < place.suppressed);
        suppressed
            .map(|place| {
                let number = ("suppressed", std::mem::take(&mut place.suppressed));
                let (file, line) = (place.of.file().unwrap_or_default(), place.of.line().unwrap_or_default());
                let of = format!("{} ({file}:{line})", place.of.target());
                own_line(*place.of.level(), "lines of one place were too many", number, Some(of))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::subscriber::with_default;
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Asks the limit of every event, at the time it is told, and counts those that were admitted.
    struct Asking {
        limit: Limit,
        now: Mutex<Instant>,
        admitted: AtomicU64,
    }

    struct Layered(Arc<Asking>);

    impl<S: Subscriber> Layer<S> for Layered {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let admitted = self.0.limit.admits(event.metadata(), *self.0.now.lock());
            self.0.admitted.fetch_add(u64::from(admitted), Relaxed);
        }
    }

    impl Asking {
        fn new() -> Arc<Self> {
            let limit = Limit::new(&["exempt"]);
            Arc::new(Self { limit, now: Mutex::new(Instant::now()), admitted: AtomicU64::new(0) })
        }

        /// How many of so many events, `every` so often, are admitted.
        fn of(self: &Arc<Self>, events: u32, every: Duration, event: fn()) -> u64 {
            let before = self.admitted.load(Relaxed);
            with_default(tracing_subscriber::registry().with(Layered(self.clone())), || {
                for _ in 0..events {
                    event();
                    *self.now.lock() += every;
                }
            });
            self.admitted.load(Relaxed) - before
        }
    }

    #[test]
    fn a_flood_from_one_place_is_a_burst_and_then_ten_a_second() {
        let asking = Asking::new();
        let flood: fn() = || tracing::warn!("flood");
        let minute = asking.of(60 * 4_200, Duration::from_secs(1) / 4_200, flood);
        assert!((880..=900).contains(&minute), "300, and 10 a second: {minute}");
        let other = asking.of(300, Duration::ZERO, || tracing::warn!("another place"));
        assert_eq!(other, 300, "has a limit of its own");
        let said = asking.limit.said();
        let line: serde_json::Value = serde_json::from_str(&said).expect("one line of JSON");
        assert_eq!(line["suppressed"], 60 * 4_200 - minute);
        assert_eq!((&line["level"], asking.limit.suppressed()), (&"WARN".into(), 60 * 4_200 - minute));
        assert!(line["of"].as_str().expect("text").contains("limit.rs:"), "{line}");
        assert_eq!(asking.limit.said(), "", "it is said once");
        *asking.now.lock() += Duration::from_secs(60);
        assert_eq!(asking.of(1_000, Duration::ZERO, flood), 300, "after a while it may burst again");
    }

    #[test]
    fn what_is_slow_asked_for_or_bounded_elsewhere_is_not_limited() {
        let asking = Asking::new();
        assert_eq!(asking.of(5_000, Duration::from_millis(100), || tracing::info!("slow")), 5_000);
        assert_eq!(asking.of(5_000, Duration::ZERO, || tracing::debug!("asked for")), 5_000);
        assert_eq!(asking.of(5_000, Duration::ZERO, || tracing::warn!(target: "exempt", "x")), 5_000);
        assert_eq!(asking.limit.suppressed(), 0);
    }
}
