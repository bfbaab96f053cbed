use std::time::Instant;

use outrigger_policy::effective::HashKey;
use proptest::prelude::*;

use super::*;
use crate::balance::laws::members;

const RING: HashAlgorithm = HashAlgorithm::Ring(512);
const MAGLEV: HashAlgorithm = HashAlgorithm::Maglev(65_537);
const KEYS: u64 = 20_000;

fn strategy(algorithm: HashAlgorithm, balance_factor: Option<u32>, members: &[Member]) -> ConsistentHash {
    let settings = effective::ConsistentHash { key: HashKey::Path, algorithm, balance_factor };
    ConsistentHash::new(Weights::new(members, None), &settings, members)
}

/// The member of each key, by its own key.
fn homes(strategy: &ConsistentHash, usable: &Usable) -> Vec<u64> {
    let of = |key: u64| {
        let choice = Choice { usable, now: Instant::now(), random: 0, key: Some(mix(key)) };
        strategy.keys[strategy.pick(&choice).expect("some are usable")]
    };
    (0..KEYS).map(of).collect()
}

/// How many keys moved, and how many of them between members that were there before and after.
fn moved(before: &[u64], after: &[u64], gone: u64) -> (f64, f64) {
    let moves: Vec<_> = before.iter().zip(after).filter(|(before, after)| before != after).collect();
    let between = moves.iter().filter(|(before, _)| **before != gone).count();
    (moves.len() as f64 / KEYS as f64, between as f64 / KEYS as f64)
}

/// The standard deviation of a member's keys, as a part of its share: by which keys there are, and by where its places in the
/// table fell.
fn deviation(algorithm: HashAlgorithm, weight: u32, share: f64) -> f64 {
    let of_keys = (1.0 - share) / (KEYS as f64 * share);
    let of_places = match algorithm {
        HashAlgorithm::Ring(points) => 1.0 / f64::from(points * weight),
        HashAlgorithm::Maglev(_) => 0.0001, // each has its share of the table within a hundredth
    };
    (of_keys + of_places).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_member_that_is_away_gives_up_its_keys_and_no_other_does(count in 2..64usize, away in any::<prop::sample::Index>()) {
        let members = members(&vec![1; count]);
        let away = away.index(count);
        for algorithm in [RING, MAGLEV] {
            let strategy = strategy(algorithm, None, &members);
            let all: Usable = (0..count).collect();
            let mut others = all.clone();
            others.remove(away);
            let before = homes(&strategy, &all);
            let (moved, between) = moved(&before, &homes(&strategy, &others), members[away].key);
            prop_assert!(moved <= 1.2 / count as f64 + 0.005, "{algorithm:?}: {moved} of {count}");
            prop_assert_eq!(between, 0.0, "{:?} of {}", algorithm, count);
            prop_assert!(before == homes(&strategy, &all), "and they come back to it");
        }
    }

    #[test]
    fn a_member_that_is_removed_moves_its_own_keys(count in 2..64usize, gone in any::<prop::sample::Index>()) {
        let members = members(&vec![1; count]);
        let gone = gone.index(count);
        let rest: Vec<_> = members.iter().filter(|member| member.key != members[gone].key).cloned().collect();
        for algorithm in [RING, MAGLEV] {
            let before = homes(&strategy(algorithm, None, &members), &(0..count).collect());
            let after = homes(&strategy(algorithm, None, &rest), &(0..count - 1).collect());
            let (moved, between) = moved(&before, &after, members[gone].key);
            prop_assert!(moved <= 1.2 / count as f64 + 0.005, "{algorithm:?}: {moved} of {count}");
            let bound = if algorithm == RING { 0.0 } else { 0.02 };
            prop_assert!(between <= bound, "{algorithm:?}: {between} of {count}");
        }
    }

    #[test]
    fn keys_are_shared_by_weight(weights in prop::collection::vec(1..=5u32, 2..10)) {
        let members = members(&weights);
        let total: u32 = weights.iter().sum();
        for algorithm in [RING, MAGLEV] {
            let homes = homes(&strategy(algorithm, None, &members), &(0..weights.len()).collect());
            for (member, weight) in members.iter().zip(&weights) {
                let share = f64::from(*weight) / f64::from(total);
                let got = homes.iter().filter(|home| **home == member.key).count() as f64 / KEYS as f64;
                let within = 5.0 * deviation(algorithm, *weight, share);
                prop_assert!((got / share - 1.0).abs() < within, "{algorithm:?}: {got} of {share}, {within}");
            }
        }
    }
}

#[test]
fn what_is_over_the_bound_goes_to_the_next() {
    for algorithm in [RING, MAGLEV] {
        let members = members(&[1; 4]);
        let strategy = strategy(algorithm, Some(150), &members);
        let all: Usable = (0..4).collect();
        let choice = Choice { usable: &all, now: Instant::now(), random: 0, key: Some(7) };
        for sent in 1..=400u32 {
            let place = strategy.pick(&choice).expect("some are usable");
            members[place].load.in_flight.fetch_add(1, Relaxed);
            let most = members.iter().map(|member| member.load.in_flight.load(Relaxed)).max().expect("some");
            assert!(
                f64::from(most) <= (1.5 * f64::from(sent) / 4.0).ceil(),
                "{algorithm:?}: {most} of {sent}"
            );
        }
        let loads: Vec<_> = members.iter().map(|member| member.load.in_flight.load(Relaxed)).collect();
        assert!(loads.contains(&150), "{loads:?}: the key's own member is as full as it may be");
    }
}

#[test]
fn a_request_without_a_key_goes_anywhere() {
    let members = members(&[1; 4]);
    let strategy = strategy(RING, None, &members);
    let all: Usable = (0..4).collect();
    let mut counts = [0; 4];
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..4000 {
        let choice = Choice { usable: &all, now: Instant::now(), random: random.u64(..), key: None };
        counts[strategy.pick(&choice).expect("usable")] += 1;
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
}

#[test]
fn strategies_over_the_same_members_share_a_table() {
    let settings = |key: &str| {
        let key = HashKey::Header(key.to_owned());
        effective::ConsistentHash { key, algorithm: RING, balance_factor: None }
    };
    let members = members(&[1, 2, 3]);
    let build = |key: &str, members: &[Member]| {
        ConsistentHash::new(Weights::new(members, None), &settings(key), members).table
    };
    let table = build("a", &members);
    assert!(Arc::ptr_eq(&table, &build("b", &members)), "the key of requests is no part of it");
    let again = super::super::laws::members(&[1, 2, 3]);
    assert!(Arc::ptr_eq(&table, &build("a", &again)), "another policy over the same members");
    assert!(!Arc::ptr_eq(&table, &build("a", &super::super::laws::members(&[1, 2, 4]))));
    assert!(!Arc::ptr_eq(&table, &build("a", &members[..2])));
    let Table::Ring(ring) = &*table else { panic!("a ring") };
    assert_eq!(ring.bytes(), 5 * 6 * 512);
}
