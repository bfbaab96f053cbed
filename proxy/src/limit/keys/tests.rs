use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LIMIT: u64 = 7;

/// A limit of one request per so many nanoseconds: who passed owes that much, and is refused until it is over.
fn asks(keys: &Keys, key: u32, now: u64, period: u64) -> bool {
    let one = |full_at: u64| {
        let allowed = full_at <= now;
        let left = Duration::from_nanos(full_at.saturating_sub(now));
        let decision = Decision { allowed, remaining: 0, reset: left, retry_after: left };
        (allowed.then_some(now + period), decision)
    };
    keys.update((LIMIT, &key.to_be_bytes()), now, one).allowed
}

#[test]
fn remembers() {
    let keys = Keys::default();
    assert!((0..10_000).all(|key| asks(&keys, key, 1, 10)));
    assert!((0..10_000).all(|key| !asks(&keys, key, 10, 10)));
    assert_eq!(keys.len(), 10_000);
    assert!((0..10_000).all(|key| asks(&keys, key, 11, 10)));
    let other = |full_at| {
        (
            None,
            Decision {
                allowed: full_at == 0,
                remaining: 0,
                reset: Duration::ZERO,
                retry_after: Duration::ZERO,
            },
        )
    };
    assert!(keys.update((LIMIT + 1, &5u32.to_be_bytes()), 12, other).allowed, "another limit is another key");
}

#[test]
fn a_million_keys_take_no_more_than_the_maximum() {
    let keys = Keys::default();
    (0..1_000_000).for_each(|key| assert!(asks(&keys, key, 1, 1_000_000_000), "a new one is never refused"));
    assert_eq!(keys.len(), MAX_KEYS);
    let tables = keys.shards.iter().map(|shard| shard.lock().entries.allocation_size());
    assert!(tables.sum::<usize>() <= 9_000_000);
}

#[test]
fn those_that_are_over_go_first() {
    let keys = Keys::with_room(4, 64);
    (0..100).for_each(|key| _ = asks(&keys, key, 0, 1_000_000));
    (1_000..50_000).for_each(|key| _ = asks(&keys, key, u64::from(key), 10));
    assert!((0..100).all(|key| !asks(&keys, key, 50_000, 10)));
}

/// Each of a flood owes as long as those that are blocked, and longer than they do still: by what is owed nobody could tell
/// them apart.
#[test]
fn no_flood_of_new_keys_frees_one_that_was_refused() {
    let keys = Keys::default();
    let blocked = 0..1_000;
    for key in blocked.clone() {
        assert!(asks(&keys, key, 0, 1_000_000_000) && !asks(&keys, key, 1, 1_000_000_000));
    }
    (1_000..1_500_000).for_each(|key| assert!(asks(&keys, key, u64::from(key), 1_000_000_000)));
    assert!(blocked.into_iter().all(|key| !asks(&keys, key, 2_000_000, 1_000_000_000)));
}

/// Where the flood is refused too it fills what is kept for those, and new keys have room all the same.
#[test]
fn a_flood_of_refused_keys_frees_nobody_and_blocks_nobody() {
    let keys = Keys::with_room(4, 64);
    (0..20).for_each(|key| assert!(asks(&keys, key, 0, 1 << 40) && !asks(&keys, key, 0, 1 << 40)));
    for key in 1_000..100_000 {
        assert!(asks(&keys, key, 1, 1 << 40), "a new one is never refused");
        asks(&keys, key, 1, 1 << 40);
    }
    assert!((0..20).all(|key| !asks(&keys, key, 2, 1 << 40)), "they are blocked still");
    assert!(asks(&keys, 7_000_000, 2, 1 << 40));
    let passed = (100_000..120_000).filter(|key| {
        asks(&keys, *key, 2, 1 << 40);
        key.is_multiple_of(20) && asks(&keys, 7_000_000, 2, 1 << 40)
    });
    assert_eq!(passed.count(), 0, "nor is one that keeps asking forgotten");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of those that are watched asks.
    Watched(u32),
    /// So many new keys ask, each this often.
    Flood(u32, u8),
    Waits(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u32).prop_map(Step::Watched),
        2 => (1..400u32, 1..3u8).prop_map(|(keys, times)| Step::Flood(keys, times)),
        1 => (1..3_000u64).prop_map(Step::Waits),
    ]
}

proptest! {
    /// Whatever comes: nobody is refused who would not be if all were remembered, and who was refused while there was room
    /// for the refused passes no sooner than then.
    #[test]
    fn a_flood_neither_frees_nor_blocks(steps in prop::collection::vec(step(), 1..120)) {
        const PERIOD: u64 = 1_000;
        let keys = Keys::with_room(1, 64);
        let (mut now, mut next) = (1, 1_000);
        // Of each of the watched: when it may ask again, and whether it was refused since it passed.
        let mut exact = BTreeMap::<u32, (u64, bool)>::new();
        for step in steps {
            match step {
                Step::Waits(time) => now += time,
                Step::Flood(count, times) => {
                    for _ in 0..count {
                        next += 1;
                        prop_assert!(asks(&keys, next, now, PERIOD), "a new one is refused");
                        (1..times).for_each(|_| _ = asks(&keys, next, now, PERIOD));
                    }
                }
                Step::Watched(key) => {
                    let room = keys.shards[0].lock().refused < 48;
                    let passed = asks(&keys, key, now, PERIOD);
                    let (again, refused) = exact.get(&key).copied().unwrap_or_default();
                    if again <= now {
                        prop_assert!(passed, "one that owes nothing is refused");
                    }
                    if refused && now < again {
                        prop_assert!(!passed, "one that was refused is free too soon");
                    }
                    let after = if passed { (now + PERIOD, false) } else { (again, refused || room) };
                    exact.insert(key, after);
                }
            }
        }
    }
}
