//! Each strategy over workers of which some fail, in every way there is, in virtual time: how many requests they get
//! meanwhile, and how soon they get their share again once they are well.
//!
//! Here is no breaker, no health check and no retry: the strategy alone looks after the requests. A worker is a process
//! with one thread, and takes ten milliseconds for a request.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use http::response;
use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};

use super::*;
use crate::breaker::{Call, Failure, Outcome};
use crate::canary::Lane;
use crate::control::Control;
use crate::rejection::Rejection;
use crate::snapshot::{Snapshot, Source, Wish};
use crate::worker::{Permit, Worker};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const TAKES: Duration = Duration::from_millis(10);

/// How a worker fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It answers 500 at once.
    Answers500,
    /// It accepts no connection.
    Refuses,
    /// Nobody answers where it was.
    IsUnreachable,
    /// It closes the connection without an answer.
    Resets,
    /// Its answer is none.
    BreaksTheProtocol,
    /// It never answers.
    Hangs,
    /// Its answer begins well and breaks off.
    BreaksOff,
    /// It answers gRPC calls with a status that says so after the head.
    FailsInTrailers,
}

const WAYS: [Way; 8] = [
    Way::Answers500,
    Way::Refuses,
    Way::IsUnreachable,
    Way::Resets,
    Way::BreaksTheProtocol,
    Way::Hangs,
    Way::BreaksOff,
    Way::FailsInTrailers,
];

/// Who says how full they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reports {
    Nobody,
    /// A worker that answers well.
    Well,
    /// A worker that fails too, where it has a head to say it in: it has nothing to do.
    All,
}

/// Who sends requests.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Clients {
    /// So many a second.
    Open(u32),
    /// So many, each of which sends the next request when it has its answer.
    Closed(u32),
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
struct Cell {
    way: Way,
    reports: Reports,
    clients: Clients,
    workers: usize,
    /// How many of them fail.
    failing: usize,
    /// How long one that is well takes for a request.
    takes: Duration,
    /// How many seconds those that fail were well before.
    well_for: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Sends,
    Ends(usize),
}

/// What happens when; the number decides between things that happen at the same time.
type Event = Reverse<(Duration, u64, What)>;

struct Sent {
    permit: Permit,
    place: usize,
    at: Duration,
    fails: bool,
}

/// One thread, one request after the other.
#[derive(Clone, Copy, Default)]
struct Process {
    free_at: Duration,
    measured_at: Duration,
    busy: Duration,
    /// How busy it was in the last quarter of a second.
    load: f64,
}

impl Process {
    /// When a request that comes now is answered.
    fn serve(&mut self, takes: Duration, at: Duration) -> Duration {
        self.free_at = self.free_at.max(at) + takes;
        self.busy += takes;
        let since = at - self.measured_at;
        if MILLI * 250 <= since {
            let ahead = self.free_at - at;
            self.load = self.busy.saturating_sub(ahead).as_secs_f64() / since.as_secs_f64();
            (self.busy, self.measured_at) = (ahead, at);
        }
        self.free_at
    }
}

struct World {
    cell: Cell,
    snapshot: Arc<Snapshot>,
    start: Instant,
    random: fastrand::Rng,
    events: BinaryHeap<Event>,
    sent: Vec<Option<Sent>>,
    processes: Vec<Process>,
    /// Those that fail do so from and until then.
    failing: std::ops::Range<Duration>,
    /// Of each second: requests to those that fail, and all.
    seconds: Vec<[u32; 2]>,
}

impl World {
    fn new(load_balancer: &str, cell: Cell) -> Self {
        let worker = |i: usize| Worker::new(&format!("worker-{i}"), ([127, 0, 0, 1], 1).into());
        let control = Control::new((0..cell.workers).map(worker).collect());
        let spec = serde_yaml::from_str(&format!("{{loadBalancer: {{{load_balancer}}}}}")).expect("a spec");
        let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
        control.apply(&update, Source::File).expect("valid");
        Self {
            cell,
            snapshot: control.snapshot(),
            start: Instant::now() + Duration::from_secs(1000),
            random: fastrand::Rng::with_seed(7),
            events: BinaryHeap::new(),
            sent: Vec::new(),
            processes: vec![Process::default(); cell.workers],
            failing: Duration::from_secs(cell.well_for as u64)..Duration::MAX,
            seconds: Vec::new(),
        }
    }

    fn happens(&mut self, at: Duration, what: What) {
        let number = self.random.u64(..);
        self.events.push(Reverse((at, number, what)));
    }

    /// Clients send in these seconds; what they had sent by then is answered after them.
    fn run(&mut self, clients: Clients, seconds: std::ops::Range<usize>) {
        self.seconds.resize(seconds.end, [0; 2]);
        let [from, until] = [seconds.start, seconds.end].map(|second| Duration::from_secs(second as u64));
        let first = if let Clients::Closed(count) = clients { count } else { 1 };
        (0..first).for_each(|_| self.happens(from, What::Sends));
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            match what {
                What::Sends if until <= at => {}
                What::Sends => {
                    self.sends(at);
                    if let Clients::Open(a_second) = clients {
                        let pause = -(1.0 - self.random.f64()).ln() / f64::from(a_second);
                        self.happens(at + Duration::from_secs_f64(pause), What::Sends);
                    }
                }
                What::Ends(request) => {
                    self.ends(request, at);
                    if let Clients::Closed(_) = clients {
                        self.happens(at + MILLI / 10, What::Sends);
                    }
                }
            }
        }
    }

    fn sends(&mut self, at: Duration) {
        let now = self.start + at;
        let mut usable = self.snapshot.usable(now);
        let (random, key) = (self.random.u64(..), Some(self.random.u64(..)));
        let wish = Wish { pinned: None, usable: &mut usable, lane: Lane::Old, random, key };
        let permit = self.snapshot.choose(&self.snapshot.routes[0], wish, now).expect("all are usable");
        let id = permit.worker().id;
        let place = self.snapshot.workers.iter().position(|worker| worker.id == id).expect("one of them");
        let fails = place < self.cell.failing && self.failing.contains(&at);
        let counts = &mut self.seconds[at.as_secs() as usize];
        counts[0] += u32::from(place < self.cell.failing);
        counts[1] += 1;
        let due = match self.cell.way {
            Way::Hangs if fails => at + 2 * SECOND,
            Way::IsUnreachable if fails => at + SECOND,
            _ if fails => at + MILLI,
            _ => self.processes[place].serve(self.cell.takes, at),
        };
        self.sent.push(Some(Sent { permit, place, at, fails }));
        self.happens(due, What::Ends(self.sent.len() - 1));
    }

    fn ends(&mut self, request: usize, at: Duration) {
        let Sent { mut permit, place, at: sent, fails } = self.sent[request].take().expect("it ends once");
        let now = self.start + at;
        let call = |outcome| Call { outcome, latency: at - sent };
        if !fails {
            self.heard(&permit, self.cell.reports != Reports::Nobody, self.processes[place].load, now);
            permit.answered(now);
            permit.finish(call(Outcome::Answered(200)), now);
            return;
        }
        let says_so = self.cell.reports == Reports::All;
        match self.cell.way {
            Way::Answers500 => {
                self.heard(&permit, says_so, 0.0, now);
                permit.finish(call(Outcome::Answered(500)), now);
            }
            Way::Refuses => permit.refused(Rejection::ConnectFailed, now),
            Way::IsUnreachable => permit.refused(Rejection::ConnectTimeout, now),
            Way::Resets => permit.refused(Rejection::WorkerReset, now),
            Way::BreaksTheProtocol => permit.refused(Rejection::WorkerProtocol("a test"), now),
            Way::Hangs => permit.refused(Rejection::WorkerTimeout, now),
            Way::BreaksOff => {
                self.heard(&permit, says_so, 0.0, now);
                permit.answered(now);
                permit.broke_off(Failure::Reset, now);
            }
            Way::FailsInTrailers => {
                self.heard(&permit, says_so, 0.0, now);
                permit.answered(now);
                permit.finish(call(Outcome::Grpc(14)), now);
            }
        }
    }

    /// The head of an answer, with a report or without.
    fn heard(&self, permit: &Permit, says_so: bool, utilization: f64, now: Instant) {
        let mut answer = http::Response::builder();
        if says_so {
            answer = answer.header("endpoint-load-metrics", format!("TEXT cpu={utilization:.2}"));
        }
        let (mut head, ()): (response::Parts, ()) = answer.body(()).expect("an answer").into_parts();
        permit.worker().load.heard(&mut head, now);
    }

    /// Of all requests of these seconds, the part that went to those that fail.
    fn share(&self, seconds: std::ops::Range<usize>) -> f64 {
        let [to, all] =
            self.seconds[seconds].iter().fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
        f64::from(to) / f64::from(all.max(1))
    }
}

/// A strategy, and what is promised of it.
struct Promise {
    load_balancer: &'static str,
    /// Whether workers that fail keep the share that their weights say, or get nearly nothing.
    keeps_share: bool,
    /// How many seconds after they are well again they have half of their share.
    recovers: usize,
}

const fn promise(load_balancer: &'static str, keeps_share: bool, recovers: usize) -> Promise {
    Promise { load_balancer, keeps_share, recovers }
}

const PROMISES: [Promise; 10] = [
    promise("type: RoundRobin", true, 1),
    promise("type: Random", true, 1),
    promise("type: LeastRequest", false, 20),
    promise("type: LeastRequest, leastRequest: {selectionMethod: NChoices}", false, 20),
    promise("type: PeakEwma", false, 90),
    promise("type: ConsistentHash, consistentHash: {type: Path}", true, 1),
    promise("type: ConsistentHash, consistentHash: {type: Path, hashBalanceFactor: 125}", false, 30),
    promise("type: BackendUtilization", false, 30),
    promise("type: Predictive", false, 90),
    promise("type: CostAware", false, 20),
];

const FULL: Cell = Cell {
    way: Way::Answers500,
    reports: Reports::Nobody,
    clients: Clients::Closed(8),
    workers: 4,
    failing: 1,
    takes: TAKES,
    well_for: 0,
};
/// Long enough for reports to count.
const A_GOOD_TIME: usize = 12;
const FAILS_FOR: usize = 10;

/// Under load from the start and after a good time, nearly idle, of many, and where most fail.
const SITUATIONS: [Cell; 5] = [
    FULL,
    Cell { well_for: A_GOOD_TIME, ..FULL },
    Cell { clients: Clients::Open(60), well_for: A_GOOD_TIME, ..FULL },
    Cell { clients: Clients::Closed(32), workers: 16, well_for: A_GOOD_TIME, ..FULL },
    Cell { clients: Clients::Open(60), failing: 3, well_for: A_GOOD_TIME, ..FULL },
];

fn keeps(promise: &Promise, cell: Cell) {
    let (mut world, at) = (World::new(promise.load_balancer, cell), || (promise.load_balancer, cell));
    let end = cell.well_for + FAILS_FOR;
    world.run(cell.clients, 0..end);
    let share = world.share(cell.well_for..end);
    let fair = cell.failing as f64 / cell.workers as f64;
    let [first, _] = world.seconds[cell.well_for];
    if promise.keeps_share {
        assert!(share < fair + 0.06, "{:?}: {share}", at());
    } else {
        let most = if cell.failing == 1 { 0.015 } else { 0.10 };
        assert!(share < most, "{:?}: {share}", at());
        // Those that take their time have what all have in flight before anything is known.
        let takes_time = matches!(cell.way, Way::Hangs | Way::IsUnreachable);
        assert!(takes_time || first <= 6 * cell.failing as u32, "{:?}: {first} in the first second", at());
    }
    world.failing.end = Duration::from_secs(end as u64);
    let from = end + 3; // the last of them have ended
    let is_well = |second: &usize| {
        world.run(Clients::Open(60), *second..second + 1);
        fair / 2.0 < world.share(*second - 1..second + 1)
    };
    let recovered = (from + 1..from + promise.recovers + 2).find(is_well);
    assert!(recovered.is_some(), "{:?}: it had no share again after {} s", at(), promise.recovers);
}

#[test]
fn however_a_worker_fails_it_attracts_nothing_and_has_its_share_again_when_it_is_well() {
    let each = |promise: &Promise| {
        let by_reports = promise.load_balancer.contains("BackendUtilization");
        for (way, situation) in WAYS.iter().flat_map(|way| SITUATIONS.map(|situation| (*way, situation))) {
            for reports in [Reports::Nobody, Reports::Well, Reports::All] {
                if by_reports || reports == Reports::Nobody {
                    keeps(promise, Cell { way, reports, ..situation });
                }
            }
        }
    };
    std::thread::scope(|scope| PROMISES.iter().for_each(|promise| _ = scope.spawn(|| each(promise))));
}

/// Where a request takes seconds a worker that fails at once could fail hundreds of them before the others have served one.
#[test]
fn where_requests_take_long_one_that_fails_has_no_more_than_its_share() {
    for promise in &PROMISES {
        for way in [Way::Answers500, Way::BreaksOff] {
            let cell = Cell { way, takes: 2 * SECOND, ..FULL };
            let mut world = World::new(promise.load_balancer, cell);
            world.run(cell.clients, 0..120);
            let share = world.share(0..120);
            assert!(share < 0.3, "{}, {cell:?}: {share}", promise.load_balancer);
        }
    }
}

/// By whatever a client does alone: it goes away, breaks off its body, does not wait, or asks for what is not there.
#[test]
fn nothing_that_a_client_does_is_a_failure() {
    let world = World::new("type: BackendUtilization", FULL);
    let (worker, now) = (&world.snapshot.workers[0], world.start);
    let clean = |what: &str| assert!(worker.load.failing.is_over() && worker.failures() == 0, "{what}");
    let permit = || worker.acquire(now).expect("there is no breaker");
    drop(permit());
    let mut begun = permit();
    begun.answered(now);
    drop(begun);
    clean("it went away");
    for rejection in [Rejection::ClientBody, Rejection::CLIENT_STOOD_STILL, Rejection::DeadlineExceeded] {
        permit().refused(rejection, now);
        clean(rejection.label());
    }
    for status in (100..500).chain([501, 505]) {
        let mut permit = permit();
        permit.answered(now);
        permit.finish(Call { outcome: Outcome::Answered(status), latency: MILLI }, now);
        clean(&status.to_string());
    }
    permit().finish(Call { outcome: Outcome::Answered(500), latency: MILLI }, now);
    assert!(!worker.load.failing.is_over());
}
