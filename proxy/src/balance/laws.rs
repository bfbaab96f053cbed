//! What holds of every strategy.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;

const ALL: [LoadBalancerType; 3] =
    [LoadBalancerType::RoundRobin, LoadBalancerType::Random, LoadBalancerType::LeastRequest];

/// Fails to compile when a strategy is missing above.
const fn _listed(kind: LoadBalancerType) -> usize {
    match kind {
        LoadBalancerType::RoundRobin => 0,
        LoadBalancerType::Random => 1,
        LoadBalancerType::LeastRequest => 2,
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights.iter().map(|weight| Member { weight: *weight, load: Arc::default() }).collect()
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(100), 0..=100u32]
}

proptest! {
    #[test]
    fn picks_only_usable_members_with_a_weight_and_some_whenever_there_is_one(
        weights in prop::collection::vec(weight(), 0..40),
        steps in prop::collection::vec((any::<[u64; 4]>(), any::<u64>(), 0..8u32), 1..40),
    ) {
        for kind in ALL {
            let members = members(&weights);
            let strategy = build(kind, &members);
            for (bits, random, load) in &steps {
                let usable = Usable(*bits);
                let places = || (0..weights.len()).filter(|place| usable.contains(*place) && weights[*place] != 0);
                match strategy.pick(&usable, *random) {
                    Some(place) => {
                        prop_assert!(places().any(|candidate| candidate == place), "{kind:?} {place}");
                        members[place].load.in_flight.fetch_add(*load, Relaxed);
                    }
                    None => prop_assert_eq!(places().count(), 0, "{:?}", kind),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn idle_members_share_by_weight(
        weights in prop::collection::vec(weight(), 1..20),
        down in any::<u32>(),
        seed in any::<u64>(),
    ) {
        const ROUNDS: u32 = 40_000;
        let usable: Usable = (0..weights.len()).filter(|place| down & (1 << place) == 0).collect();
        let total: u32 = usable.iter().map(|place| weights[place]).sum();
        prop_assume!(total != 0);
        for kind in ALL {
            let strategy = build(kind, &members(&weights));
            let mut random = fastrand::Rng::with_seed(seed);
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..ROUNDS {
                counts[strategy.pick(&usable, random.u64(..)).expect("one has a weight")] += 1;
            }
            for place in usable.iter() {
                let share = f64::from(weights[place]) / f64::from(total);
                let got = f64::from(counts[place]) / f64::from(ROUNDS);
                prop_assert!((got - share).abs() < 0.02, "{kind:?} {place}: {got} of {share}");
            }
        }
    }
}

#[test]
fn members_beyond_the_limit_are_left_out() {
    for kind in ALL {
        let strategy = build(kind, &members(&[1; MAX_MEMBERS + 50]));
        let all = (0..MAX_MEMBERS + 50).collect();
        assert!(strategy.pick(&all, u64::MAX).is_some_and(|place| place < MAX_MEMBERS));
    }
}
