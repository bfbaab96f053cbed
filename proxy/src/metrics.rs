//! What the request path counts. Each data thread writes to a shard of its own, without locks and without
//! read-modify-write; a scrape sums the shards. `metrics::exposition` names the families.

pub mod exposition;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use outrigger_policy::effective::MAX_ROUTES;
use parking_lot::Mutex;

use crate::rejection::Rejection;

/// Upper bounds of the latency buckets, in seconds; a last bucket takes the rest.
pub const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Names of workers that get series of their own. The names after them share the first one.
const WORKER_SLOTS: usize = 512;
/// The same for names of routes: those of a largest policy, and as many of policies before it.
const ROUTE_SLOTS: usize = 2 * (MAX_ROUTES + 2);
const OTHER: &str = "_other";
/// The route of requests that were refused before they had one.
const NO_ROUTE: &str = "_none";

/// A counter with one writer.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; called by the shard's own thread only.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes away; for gauges.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The value, as of some moment just now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Requests by status and latency, of each route or each worker. What almost every answer counts, a status of 200 that
/// came soon, lies in one cache line, and no pointer leads there: over hundreds of workers each line is one more to wait
/// for.
struct Requests {
    usual: Box<[Usual]>,
    /// Filled when a name first has one of these.
    rest: Box<[OnceLock<Box<Rest>>]>,
}

/// The first so many buckets of latency, up to 25 ms, are those of answers that come soon.
const SOON: usize = 6;

#[derive(Default)]
#[repr(align(64))]
struct Usual {
    /// Of all answers.
    latency_nanos: Counter,
    /// Those of status 200.
    ok: Counter,
    latency: [Counter; SOON],
}

struct Rest {
    latency: [Counter; BUCKETS.len() + 1 - SOON],
    /// Index: status - 100. The one of 200 stays 0.
    codes: [Counter; 500],
}

impl Requests {
    fn new(slots: usize) -> Self {
        Self {
            usual: (0..slots).map(|_| Usual::default()).collect(),
            rest: (0..slots).map(|_| OnceLock::new()).collect(),
        }
    }

    fn record(&self, slot: usize, status: u16, latency: Duration) {
        let usual = &self.usual[slot];
        match status {
            200 => usual.ok.add(1),
            status => self.rest(slot).codes[usize::from(status.clamp(100, 599)) - 100].add(1),
        }
        let seconds = latency.as_secs_f64();
        match BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len()) {
            soon if soon < SOON => usual.latency[soon].add(1),
            late => self.rest(slot).latency[late - SOON].add(1),
        }
        usual.latency_nanos.add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    fn rest(&self, slot: usize) -> &Rest {
        self.rest[slot].get_or_init(|| {
            Box::new(Rest {
                latency: std::array::from_fn(|_| Counter::default()),
                codes: std::array::from_fn(|_| Counter::default()),
            })
        })
    }

    /// The answers of a status, which is 100 to 599.
    fn of_status(&self, slot: usize, status: u16) -> u64 {
        match (status, self.rest[slot].get()) {
            (200, _) => self.usual[slot].ok.get(),
            (status, Some(rest)) => rest.codes[usize::from(status) - 100].get(),
            (_, None) => 0,
        }
    }

    /// The answers in a bucket of latency.
    fn of_latency(&self, slot: usize, bucket: usize) -> u64 {
        match (bucket.checked_sub(SOON), self.rest[slot].get()) {
            (None, _) => self.usual[slot].latency[bucket].get(),
            (Some(late), Some(rest)) => rest.latency[late].get(),
            (Some(_), None) => 0,
        }
    }

    /// The latencies of all answers, summed.
    fn nanos(&self, slot: usize) -> u64 {
        self.usual[slot].latency_nanos.get()
    }
}

/// One data thread's counts.
pub struct Shard {
    routes: Requests,
    workers: Requests,
    rejections: [Counter; Rejection::LABELS.len()],
    /// Connections open now.
    pub connections: Counter,
    /// Connections ever accepted.
    pub accepted: Counter,
    /// Requests being served now.
    pub active: Counter,
    /// Requests tried again.
    pub retries: Counter,
    /// Requests that were not tried again because the budget was used up.
    pub retries_over_budget: Counter,
    /// Requests that went over a new connection because the worker had closed the one that they were sent on.
    pub stale_connections: Counter,
    /// Requests that went to a second worker because the first was late.
    pub hedges: Counter,
    /// Those of them that the second answered.
    pub hedges_won: Counter,
    /// Upstream connections opened.
    pub connects: Counter,
    /// Those for which this machine had no descriptor, port or memory.
    pub connects_exhausted: Counter,
    /// Sessions that began, and sessions whose worker was gone.
    pub sessions: [Counter; 2],
    /// Requests sent to siblings, and served for them.
    pub siblings: [Counter; 2],
    /// Connections to the sibling port of those that are none.
    pub strangers: Counter,
    /// Answers of workers that broke off.
    pub broken_off: Counter,
    /// Bytes of bodies from clients and to clients.
    pub bytes: [Counter; 2],
}

/// All shards.
#[derive(Default)]
pub struct Metrics {
    shards: Mutex<Vec<Arc<Shard>>>,
}

impl Metrics {
    /// A shard for one more thread.
    pub fn shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::new());
        self.shards.lock().push(shard.clone());
        shard
    }

    /// Sums a counter over the shards.
    pub fn sum(&self, counter: impl Fn(&Shard) -> &Counter) -> u64 {
        self.shards.lock().iter().map(|shard| counter(shard).get()).fold(0, u64::wrapping_add)
    }
}

impl Shard {
    fn new() -> Self {
        Self {
            routes: Requests::new(ROUTE_SLOTS),
            workers: Requests::new(WORKER_SLOTS),
            rejections: std::array::from_fn(|_| Counter::default()),
            connections: Counter::default(),
            accepted: Counter::default(),
            active: Counter::default(),
            retries: Counter::default(),
            retries_over_budget: Counter::default(),
            stale_connections: Counter::default(),
            hedges: Counter::default(),
            hedges_won: Counter::default(),
            connects: Counter::default(),
            connects_exhausted: Counter::default(),
            sessions: Default::default(),
            siblings: Default::default(),
            strangers: Counter::default(),
            broken_off: Counter::default(),
            bytes: Default::default(),
        }
    }

    /// An answer to a client.
    pub fn answered(&self, route: usize, status: u16, latency: Duration) {
        self.routes.record(route, status, latency);
    }

    /// An answer of a worker; the latency is until its head.
    pub fn worker_answered(&self, worker: u16, status: u16, latency: Duration) {
        self.workers.record(usize::from(worker), status, latency);
    }

    /// How many answers of the proxy itself had this label.
    #[cfg(test)]
    pub(crate) fn rejected_as(&self, label: &str) -> u64 {
        let labels = Rejection::LABELS.iter().zip(&self.rejections);
        labels.filter(|(known, _)| **known == label).map(|(_, count)| count.get()).sum()
    }

    /// An answer of the proxy itself.
    pub fn rejected(&self, rejection: Rejection) {
        self.rejections[rejection.index()].add(1);
    }
}

/// Names that have series: a name keeps its slot for the life of the process, so that counters never restart.
struct Names {
    slots: usize,
    known: LazyLock<Mutex<Known>>,
}

/// The names in the order of their slots, and the slot of each.
struct Known {
    names: Vec<String>,
    slots: HashMap<String, usize>,
}

static ROUTES: Names = Names::of(ROUTE_SLOTS);
static WORKERS: Names = Names::of(WORKER_SLOTS);

/// The slot of requests that were refused before they had a route.
pub fn no_route() -> usize {
    static SLOT: OnceLock<usize> = OnceLock::new();
    *SLOT.get_or_init(|| route_slot(NO_ROUTE))
}

/// The slot of a route's series.
pub fn route_slot(name: &str) -> usize {
    ROUTES.slot(name)
}

/// The name of a route's slot.
pub fn route_name(slot: usize) -> Option<String> {
    ROUTES.known.lock().names.get(slot).cloned()
}

/// The slot of a worker's series.
pub fn worker_slot(name: &str) -> u16 {
    WORKERS.slot(name) as u16 // below `WORKER_SLOTS`
}

impl Known {
    fn first() -> Self {
        Self { names: vec![OTHER.to_owned()], slots: HashMap::from([(OTHER.to_owned(), 0)]) }
    }
}

impl Names {
    const fn of(slots: usize) -> Self {
        Self { slots, known: LazyLock::new(|| Mutex::new(Known::first())) }
    }

    fn slot(&self, name: &str) -> usize {
        let mut known = self.known.lock();
        if let Some(slot) = known.slots.get(name) {
            return *slot;
        }
        let slot = known.names.len();
        if slot == self.slots {
            return 0;
        }
        known.names.push(name.to_owned());
        known.slots.insert(name.to_owned(), slot);
        slot
    }

    /// The names in the order of their slots.
    fn all(&self) -> Vec<String> {
        self.known.lock().names.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_slots_share_the_first() {
        let names = Names::of(WORKER_SLOTS);
        assert_eq!(names.slot("a"), 1);
        assert_eq!(names.slot("b"), 2);
        assert_eq!(names.slot("a"), 1);
        assert_eq!(names.slot(OTHER), 0, "a worker of this name has no second series");
        for i in 0..2 * WORKER_SLOTS {
            assert!(names.slot(&format!("n{i}")) < WORKER_SLOTS);
        }
        assert_eq!(names.slot("one more"), 0);
        let known = names.all();
        assert_eq!((known.len(), known[0].as_str()), (WORKER_SLOTS, OTHER));
        assert_eq!(known.iter().collect::<std::collections::BTreeSet<_>>().len(), WORKER_SLOTS);
    }

    #[test]
    fn answers_are_counted_by_status_and_latency() {
        let requests = Requests::new(9);
        for (status, millis) in [(200, 1), (200, 2), (204, 3), (404, 20_000), (600, 0), (99, 0), (200, 60)] {
            requests.record(7, status, Duration::from_millis(millis));
        }
        let counts = [200, 204, 404, 599, 100, 500].map(|status| requests.of_status(7, status));
        assert_eq!(counts, [3, 1, 1, 1, 1, 0]);
        let latency: Vec<_> = (0..=BUCKETS.len()).map(|bucket| requests.of_latency(7, bucket)).collect();
        assert_eq!(latency, [2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(requests.nanos(7), 20_066_000_000);
        assert_eq!((requests.of_status(8, 200), requests.of_latency(8, 14), requests.nanos(8)), (0, 0, 0));
    }

    #[test]
    fn the_usual_answer_is_counted_in_one_cache_line() {
        assert_eq!(size_of::<Usual>(), 64);
        assert_eq!(BUCKETS[SOON - 1], 0.025, "seconds");
    }

    #[test]
    fn shards_are_summed() {
        let metrics = Metrics::default();
        metrics.shard().retries.add(2);
        metrics.shard().retries.add(3);
        assert_eq!(metrics.sum(|shard| &shard.retries), 5);
    }
}
