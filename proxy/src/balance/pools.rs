//! Each strategy over pools of workers, in virtual time: how long requests take, who gets them, and how many are done.
//!
//! A worker is a process with one thread, as in `bench/worker`: one request after the other, a millisecond each and 15
//! times as long one time in 33. It reports how busy it was of late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::HeaderValue;
use outrigger_policy::effective::{self, LoadBalancerType, Strategy};

use super::laws::{ALL, members};
use super::measure::{Ended, How, Measure, orca};
use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Until then requests are not counted: a pool must have been learned.
const WARM_UP: Duration = Duration::from_secs(5);

/// Who sends requests.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Clients {
    /// So many a second, whatever becomes of them.
    Open(f64),
    /// So many, each of which sends the next request when it has its answer.
    Closed(u32),
}

/// What a worker takes for a request at a time.
type Takes = fn(Duration) -> Duration;

const WELL: Takes = |_| MILLI;
const SLOW: Takes = |_| 10 * MILLI;
/// A tenth of a millisecond more each second.
const DEGRADING: Takes = |at| MILLI + at / 10_000;

struct Process {
    takes: Takes,
    free_at: Duration,
    busy: Duration,
    measured_at: Duration,
    report: HeaderValue,
}

impl Process {
    fn new(takes: Takes) -> Self {
        Self {
            takes,
            free_at: Duration::ZERO,
            busy: Duration::ZERO,
            measured_at: Duration::ZERO,
            report: HeaderValue::from_static("TEXT cpu=0"),
        }
    }

    /// When a request that comes now is answered.
    fn serve(&mut self, at: Duration, random: &mut fastrand::Rng) -> Duration {
        let takes = (self.takes)(at) * if random.u32(..33) == 0 { 15 } else { 1 };
        self.free_at = self.free_at.max(at) + takes;
        self.busy += takes;
        let since = at - self.measured_at;
        if MILLI * 250 <= since {
            let ahead = self.free_at.saturating_sub(at);
            let load = (self.busy.saturating_sub(ahead)).as_secs_f64() / since.as_secs_f64();
            self.report = HeaderValue::from_str(&format!("TEXT cpu={load:.2}")).expect("a header");
            (self.busy, self.measured_at) = (ahead, at);
        }
        self.free_at
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Sends,
    Ends { place: usize, sent: Duration },
}

/// What happens when; the number decides between things that happen at the same time.
type Event = Reverse<(Duration, u64, What)>;

struct Pool {
    processes: Vec<Process>,
    members: Vec<Member>,
    strategy: Arc<dyn Balance>,
    random: fastrand::Rng,
    start: Instant,
    events: BinaryHeap<Event>,
}

/// What was seen.
struct Seen {
    /// Response times, sorted.
    took: Vec<Duration>,
    /// The share of each worker in each second.
    shares: Vec<Vec<f64>>,
    lasting: Duration,
}

impl Seen {
    fn percentile(&self, percent: usize) -> Duration {
        self.took[self.took.len() * percent / 100]
    }

    fn a_second(&self) -> f64 {
        self.took.len() as f64 / (self.lasting - WARM_UP).as_secs_f64()
    }

    /// The share of a worker in all these seconds.
    fn share(&self, place: usize, seconds: Range<usize>) -> f64 {
        let count = seconds.len() as f64;
        self.shares[seconds].iter().map(|shares| shares[place]).sum::<f64>() / count
    }
}

impl Pool {
    fn new(strategy: Strategy, takes: &[Takes], seed: u64) -> Self {
        let members = members(&vec![1; takes.len()]);
        let mut measure = Measure::default();
        measure.add(&strategy);
        let measure = Arc::new(measure);
        let start = Instant::now() + Duration::from_secs(1000);
        members.iter().for_each(|member| member.load.configure(&measure));
        Self {
            processes: takes.iter().map(|takes| Process::new(*takes)).collect(),
            strategy: build(&LoadBalancer { strategy, slow_start: None }, &members),
            members,
            random: fastrand::Rng::with_seed(seed),
            start,
            events: BinaryHeap::new(),
        }
    }

    fn happens(&mut self, at: Duration, what: What) {
        let number = self.random.u64(..);
        self.events.push(Reverse((at, number, what)));
    }

    /// Clients send from one time to the other; what they had sent by then is answered after it.
    fn run(&mut self, clients: Clients, from: Duration, until: Duration) -> Seen {
        let first = if let Clients::Closed(count) = clients { count } else { 1 };
        (0..first).for_each(|_| self.happens(from, What::Sends));
        let mut took = Vec::new();
        let mut counts = vec![vec![0u32; self.members.len()]; (until - from).as_secs() as usize];
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            match what {
                What::Sends if until <= at => {}
                What::Sends => {
                    counts[(at - from).as_secs() as usize][self.sends(at)] += 1;
                    if let Clients::Open(a_second) = clients {
                        let pause = -(1.0 - self.random.f64()).ln() / a_second;
                        self.happens(at + Duration::from_secs_f64(pause), What::Sends);
                    }
                }
                What::Ends { place, sent } => {
                    self.ends(place, sent, at);
                    if from + WARM_UP <= sent {
                        took.push(at - sent);
                    }
                    if let Clients::Closed(_) = clients {
                        self.happens(at + MILLI / 10, What::Sends);
                    }
                }
            }
        }
        took.sort_unstable();
        let shares = |counts: Vec<u32>| {
            let all = counts.iter().sum::<u32>().max(1);
            counts.iter().map(|count| f64::from(*count) / f64::from(all)).collect()
        };
        Seen { took, shares: counts.into_iter().map(shares).collect(), lasting: until - from }
    }

    fn sends(&mut self, at: Duration) -> usize {
        let usable = (0..self.members.len()).collect();
        let random = self.random.u64(..);
        let choice = Choice { usable: &usable, now: self.start + at, random, key: Some(mix(!random)) };
        let place = self.strategy.pick(&choice).expect("all are usable");
        self.members[place].load.in_flight.fetch_add(1, Relaxed);
        let due = self.processes[place].serve(at, &mut self.random);
        self.happens(due, What::Ends { place, sent: at });
        place
    }

    fn ends(&mut self, place: usize, sent: Duration, at: Duration) {
        let load = &self.members[place].load;
        let (mut head, ()) = http::Response::new(()).into_parts();
        head.headers.insert(orca::HEADER, self.processes[place].report.clone());
        load.heard(&mut head, self.start + at);
        load.ended(Ended { sent: self.start + sent, now: self.start + at, how: How::Answered });
        load.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The strategies that keep a pool fast of which one worker is slow.
fn that_look() -> impl Iterator<Item = Strategy> {
    const THEM: [LoadBalancerType; 4] = [
        LoadBalancerType::LeastRequest,
        LoadBalancerType::PeakEwma,
        LoadBalancerType::Predictive,
        LoadBalancerType::BackendUtilization,
    ];
    ALL.map(|strategy| strategy()).into_iter().filter(|strategy| THEM.contains(&strategy.kind()))
}

fn run(strategy: &Strategy, takes: &[Takes], clients: Clients) -> Seen {
    Pool::new(strategy.clone(), takes, 7).run(clients, Duration::ZERO, 25 * SECOND)
}

const FULL: Clients = Clients::Closed(8);
const HALF_FULL: Clients = Clients::Open(1000.0);
const NEARLY_IDLE: Clients = Clients::Open(300.0);

#[test]
fn workers_that_are_alike_share_and_are_kept_busy() {
    for strategy in that_look() {
        for clients in [FULL, HALF_FULL, NEARLY_IDLE] {
            let seen = run(&strategy, &[WELL; 4], clients);
            let shares = [0, 1, 2, 3].map(|place| seen.share(place, 5..25));
            let kind = strategy.kind();
            assert!(
                shares.iter().all(|share| (0.18..0.32).contains(share)),
                "{kind:?}, {clients:?}: {shares:?}"
            );
            assert!(seen.percentile(99) < 18 * MILLI, "{kind:?}, {clients:?}: {:?}", seen.percentile(99));
            // Four workers can do 2,800 a second.
            assert!(clients != FULL || 2600.0 < seen.a_second(), "{kind:?}: {}/s", seen.a_second());
        }
    }
}

#[test]
fn one_of_four_workers_ten_times_slower_does_not_double_the_99th_percentile() {
    for strategy in that_look() {
        for clients in [FULL, HALF_FULL, NEARLY_IDLE] {
            let [healthy, slow] = [&[WELL; 4], &[WELL, WELL, WELL, SLOW]]
                .map(|takes| run(&strategy, takes, clients).percentile(99));
            assert!(slow < 2 * healthy, "{:?}, {clients:?}: {slow:?} beside {healthy:?}", strategy.kind());
        }
    }
    let turns = run(&Strategy::RoundRobin, &[WELL, WELL, WELL, SLOW], HALF_FULL);
    assert!(SECOND < turns.percentile(99), "who takes turns drowns it: {:?}", turns.percentile(99));
}

#[test]
fn a_worker_that_slows_down_by_and_by_loses_most_of_its_requests_before_it_takes_twice_as_long() {
    let shares = [LoadBalancerType::Predictive, LoadBalancerType::PeakEwma, LoadBalancerType::LeastRequest]
        .map(|kind| {
            let strategy = that_look().find(|strategy| strategy.kind() == kind).expect("one of them");
            let seeds = 1..=5;
            let share = |seed| {
                let takes = [WELL, WELL, WELL, DEGRADING];
                let mut pool = Pool::new(strategy.clone(), &takes, seed);
                pool.run(HALF_FULL, Duration::ZERO, 10 * SECOND).share(3, 7..10) // it takes 1.7 to 2 ms
            };
            seeds.map(share).sum::<f64>() / 5.0
        });
    let [predictive, peak_ewma, least_request] = shares;
    assert!(predictive < 0.10, "{shares:?}");
    assert!(predictive < peak_ewma && peak_ewma < least_request, "{shares:?}");
}

#[test]
fn a_first_report_that_is_out_of_date_misleads_nobody() {
    let strategy = that_look().find(|strategy| strategy.kind() == LoadBalancerType::BackendUtilization);
    let Some(Strategy::BackendUtilization(settings)) = strategy else { panic!("one of them") };
    let strategy = effective::BackendUtilization { blackout_period: SECOND, ..settings };
    for report in ["TEXT cpu=0.00", "TEXT cpu=0.97"] {
        let mut pool = Pool::new(Strategy::BackendUtilization(strategy.clone()), &[WELL; 4], 7);
        for from in [0, 35u32] {
            pool.processes.iter_mut().for_each(|process| process.report = HeaderValue::from_static(report));
            let seen = pool.run(FULL, from * SECOND, (from + 5) * SECOND);
            for (second, shares) in seen.shares.iter().enumerate() {
                assert!(
                    shares.iter().all(|share| (0.1..0.4).contains(share)),
                    "{report}, {from} s + {second}: {shares:?}"
                );
            }
        }
    }
}
