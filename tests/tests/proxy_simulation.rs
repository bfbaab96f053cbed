//! A million requests in virtual time over the parts that choose a worker: strategies, breakers, slow start, weights,
//! changes of policy and of workers. After each step the invariants are checked.
//!
//! Every seed is a run of its own and always the same: `SIMULATION_SEED=7 cargo test -p system-tests --test
//! proxy_simulation` runs one again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use outrigger_proxy::balance::measure;
use outrigger_proxy::breaker::{Call, Outcome};
use outrigger_proxy::canary::Lane;
use outrigger_proxy::control::Control;
use outrigger_proxy::snapshot::{Snapshot, Source, Wish};
use outrigger_proxy::worker::{Permit, Worker};

const SEEDS: u64 = 20;
const REQUESTS: u64 = 50_000;
/// Half-open breakers let so many through, as the policies below say.
const PROBES: usize = 2;

const STRATEGIES: [&str; 10] = [
    "type: RoundRobin",
    "type: Random",
    "type: LeastRequest",
    "type: LeastRequest, leastRequest: {selectionMethod: NChoices, choiceCount: 3}",
    "type: PeakEwma",
    "type: ConsistentHash, consistentHash: {type: Path, virtualNodes: 64}",
    "type: ConsistentHash, consistentHash: {type: Path, algorithm: Maglev, tableSize: 1009, hashBalanceFactor: 130}",
    "type: BackendUtilization, backendUtilization: {blackoutPeriod: 1s}",
    "type: Predictive",
    "type: CostAware, costAware: {latencyObjective: 20ms}",
];

/// How a worker behaves for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Well,
    TenTimesSlower,
    FailsFast,
}

/// A worker's process: one request after the other.
struct Process {
    worker: Arc<Worker>,
    takes: Duration,
    mood: Mood,
    busy_until: Duration,
    /// Requests it has, and how many of them probe its breaker.
    has: u32,
    probes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Arrives,
    Ends(u64),
    Changes,
}

/// What happens when; the number decides between things that happen at the same time.
type Event = Reverse<(Duration, u64, What)>;

struct Sent {
    permit: Permit,
    worker: u32,
    began: Duration,
    fails: bool,
    probes: bool,
}

struct World {
    seed: u64,
    start: Instant,
    at: Duration,
    random: fastrand::Rng,
    control: Arc<Control>,
    processes: HashMap<u32, Process>,
    events: BinaryHeap<Event>,
    sent: HashMap<u64, Sent>,
    names: u32,
    arrived: u64,
    refused: u64,
    steps: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            start: start(),
            at: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            control: Control::new(Vec::new()),
            processes: HashMap::new(),
            events: BinaryHeap::new(),
            sent: HashMap::new(),
            names: 0,
            arrived: 0,
            refused: 0,
            steps: 0,
        };
        let count = if seed % 5 == 4 { 40 } else { 2 + seed as u32 % 7 };
        (0..count).for_each(|_| world.joins());
        world.another_policy();
        world.happens(Duration::ZERO, What::Arrives);
        world.happens(Duration::from_millis(500), What::Changes);
        world
    }

    fn run(mut self) -> u64 {
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            self.at = at;
            let touched = match what {
                What::Arrives => self.arrives(),
                What::Ends(request) => Some(self.ends(request)),
                What::Changes => self.changes(),
            };
            self.steps += 1;
            self.check(touched.filter(|_| !self.steps.is_multiple_of(1000)));
        }
        assert!(self.sent.is_empty(), "seed {}: every request ended", self.seed);
        for process in self.processes.values() {
            assert_eq!(process.worker.in_flight(), 0, "seed {}: {}", self.seed, process.worker.name);
        }
        assert!(
            self.refused < self.arrived / 10 * 9,
            "seed {}: {} of {}",
            self.seed,
            self.refused,
            self.arrived
        );
        self.arrived
    }

    fn now(&self) -> Instant {
        self.start + self.at
    }

    fn happens(&mut self, after: Duration, what: What) {
        let number = self.random.u64(..);
        self.events.push(Reverse((self.at + after, number, what)));
    }

    /// A request comes: the invariants of the choice are checked against the snapshot it was made by.
    fn arrives(&mut self) -> Option<u32> {
        self.arrived += 1;
        if self.arrived < REQUESTS {
            let workers = self.control.snapshot().workers.len() as u64;
            let pause = self.random.u64(1..9_000_000 / workers.max(1)); // half of what they can do
            self.happens(Duration::from_nanos(pause), What::Arrives);
        }
        let snapshot = self.control.snapshot();
        let now = self.now();
        let mut usable = snapshot.usable(now);
        let may = may_be_chosen(&snapshot, now);
        let key = Some(self.random.u64(..1000).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let lane = Lane::Old;
        let wish = Wish { pinned: None, usable: &mut usable, lane, random: self.random.u64(..), key };
        let route = snapshot.routes.last().expect("the default route");
        let Some(permit) = snapshot.choose(route, wish, now) else {
            assert!(
                may.is_empty(),
                "seed {}, step {}: {may:?} could have been chosen",
                self.seed,
                self.steps
            );
            self.refused += 1;
            return None;
        };
        let worker = permit.worker().clone();
        assert!(
            may.contains(&worker.id),
            "seed {}, step {}: {} may not be chosen",
            self.seed,
            self.steps,
            worker.name
        );
        self.send(permit, worker.id);
        Some(worker.id)
    }

    fn send(&mut self, permit: Permit, worker: u32) {
        let process = self.processes.get_mut(&worker).expect("a worker has a process");
        let fails = process.mood == Mood::FailsFast;
        let takes = match process.mood {
            Mood::FailsFast => Duration::from_micros(50),
            Mood::TenTimesSlower => 10 * process.takes,
            Mood::Well => process.takes,
        };
        process.busy_until = process.busy_until.max(self.at) + takes;
        let after = process.busy_until - self.at;
        let probes = permit.probes();
        process.has += 1;
        process.probes += usize::from(probes);
        let request = self.arrived;
        self.sent.insert(request, Sent { permit, worker, began: self.at, fails, probes });
        self.happens(after, What::Ends(request));
    }

    /// An answer is here; one client in fifty has gone away by then.
    fn ends(&mut self, request: u64) -> u32 {
        let now = self.now();
        let mut sent = self.sent.remove(&request).expect("a request ends once");
        let id = sent.worker;
        let process = self.processes.get_mut(&id).expect("a process");
        process.has -= 1;
        process.probes -= usize::from(sent.probes);
        if self.random.u8(..50) == 0 {
            return id; // dropped without an outcome
        }
        let outcome = Outcome::Answered(if sent.fails { 503 } else { 200 });
        if !sent.fails {
            sent.permit.answered(now);
        }
        let worker = sent.permit.worker().clone();
        let busy = if self.processes.get(&worker.id).is_some_and(|process| self.at < process.busy_until) {
            0.9
        } else {
            0.3
        };
        let report = format!("TEXT cpu={busy}");
        let (mut head, ()) = http::Response::builder()
            .header("endpoint-load-metrics", report)
            .body(())
            .expect("valid")
            .into_parts();
        worker.load.heard(&mut head, now);
        sent.permit.finish(Call { outcome, latency: self.at - sent.began }, now);
        id
    }

    /// A worker changes its mood, or its health, or comes, or goes; or another policy comes.
    fn changes(&mut self) -> Option<u32> {
        if self.arrived < REQUESTS {
            let pause = Duration::from_millis(self.random.u64(50..1500));
            self.happens(pause, What::Changes);
        }
        let mut ids: Vec<_> = self.control.snapshot().workers.iter().map(|worker| worker.id).collect();
        ids.sort_unstable();
        let id = ids.get(self.random.usize(..ids.len().max(1))).copied();
        match (self.random.u8(..12), id) {
            (0..=5, Some(id)) => {
                let moods = [Mood::Well, Mood::Well, Mood::TenTimesSlower, Mood::FailsFast];
                let mood = moods[self.random.usize(..moods.len())];
                self.processes.get_mut(&id).expect("a process").mood = mood;
            }
            (6 | 7, Some(id)) => {
                let worker = self.processes[&id].worker.clone();
                let healthy = !worker.healthy();
                worker.set_healthy(healthy);
                if healthy {
                    worker.load.set_ready(self.now()); // by the clock of this world
                }
            }
            (8, Some(id)) if 2 < ids.len() => {
                self.control
                    .change_workers(|workers| workers.iter().filter(|one| one.id != id).cloned().collect());
            }
            (8 | 9, _) => self.joins(),
            _ => self.another_policy(),
        }
        None
    }

    fn joins(&mut self) {
        self.names += 1;
        let worker = Worker::new(&format!("worker-{}", self.names), SocketAddr::from(([127, 0, 0, 1], 1)));
        worker.load.set_ready(self.now());
        let takes = Duration::from_micros(self.random.u64(500..4000));
        let process = Process {
            worker: worker.clone(),
            takes,
            mood: Mood::Well,
            busy_until: self.at,
            has: 0,
            probes: 0,
        };
        self.processes.insert(worker.id, process);
        self.control.change_workers(|workers| workers.iter().cloned().chain([worker]).collect());
    }

    /// Another strategy, weights and costs. Breakers and what is in flight must not notice; the same policy once more
    /// must change nothing at all.
    fn another_policy(&mut self) {
        let strategy = STRATEGIES[self.random.usize(..STRATEGIES.len())];
        let slow = if self.random.bool() { ", slowStart: {window: 2s}" } else { "" };
        let rules: String = (1..=self.names)
            .map(|i| {
                format!(
                    "{{name: worker-{i}, weight: {}, cost: {}}},",
                    self.random.u8(..6),
                    self.random.u8(1..4)
                )
            })
            .collect();
        let breaker = format!(
            "{{consecutiveFailures: 5, waitDurationInOpenState: 300ms, waitDurationJitter: 0,
               permittedNumberOfCallsInHalfOpenState: {PROBES}}}"
        );
        let spec = format!(
            "{{workers: [{rules}], loadBalancer: {{{strategy}{slow}}}, circuitBreaker: {{worker: {breaker}}}}}"
        );
        let spec = serde_yaml::from_str(&spec).expect("a spec");
        let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
        let states = |world: &Self| {
            let snapshot = world.control.snapshot();
            snapshot
                .workers
                .iter()
                .map(|worker| (worker.id, worker.breaker.view(world.now()), worker.in_flight()))
                .collect::<Vec<_>>()
        };
        let first = self.control.snapshot().source == Source::Default;
        let before = states(self);
        self.control.apply(&update, Source::File).unwrap_or_else(|violations| panic!("{violations:?}"));
        assert!(
            first || before == states(self),
            "seed {}, step {}: a push changed a breaker",
            self.seed,
            self.steps
        );
        let snapshot = self.control.snapshot();
        assert_eq!(self.control.apply(&update, Source::File), Ok(false));
        assert!(Arc::ptr_eq(&snapshot, &self.control.snapshot()));
    }

    /// After each step: what it touched; now and then: everything.
    fn check(&self, touched: Option<u32>) {
        match touched {
            Some(id) => self.check_process(&self.processes[&id]),
            None => self.processes.values().for_each(|process| self.check_process(process)),
        }
    }

    fn check_process(&self, process: &Process) {
        let Process { worker, has, probes, .. } = process;
        let at = || format!("seed {}, step {}: {}", self.seed, self.steps, worker.name);
        assert_eq!(worker.load.in_flight.load(Relaxed), *has, "{}", at());
        // Those of the half-open state before may still be on their way.
        let half_open = worker.breaker.half_open();
        assert!(!half_open || *probes <= 2 * PROBES, "{}: {probes} probes", at());
    }
}

/// A moment at which every run can begin alike: estimates count in parts of a second from a moment of the process, and in
/// ticks of 65,536 ns. In 128 seconds is a whole number of both.
fn start() -> Instant {
    const ALIKE: u64 = 128_000_000_000;
    let now = Instant::now();
    now + Duration::from_nanos(ALIKE - measure::nanos(now) % ALIKE)
}

/// The workers that a choice may give.
fn may_be_chosen(snapshot: &Snapshot, now: Instant) -> Vec<u32> {
    let weighted = snapshot.workers.iter().zip(&snapshot.weights);
    weighted
        .filter(|(worker, weight)| **weight != 0 && worker.usable(now))
        .map(|(worker, _)| worker.id)
        .collect()
}

#[test]
fn a_million_requests_keep_the_invariants() {
    if let Ok(seed) = std::env::var("SIMULATION_SEED") {
        World::new(seed.parse().expect("SIMULATION_SEED is a number")).run();
        return;
    }
    let runs = std::thread::scope(|scope| {
        let half =
            |first: u64| move || (first..SEEDS).step_by(2).map(|seed| World::new(seed).run()).sum::<u64>();
        let halves = [0, 1].map(|first| scope.spawn(half(first)));
        halves.map(|half| half.join().expect("every invariant holds"))
    });
    assert_eq!(runs.iter().sum::<u64>(), 1_000_000);
}

#[test]
fn a_seed_is_always_the_same_run() {
    let end = |seed| {
        let mut world = World::new(seed);
        for _ in 0..5000 {
            let Some(Reverse((at, _, what))) = world.events.pop() else { break };
            world.at = at;
            match what {
                What::Arrives => _ = world.arrives(),
                What::Ends(request) => _ = world.ends(request),
                What::Changes => _ = world.changes(),
            }
        }
        (world.at, world.arrived, world.refused, world.sent.len())
    };
    assert_eq!(end(3), end(3));
}
