//! What holds of every strategy.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use outrigger_policy::effective::{self, HashAlgorithm, HashKey, LoadBalancerType, Strategy};
use proptest::prelude::*;

use super::measure::{Ended, How, Measure};
use super::*;

const RING: HashAlgorithm = HashAlgorithm::Ring(512);
const MAGLEV: HashAlgorithm = HashAlgorithm::Maglev(65_537);

/// Every strategy, with the settings that it has when a policy says nothing else.
pub(crate) const ALL: [fn() -> Strategy; 10] = [
    || Strategy::RoundRobin,
    || Strategy::Random,
    || Strategy::LeastRequest(effective::LeastRequest { full_scan: FEW, choice_count: 2 }),
    || Strategy::PeakEwma(peak_ewma()),
    || hash(RING, None),
    || hash(MAGLEV, None),
    || hash(RING, Some(125)),
    || Strategy::BackendUtilization(backend_utilization()),
    || Strategy::Predictive(predictive()),
    || Strategy::CostAware(effective::CostAware { latency_objective: Duration::from_millis(100) }),
];

/// Fails to compile when a strategy is missing above.
const fn _listed(kind: LoadBalancerType) -> usize {
    match kind {
        LoadBalancerType::RoundRobin => 0,
        LoadBalancerType::Random => 1,
        LoadBalancerType::LeastRequest => 2,
        LoadBalancerType::PeakEwma => 3,
        LoadBalancerType::ConsistentHash => 4,
        LoadBalancerType::BackendUtilization => 7,
        LoadBalancerType::Predictive => 8,
        LoadBalancerType::CostAware => 9,
    }
}

fn hash(algorithm: HashAlgorithm, balance_factor: Option<u32>) -> Strategy {
    Strategy::ConsistentHash(effective::ConsistentHash { key: HashKey::Path, algorithm, balance_factor })
}

pub(crate) fn peak_ewma() -> effective::PeakEwma {
    effective::PeakEwma {
        decay_time: Duration::from_secs(10),
        default_response_time: Duration::from_millis(10),
        penalty: Duration::from_secs(5),
        max_retry_after: Duration::from_secs(300),
    }
}

pub(crate) fn predictive() -> effective::Predictive {
    effective::Predictive {
        horizon: Duration::from_secs(5),
        interval: Duration::from_millis(500),
        level_percent: 50,
        trend_percent: 30,
        penalty: Duration::from_secs(5),
    }
}

pub(crate) fn backend_utilization() -> effective::BackendUtilization {
    effective::BackendUtilization {
        metrics: Vec::new(),
        blackout_period: Duration::from_secs(10),
        expiration_period: Duration::from_secs(180),
        update_period: Duration::from_secs(1),
        error_penalty_percent: 100,
        keep_response_headers: false,
    }
}

pub(crate) fn members(weights: &[u32]) -> Vec<Member> {
    let member = |(place, weight): (usize, &u32)| Member {
        key: crate::session::worker_id(&format!("worker-{}", place + 1)),
        weight: *weight,
        cost: 1,
        load: Arc::default(),
    };
    weights.iter().enumerate().map(member).collect()
}

/// A choice in which the key is as random as the rest.
pub(crate) fn choice(usable: &Usable, random: u64) -> Choice<'_> {
    Choice { usable, now: Instant::now(), random, key: Some(mix(!random)) }
}

/// The share that one of these idle members gets at this time.
pub(crate) fn share_of(strategy: &dyn Balance, members: &[Member], place: usize, now: Instant) -> f64 {
    const ROUNDS: u32 = 20_000;
    let all: Usable = (0..members.len()).collect();
    let mut random = fastrand::Rng::with_seed(11);
    let mine = |_: &u32| {
        let random = random.u64(..);
        strategy.pick(&Choice { now, ..choice(&all, random) }) == Some(place)
    };
    f64::from((0..ROUNDS).filter(mine).count() as u32) / f64::from(ROUNDS)
}

fn default_of(strategy: fn() -> Strategy) -> LoadBalancer {
    LoadBalancer { strategy: strategy(), slow_start: None }
}

fn weight() -> impl proptest::strategy::Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(100), 0..=100u32]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn picks_only_usable_members_with_a_weight_and_some_whenever_there_is_one(
        weights in prop::collection::vec(weight(), 0..20),
        steps in prop::collection::vec((any::<u32>(), any::<u64>(), 0..8u32, any::<bool>()), 1..40),
    ) {
        for kind in ALL {
            let members = members(&weights);
            let strategy = build(&default_of(kind), &members);
            let measure = measure_all().into();
            members.iter().for_each(|member| member.load.configure(&measure));
            let mut now = Instant::now();
            for (bits, random, load, failed) in &steps {
                let usable = Usable([u64::from(*bits), 0, 0, 0]);
                let places = || (0..weights.len()).filter(|place| usable.contains(*place) && weights[*place] != 0);
                match strategy.pick(&Choice { now, ..choice(&usable, *random) }) {
                    Some(place) => {
                        prop_assert!(places().any(|candidate| candidate == place), "{:?} {place}", kind());
                        let load_of = &members[place].load;
                        load_of.in_flight.fetch_add(*load, Relaxed);
                        let sent = now;
                        now += Duration::from_millis(random % 3000);
                        let how = if *failed { How::Failed } else { How::Answered };
                        load_of.ended(Ended { sent, now, how });
                    }
                    None => prop_assert_eq!(places().count(), 0, "{:?}", kind()),
                }
            }
        }
    }
}

/// Every estimate at once.
pub(crate) fn measure_all() -> Measure {
    Measure {
        response_time: Some(peak_ewma()),
        forecast: Some(predictive()),
        utilization: Some(backend_utilization()),
        budget: Some(effective::CostAware { latency_objective: Duration::from_millis(100) }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn idle_members_share_by_weight(
        weights in prop::collection::vec(weight(), 1..20),
        down in any::<u32>(),
        seed in any::<u64>(),
    ) {
        const ROUNDS: u32 = 20_000;
        let usable: Usable = (0..weights.len()).filter(|place| down & (1 << place) == 0).collect();
        let total: u32 = usable.iter().map(|place| weights[place]).sum();
        prop_assume!(total != 0);
        for kind in ALL {
            // The points of a ring are random: shares are near the weights, not at them.
            let tolerance = if kind().kind() == LoadBalancerType::ConsistentHash { 0.06 } else { 0.02 };
            let strategy = build(&default_of(kind), &members(&weights));
            let mut random = fastrand::Rng::with_seed(seed);
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..ROUNDS {
                counts[strategy.pick(&choice(&usable, random.u64(..))).expect("one has a weight")] += 1;
            }
            for place in usable.iter() {
                let share = f64::from(weights[place]) / f64::from(total);
                let got = f64::from(counts[place]) / f64::from(ROUNDS);
                prop_assert!((got - share).abs() < tolerance, "{:?} {place}: {got} of {share}", kind());
            }
        }
    }
}

/// Where one in four is busy: of two alone both would be in one request of 16.
#[test]
fn of_many_an_idle_member_is_chosen_whatever_the_strategy_that_looks_at_the_load() {
    const REQUESTS: usize = 20_000;
    for kind in ALL {
        use LoadBalancerType::{ConsistentHash, Random, RoundRobin};
        if matches!(kind().kind(), RoundRobin | Random | ConsistentHash) {
            continue;
        }
        let members = members(&[1; 64]);
        let strategy = build(&default_of(kind), &members);
        members.iter().step_by(4).for_each(|member| member.load.in_flight.store(1, Relaxed));
        let all = (0..members.len()).collect();
        let mut random = fastrand::Rng::with_seed(5);
        let mut pick = || strategy.pick(&choice(&all, random.u64(..))).expect("all are usable");
        let waiting = (0..REQUESTS).filter(|_| pick().is_multiple_of(4)).count();
        assert!(waiting < REQUESTS / 125, "{:?}: {waiting}", kind());
    }
}

#[test]
fn members_beyond_the_limit_are_left_out() {
    for kind in ALL {
        let strategy = build(&default_of(kind), &members(&[1; MAX_MEMBERS + 50]));
        let all = (0..MAX_MEMBERS + 50).collect();
        assert!(strategy.pick(&choice(&all, u64::MAX)).is_some_and(|place| place < MAX_MEMBERS));
    }
}
