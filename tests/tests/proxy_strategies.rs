//! Every strategy over real workers: equal ones, one that is slow, one that fails fast, weights, workers that come and go.
//!
//! Shares are asserted as ranges: the machine is busy, and what a strategy promises is where the requests go, not how
//! fast.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proxy::worker::Worker as Member;
use system_tests::client::{Connection, get};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::workers::{self, Manner, Worker};

/// What an answer of a worker takes.
const TAKES: Duration = Duration::from_millis(4);
/// Requests that are under way at the same time, for each worker.
const AT_ONCE: usize = 4;

/// A strategy, as a policy says it.
struct Strategy {
    section: &'static str,
    /// It knows how fast workers answer, or how full they are.
    learns: bool,
}

const STRATEGIES: [Strategy; 10] = [
    Strategy { section: "type: RoundRobin", learns: false },
    Strategy { section: "type: Random", learns: false },
    Strategy { section: "type: LeastRequest", learns: false },
    Strategy { section: "type: PeakEwma", learns: true },
    Strategy {
        section: "type: ConsistentHash, consistentHash: {type: Header, header: x-key}",
        learns: false,
    },
    Strategy {
        section: "type: ConsistentHash, consistentHash: {type: QueryParam, queryParam: key, algorithm: Maglev}",
        learns: false,
    },
    Strategy {
        section: "type: ConsistentHash, consistentHash: {type: Path, hashBalanceFactor: 150}",
        learns: false,
    },
    Strategy {
        section: "type: BackendUtilization, backendUtilization: {blackoutPeriod: 0s, weightUpdatePeriod: 100ms}",
        learns: true,
    },
    Strategy { section: "type: Predictive, predictive: {interval: 100ms, horizon: 1s}", learns: true },
    Strategy { section: "type: CostAware, costAware: {latencyObjective: 1s}", learns: false },
];

/// The workers of one case and the proxy before them.
struct Case {
    proxy: RunningProxy,
    workers: Vec<Worker>,
}

impl Case {
    async fn start(strategy: &Strategy, manners: &[Manner], more: &str) -> Self {
        let mut started = Vec::new();
        for (i, manner) in manners.iter().enumerate() {
            started.push(workers::start(&format!("w{}", i + 1), *manner).await);
        }
        let addresses: Vec<SocketAddr> = started.iter().map(|worker| worker.address).collect();
        let spec = format!("loadBalancer: {{{}}}\n{more}", strategy.section);
        Self { proxy: start_proxy(&addresses, &spec), workers: started }
    }

    /// Sends so many requests, each with a key of its own, and says what part of them each worker answered.
    async fn shares(&self, requests: usize) -> BTreeMap<String, f64> {
        let clients = AT_ONCE * self.workers.len().min(8);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let to = self.proxy.data;
            tasks.spawn(async move {
                let mut connection = Connection::open(to).await.expect("connects");
                let mut counts = BTreeMap::<String, usize>::new();
                for i in 0..requests / clients {
                    let key = format!("key-{client}-{i}");
                    let request = get(&format!("/{key}?key={key}"), &[("x-key", &key)]);
                    let answer = connection.send(request).await.expect("an answer");
                    *counts.entry(answer.worker().to_owned()).or_default() += 1;
                }
                counts
            });
        }
        let mut sums = BTreeMap::<String, usize>::new();
        while let Some(counts) = tasks.join_next().await {
            counts.expect("no panic").into_iter().for_each(|(name, n)| *sums.entry(name).or_default() += n);
        }
        let all: usize = sums.values().sum();
        sums.into_iter().map(|(name, n)| (name, n as f64 / all as f64)).collect()
    }
}

fn manner() -> Manner {
    Manner { delay: TAKES, percent_each: 20, ..Manner::default() }
}

fn of(shares: &BTreeMap<String, f64>, name: &str) -> f64 {
    shares.get(name).copied().unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_workers_share_evenly() {
    for strategy in &STRATEGIES {
        let case = Case::start(strategy, &[manner(); 4], "").await;
        case.shares(160).await;
        let shares = case.shares(800).await;
        for i in 1..=4 {
            let share = of(&shares, &format!("w{i}"));
            assert!((0.12..0.42).contains(&share), "{}: {shares:?}", strategy.section);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ten_times_slower_gets_what_the_strategy_promises() {
    for strategy in &STRATEGIES {
        let slow = Manner { delay: 10 * TAKES, ..manner() };
        let case = Case::start(strategy, &[manner(), manner(), manner(), slow], "").await;
        case.shares(400).await;
        let share = of(&case.shares(800).await, "w4");
        let range = match strategy.section {
            section if strategy.learns || section.contains("LeastRequest") => {
                if section.contains("LeastRequest") { 0.0..0.16 } else { 0.0..0.09 }
            }
            section if section.contains("CostAware") => 0.0..0.16, // by load, as the objective holds
            section if section.contains("hashBalanceFactor") => 0.0..0.20, // its keys go on when it is full
            _ => 0.15..0.36,                                       // a share is a share
        };
        assert!(range.contains(&share), "{}: {share} is not in {range:?}", strategy.section);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_fast_attracts_no_traffic_where_failures_count() {
    for strategy in &STRATEGIES {
        let bad = Manner { delay: Duration::ZERO, status: 500, ..manner() };
        let case = Case::start(strategy, &[manner(), manner(), manner(), bad], "").await;
        case.shares(400).await;
        let share = of(&case.shares(800).await, "w4");
        // These do not look at the load: what one that fails gets is its share.
        let keeps =
            ["RoundRobin", "Random", "ConsistentHash"].iter().any(|kind| strategy.section.contains(kind));
        let most = if keeps { 0.36 } else { 0.03 };
        assert!(share <= most, "{}: {share}, at most {most}", strategy.section);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_shares() {
    let weights =
        "workers: [{name: worker-1, weight: 1}, {name: worker-2, weight: 2}, {name: worker-3, weight: 5}]";
    for strategy in &STRATEGIES {
        let case = Case::start(strategy, &[manner(); 3], weights).await;
        case.shares(120).await;
        let shares = case.shares(960).await;
        let [one, two, five] = ["w1", "w2", "w3"].map(|name| of(&shares, name));
        assert!((0.06..0.26).contains(&one), "{}: {shares:?}", strategy.section);
        assert!((0.14..0.40).contains(&two), "{}: {shares:?}", strategy.section);
        assert!((0.42..0.76).contains(&five), "{}: {shares:?}", strategy.section);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_added_gets_its_share_and_one_that_is_removed_nothing() {
    for strategy in &STRATEGIES {
        let case = Case::start(strategy, &[manner(); 3], "").await;
        case.shares(240).await;
        let added = workers::start("added", manner()).await;
        let member = Member::new("worker-added", added.address);
        case.proxy
            .control
            .change_workers(|workers| workers.iter().cloned().chain([member.clone()]).collect());
        case.shares(160).await;
        let shares = case.shares(640).await;
        let least = if strategy.learns { 0.03 } else { 0.10 }; // its first answers may have been late
        assert!((least..0.50).contains(&of(&shares, "added")), "{}: {shares:?}", strategy.section);
        case.proxy.control.change_workers(|workers| {
            workers.iter().filter(|worker| !Arc::ptr_eq(worker, &member)).cloned().collect()
        });
        let shares = case.shares(320).await;
        assert_eq!((shares.len(), of(&shares, "added")), (3, 0.0), "{}: {shares:?}", strategy.section);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_and_sixty_four_share() {
    for strategy in &STRATEGIES {
        let case = Case::start(strategy, &[manner(); 2], "").await;
        case.shares(80).await;
        let shares = case.shares(400).await;
        assert!((0.25..0.75).contains(&of(&shares, "w1")), "{}: {shares:?}", strategy.section);

        let case = Case::start(strategy, &[manner(); 64], "").await;
        case.shares(640).await;
        let shares = case.shares(1920).await;
        let most = shares.values().copied().fold(0.0, f64::max);
        assert!(
            62 <= shares.len() && most < 0.06,
            "{}: {} got some, {most} at most",
            strategy.section,
            shares.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_with_its_worker_and_comes_back_to_it() {
    for section in [&STRATEGIES[4], &STRATEGIES[5]] {
        let mut case = Case::start(section, &[manner(); 4], "retry: {numRetries: 2}").await;
        let mut connection = Connection::open(case.proxy.data).await.expect("connects");
        let mut homes = async |names: usize| {
            let mut homes = Vec::new();
            for i in 0..names {
                let key = format!("tenant-{i}");
                let request = get(&format!("/?key={key}"), &[("x-key", &key)]);
                homes.push(connection.send(request).await.expect("an answer").worker().to_owned());
            }
            homes
        };
        let before = homes(200).await;
        assert_eq!(homes(200).await, before, "{}", section.section);
        let address = case.workers[1].address;
        case.workers.remove(1).stop().await;
        let without = homes(200).await;
        for (before, without) in before.iter().zip(&without) {
            assert!(before == "w2" || before == without, "{}: a key of {before} moved", section.section);
            assert_ne!(without, "w2");
        }
        case.workers.insert(1, workers::start_at(address, "w2", manner()).await);
        let control = case.proxy.control.clone();
        let back = async {
            while !control.snapshot().workers[1].usable(Instant::now()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), back).await.expect("w2 is back");
        assert_eq!(homes(200).await, before, "{}", section.section);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_load_are_read_and_kept_from_clients() {
    let case = Case::start(&STRATEGIES[7], &[manner(); 2], "").await;
    let mut connection = Connection::open(case.proxy.data).await.expect("connects");
    let answer = connection.send(get("/", &[])).await.expect("an answer");
    assert_eq!(answer.header("endpoint-load-metrics"), None);
    let snapshot = case.proxy.control.snapshot();
    assert!(snapshot.workers.iter().any(|worker| worker.load.utilization.last() == Some(0.2)));
    case.proxy.apply("loadBalancer: {type: RoundRobin}");
    let answer = connection.send(get("/", &[])).await.expect("an answer");
    assert_eq!(answer.header("endpoint-load-metrics"), Some("TEXT cpu=0.20"), "nobody reads it now");
}
