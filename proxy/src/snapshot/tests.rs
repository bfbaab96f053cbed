//! What survives a change: the table of `docs/what-survives.md`, row by row, and the property that the same policy
//! pushed again changes nothing.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;
use crate::balance::measure::{Ended, How, Tick};
use crate::balance::{Choice, Usable};
use crate::breaker::{Call, Outcome};
use crate::control::Control;
use crate::worker::Permit;

/// Everything that a change could touch.
const BASE: &str = "
workers: [{name: a, weight: 2}, {name: b, weight: 1}, {name: c, weight: 1}]
loadBalancer: {type: RoundRobin}
circuitBreaker: {worker: {consecutiveFailures: 5}}
rateLimit: {rules: [{name: one, limit: {requests: 10, unit: Hour}}]}
retry: {numRetries: 1}
routes:
- {name: ewma, match: {path: {value: /ewma}}, loadBalancer: {type: PeakEwma}}
- {name: forecast, match: {path: {value: /forecast}}, loadBalancer: {type: Predictive}}
- {name: reports, match: {path: {value: /reports}}, loadBalancer: {type: BackendUtilization}}
- {name: costs, match: {path: {value: /costs}}, loadBalancer: {type: CostAware}}
- {name: hash, match: {path: {value: /hash}}, loadBalancer: {type: ConsistentHash, consistentHash: {type: Path, virtualNodes: 128}}}
";

/// What changes, the route whose strategy is looked at, and what stands in the place of what.
const CHANGES: [[&str; 4]; 16] = [
    ["`loadBalancer.type`", "default", "RoundRobin", "Random"],
    ["settings of the strategy", "ewma", "type: PeakEwma", "type: PeakEwma, peakEwma: {decayTime: 1s}"],
    ["`consistentHash.virtualNodes`", "hash", "128", "77"],
    ["`loadBalancer.slowStart`", "default", "type: RoundRobin", "type: RoundRobin, slowStart: {window: 1m}"],
    ["`workers[].weight`", "default", "{name: a, weight: 2}", "{name: a, weight: 3}"],
    ["`workers[].cost`", "costs", "{name: b, weight: 1}", "{name: b, weight: 1, cost: 2}"],
    ["`workers[].protocol`", "default", "{name: b, weight: 1}", "{name: b, weight: 1, protocol: HTTP1}"],
    ["`sessionPersistence`", "default", "retry:", "sessionPersistence: {}\nretry:"],
    ["numbers of a `rateLimit` rule", "default", "requests: 10", "requests: 20"],
    ["the name of a `rateLimit` rule", "default", "name: one", "name: other"],
    ["`retry`, `timeout`, `drain`", "default", "numRetries: 1", "numRetries: 2"],
    ["thresholds of `circuitBreaker`", "default", "consecutiveFailures: 5", "consecutiveFailures: 9"],
    ["a route is added", "default", "routes:", "routes:\n- {name: more, match: {path: {value: /more}}}"],
    [
        "a route is removed",
        "default",
        "- {name: costs, match: {path: {value: /costs}}, loadBalancer: {type: CostAware}}",
        "",
    ],
    [
        "a route gets a `rateLimit` of its own",
        "ewma",
        "{name: ewma,",
        "{name: ewma, rateLimit: {rules: [{name: one, limit: {requests: 10, unit: Hour}}]},",
    ],
    ["`circuitBreaker` is removed", "default", "circuitBreaker: {worker: {consecutiveFailures: 5}}", ""],
];

fn update(spec: &str) -> Update {
    let spec = serde_yaml::from_str(spec).expect("a spec");
    Update::new(Merged { spec, ..Merged::default() }, KeyRing::default())
}

struct World {
    control: Arc<Control>,
    now: Instant,
    permits: Vec<Permit>,
}

/// What is to be seen of one worker.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    estimates: [Option<f32>; 5],
    in_flight: u32,
    breaker: crate::breaker::View,
    ready_at: u64,
}

impl World {
    /// A world in which every state has left its first value.
    fn new() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let control = Control::new(["a", "b", "c"].map(|name| Worker::new(name, address)).to_vec());
        control.apply(&update(BASE), Source::File).expect("valid");
        let now = Instant::now();
        let mut world = Self { control, now, permits: Vec::new() };
        for worker in &world.control.snapshot().workers {
            let mut permit = worker.acquire(now).expect("closed");
            let call = Call { outcome: Outcome::Answered(500), latency: Duration::from_millis(30) };
            permit.finish(call, now);
            world.permits.push(permit); // still in flight
            for step in 0..20u32 {
                let sent = now + step * Duration::from_millis(100);
                worker.load.ended(Ended { sent, now: sent + Duration::from_millis(7), how: How::Answered });
            }
            (0..4).for_each(|_| worker.load.ended(Ended { sent: now, now, how: How::Failed }));
            let answer = http::Response::builder().header("endpoint-load-metrics", "TEXT cpu=0.4").body(());
            worker.load.heard(&mut answer.expect("valid").into_parts().0, now);
        }
        let route = world.route("default");
        route.balance.pick(&world.choice(None));
        assert!(route.allowance.limits[0].check(b"client", now).allowed);
        world
    }

    fn choice(&self, key: Option<u64>) -> Choice<'static> {
        const ALL: &[usize] = &[0, 1, 2];
        let all: &'static Usable = Box::leak(Box::new(ALL.iter().copied().collect()));
        Choice { usable: all, now: self.now, random: 0, key }
    }

    fn route(&self, name: &str) -> Arc<Route> {
        let snapshot = self.control.snapshot();
        let found = snapshot.routes.iter().find(|route| route.policy.name == name);
        found.expect("the route").clone()
    }

    fn seen(&self) -> BTreeMap<String, Seen> {
        let tick = Tick::of(self.now);
        let seen = |worker: &Arc<Worker>| {
            let load = &worker.load;
            let seen = Seen {
                estimates: [
                    load.response_time.at(tick, 10.0),
                    Some(load.forecast.line().0),
                    load.utilization.last(),
                    Some(load.budget.at(tick)),
                    Some(load.counts_as(self.now) as f32),
                ],
                in_flight: load.in_flight.load(Relaxed),
                breaker: worker.breaker.view(self.now),
                ready_at: load.ready_at(),
            };
            (worker.name.clone(), seen)
        };
        self.control.snapshot().workers.iter().map(seen).collect()
    }

    /// The worker's name for each of many keys.
    fn homes(&self) -> Vec<String> {
        let snapshot = self.control.snapshot();
        let route = self.route("hash");
        let all: Usable = (0..snapshot.workers.len()).collect();
        let home = |key: u64| {
            let choice = Choice { usable: &all, now: self.now, random: 0, key: Some(key) };
            snapshot.workers[route.balance.pick(&choice).expect("usable")].name.clone()
        };
        (0..2000).map(home).collect()
    }
}

/// Changes something and says what became of each state, in the order of the table's columns.
fn outcome(route: &str, change: impl Fn(&Control), changed: &[&str]) -> [&'static str; 7] {
    let world = World::new();
    let (before, seen, homes) = (world.route(route), world.seen(), world.homes());
    let bucket = before.allowance.limits[0].clone();
    change(&world.control);
    let (after, now_seen, now_homes) = (world.route(route), world.seen(), world.homes());
    let kept = |same: bool| if same { "kept" } else { "reset" };
    let each = |same: fn(&Seen, &Seen) -> bool| {
        kept(seen.iter().filter_map(|(name, one)| Some((one, now_seen.get(name)?))).all(|(a, b)| same(a, b)))
    };
    let moved: Vec<_> = homes.iter().zip(&now_homes).filter(|(before, after)| before != after).collect();
    let touches = |name: &String| changed.contains(&name.as_str());
    let keys = match moved.len() {
        0 => "kept",
        _ if moved.iter().all(|(before, after)| touches(before) || touches(after)) => "rescaled",
        _ => "reset",
    };
    let limit = &after.allowance.limits[0];
    let left = limit.check(b"client", world.now).remaining;
    let buckets = match left {
        _ if Arc::ptr_eq(limit, &bucket) => "kept",
        left if left + 1 < limit.limit().burst => "rescaled",
        _ => "reset",
    };
    [
        kept(Arc::ptr_eq(&before.balance, &after.balance)),
        each(|a, b| a.estimates == b.estimates),
        each(|a, b| a.in_flight == b.in_flight),
        each(|a, b| a.breaker == b.breaker),
        each(|a, b| a.ready_at == b.ready_at),
        keys,
        buckets,
    ]
}

/// The rows of the table in the docs: what changes, and what becomes of each state.
fn table() -> Vec<(String, Vec<String>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/what-survives.md");
    let text = std::fs::read_to_string(path).expect("the page");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = rows.skip(1).map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>());
    cells.map(|mut cells| (cells.remove(0), cells)).collect()
}

#[test]
fn the_table_of_what_survives_is_true() {
    let mut found = vec![(
        "nothing: the same policy again",
        outcome("default", |control| _ = control.apply(&update(BASE), Source::File), &[]),
    )];
    for [what, route, from, to] in CHANGES {
        assert!(BASE.contains(from), "{from}");
        let after = update(&BASE.replacen(from, to, 1));
        let change = |control: &Control| {
            assert_eq!(control.apply(&after, Source::File), Ok(true), "{what}");
        };
        found.push((what, outcome(route, change, &["a"])));
    }
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let add = |control: &Control| {
        let new = Worker::new("d", address);
        control.change_workers(|workers| workers.iter().cloned().chain([new]).collect());
    };
    found.push(("a worker is added", outcome("default", add, &["d"])));
    let remove = |control: &Control| control.change_workers(|workers| workers[..2].to_vec());
    found.push(("a worker is removed", outcome("default", remove, &["c"])));
    let switch = |control: &Control| {
        let strategy = effective::Strategy::Random;
        control.switch(Switch {
            route: Some(String::from("default")),
            section: Default::default(),
            load_balancer: effective::LoadBalancer { strategy, slow_start: None },
            reason: None,
            until: Instant::now() + Duration::from_secs(60),
        });
    };
    found.push(("a switch by `/api/strategy`", outcome("default", switch, &[])));
    let mut found: Vec<_> =
        found.into_iter().map(|(what, row)| (what.to_owned(), row.map(str::to_owned).to_vec())).collect();
    let mut documented = table();
    found.sort();
    documented.sort();
    assert_eq!(found, documented, "docs/what-survives.md says otherwise");
}

fn strategies() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "type: RoundRobin",
        "type: Random",
        "type: LeastRequest",
        "type: PeakEwma",
        "type: ConsistentHash, consistentHash: {type: SourceIP, virtualNodes: 32}",
        "type: ConsistentHash, consistentHash: {type: Path, algorithm: Maglev, tableSize: 251}",
        "type: BackendUtilization",
        "type: Predictive",
        "type: CostAware",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// From the same source it is not even built anew; from another (from disk at first, then from the operator) it
    /// is, and everything in it is what it was.
    #[test]
    fn the_same_policy_again_changes_nothing(
        strategy in strategies(),
        weights in prop::collection::vec(0..5u32, 3),
        slow_start in any::<bool>(),
        asked in prop::collection::vec(any::<u64>(), 0..30),
    ) {
        let rules: String =
            ["a", "b", "c"].iter().zip(&weights).map(|(name, w)| format!("{{name: {name}, weight: {w}}},")).collect();
        let slow = if slow_start { ", slowStart: {window: 1m}" } else { "" };
        let spec = format!(
            "{{workers: [{rules}], loadBalancer: {{{strategy}{slow}}}, circuitBreaker: {{worker: {{}}}},
              rateLimit: {{rules: [{{name: one, limit: {{requests: 5}}}}]}}}}"
        );
        let world = World::new();
        world.control.apply(&update(&spec), Source::Disk).expect("valid");
        let before = world.control.snapshot();
        for random in asked {
            before.routes[0].balance.pick(&Choice { random, ..world.choice(Some(random)) });
        }
        let seen = world.seen();
        prop_assert_eq!(world.control.apply(&update(&spec), Source::Disk), Ok(false));
        prop_assert!(Arc::ptr_eq(&before, &world.control.snapshot()));
        prop_assert_eq!(world.control.apply(&update(&spec), Source::Operator), Ok(true));
        let after = world.control.snapshot();
        prop_assert_eq!(&seen, &world.seen());
        prop_assert_eq!(&before.policy, &after.policy);
        for (before, after) in before.routes.iter().zip(&after.routes) {
            prop_assert!(Arc::ptr_eq(&before.balance, &after.balance));
            prop_assert!(before.allowance.limits.iter().zip(&after.allowance.limits).all(|(a, b)| Arc::ptr_eq(a, b)));
        }
        prop_assert_eq!(before.workers.len(), after.workers.len());
    }
}

/// The policy's rule, and one of a route's own.
const LIMITS: [&str; 2] = [
    "rateLimit: {rules: [{name: one, limit: {requests: 3, unit: Hour}}]}",
    "rateLimit: {rules: [{name: one, limit: {requests: 2, unit: Hour}}]}",
];

/// Some of these routes, the first with a limit of its own.
fn with_routes(routes: u8, strategy: &str) -> Update {
    let own =
        ["a", "b", "c"].into_iter().enumerate().filter(|(i, _)| routes & (1 << i) != 0).map(|(i, name)| {
            let limit = if i == 0 { format!(", {}", LIMITS[1]) } else { String::new() };
            format!("{{name: {name}, match: {{path: {{value: /{name}}}}}{limit}}},")
        });
    update(&format!("{{{}, loadBalancer: {{{strategy}}}, routes: [{}]}}", LIMITS[0], own.collect::<String>()))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Policy(u8, &'static str),
    Workers(usize),
    Asks(u8, &'static str),
    Waits(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..8u8, strategies()).prop_map(|(routes, strategy)| Step::Policy(routes, strategy)),
        1 => (1..4usize).prop_map(Step::Workers),
        6 => (0..2u8, prop::sample::select(vec!["a", "b", "c", "default"])).prop_map(|(client, route)| Step::Asks(client, route)),
        1 => (0..1500u64).prop_map(Step::Waits),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However many routes there are and however the policy changes meanwhile, a client gets through the policy's limit what
    /// that says, once; and through a route's own as much as that says, for as long as the route has it.
    #[test]
    fn a_limit_of_the_policy_is_one_amount_whatever_changes(steps in steps()) {
        let worker = |i| Worker::new(&format!("limits-{i}"), SocketAddr::from(([127, 0, 0, 1], 1)));
        let control = Control::new((0..3).map(worker).collect());
        control.apply(&with_routes(7, "type: Random"), Source::File).expect("valid");
        let mut now = Instant::now();
        let start = now;
        let mut passed = BTreeMap::<(u8, bool), Vec<Instant>>::new();
        for step in steps {
            match step {
                Step::Policy(routes, strategy) => {
                    if !control.snapshot().routes.iter().any(|route| route.policy.name == "a") {
                        (0..2).for_each(|client| _ = passed.remove(&(client, true)));
                    }
                    control.apply(&with_routes(routes, strategy), Source::File).expect("valid");
                }
                Step::Workers(count) => control.change_workers(|_| (0..count).map(worker).collect()),
                Step::Waits(seconds) => now += Duration::from_secs(seconds),
                Step::Asks(client, name) => {
                    let snapshot = control.snapshot();
                    let found = snapshot.routes.iter().find(|route| route.policy.name == name);
                    let route = found.unwrap_or_else(|| snapshot.routes.last().expect("the default"));
                    let own = route.policy.own.limits;
                    if route.allowance.limits[0].check(&[client], now).allowed {
                        passed.entry((client, own)).or_default().push(now);
                    }
                    // What passed since any moment is no more than the burst and what came back since.
                    let passed = passed.entry((client, own)).or_default();
                    let requests: u32 = if own { 2 } else { 3 };
                    for (i, since) in passed.iter().enumerate() {
                        let earned = (now - *since).as_secs_f64() * f64::from(requests) / 3600.0;
                        let got = (passed.len() - i) as f64;
                        prop_assert!(got <= f64::from(requests) + earned + 1e-6, "{got} at {:?}", now - start);
                    }
                }
            }
        }
    }
}

#[test]
fn retries_that_are_allowed_in_any_case_are_so_once_for_all_routes() {
    let control = Control::new(Vec::new());
    let spec = |own: &str| {
        format!("routes: [{{name: a, match: {{method: GET}}}}, {{name: b, match: {{method: PUT}}, {own}}}]")
    };
    control.apply(&update(&spec("retry: {numRetries: 1}, hedge: {delay: 1s}")), Source::File).expect("valid");
    let before = control.snapshot();
    let [a, b, default] = [0, 1, 2].map(|i| &before.routes[i].allowance);
    assert!(
        Arc::ptr_eq(&a.least_retries, &default.least_retries)
            && Arc::ptr_eq(&a.least_hedges, &default.least_hedges)
    );
    assert!(
        !Arc::ptr_eq(&b.least_retries, &default.least_retries)
            && !Arc::ptr_eq(&b.least_hedges, &default.least_hedges)
    );
    control.apply(&update(&spec("retry: {numRetries: 2}")), Source::File).expect("valid");
    let after = control.snapshot();
    let b_now = &after.routes[1].allowance;
    assert!(Arc::ptr_eq(&b.least_retries, &b_now.least_retries), "its own stays its own");
    assert!(Arc::ptr_eq(&default.least_hedges, &b_now.least_hedges), "what it says no more is the policy's");
}
