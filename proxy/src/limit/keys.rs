//! A number for each client, of many clients at once, in bounded memory.
//!
//! The number is a time; one that is over says no more than a missing one does. A key is kept as a hash of 64 bits
//! with a seed of this process's own: clients cannot choose keys that collide, and what they sent is not stored.
//! Two of 65,536 keys share a hash, and so a bucket, in one of 8 billion processes.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

/// Clients that one limit remembers. Over that, those whose bucket is full again are forgotten, and then those whose
/// bucket is among the fullest, so a flood of new clients does not free one that is blocked. A limit takes about
/// 2.3 MB at most.
pub const MAX_KEYS: usize = SHARDS * MAX_KEYS_OF_SHARD;

/// Many more than there are data threads, so that two rarely meet.
const SHARDS: usize = 64;
const MAX_KEYS_OF_SHARD: usize = 1024;
/// Of how many keys the one with the least to forget goes, when none can be forgotten for nothing.
const SAMPLE: usize = 8;

pub(super) struct Keys {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::default(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Gives `change` the key's time, 0 where there is none, and stores the time that it returns, if it does.
    pub(super) fn update<T>(&self, key: &[u8], now: u64, change: impl FnOnce(u64) -> (Option<u64>, T)) -> T {
        let hash = self.hasher.hash_one(key);
        // The table looks at the highest and the lowest bits.
        let shard = (hash >> 32) as usize % SHARDS;
        self.shards[shard].lock().update(hash, now, change)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }
}

// On a cache line of its own: threads that use different shards do not disturb each other.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    entries: HashTable<Entry>,
    /// No entry's time is over before this.
    first_over: u64,
    /// Where the next sample is taken.
    hand: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    time: u64,
}

impl Shard {
    fn update<T>(&mut self, hash: u64, now: u64, change: impl FnOnce(u64) -> (Option<u64>, T)) -> T {
        if let Some(entry) = self.entries.find_mut(hash, |entry| entry.hash == hash) {
            let (time, result) = change(entry.time);
            entry.time = time.unwrap_or(entry.time);
            return result;
        }
        let (time, result) = change(0);
        if let Some(time) = time {
            self.insert(Entry { hash, time }, now);
        }
        result
    }

    fn insert(&mut self, entry: Entry, now: u64) {
        if MAX_KEYS_OF_SHARD <= self.entries.len() {
            self.forget_those_over(now);
        }
        if MAX_KEYS_OF_SHARD <= self.entries.len() {
            self.forget_one();
        }
        self.first_over = self.first_over.min(entry.time);
        self.entries.insert_unique(entry.hash, entry, |entry| entry.hash);
    }

    /// Looks at every entry, but only when one of them may be over.
    fn forget_those_over(&mut self, now: u64) {
        if self.first_over <= now {
            self.entries.retain(|entry| now < entry.time);
            self.first_over = self.entries.iter().map(|entry| entry.time).min().unwrap_or(u64::MAX);
        }
    }

    /// Of the next few entries, the one whose time is over first.
    fn forget_one(&mut self) {
        let buckets = self.entries.num_buckets();
        let (before, after) = (0..self.hand.min(buckets), self.hand.min(buckets)..buckets);
        let occupied =
            after.chain(before).filter_map(|i| self.entries.get_bucket(i).map(|entry| (i, entry.time)));
        let mut sample = [(0, u64::MAX); SAMPLE];
        for (seat, found) in sample.iter_mut().zip(occupied) {
            *seat = found;
        }
        let (place, _) = sample.into_iter().min_by_key(|(_, time)| *time).unwrap_or_default();
        self.hand = sample[SAMPLE - 1].0 + 1;
        if let Ok(entry) = self.entries.get_bucket_entry(place) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(keys: &Keys, key: u32, now: u64, time: u64) {
        keys.update(&key.to_be_bytes(), now, |_| (Some(time), ()));
    }

    fn get(keys: &Keys, key: u32) -> u64 {
        keys.update(&key.to_be_bytes(), 0, |time| (None, time))
    }

    #[test]
    fn remembers() {
        let keys = Keys::new();
        (0..10_000).for_each(|key| put(&keys, key, 0, u64::from(key) + 1));
        assert!((0..10_000).all(|key| get(&keys, key) == u64::from(key) + 1));
        assert_eq!(get(&keys, 10_000), 0);
        assert_eq!(keys.len(), 10_000, "asking stores nothing");
    }

    #[test]
    fn a_million_keys_take_no_more_than_the_maximum() {
        let keys = Keys::new();
        for key in 0..1_000_000 {
            put(&keys, key, 1, 1_000_000_000 + u64::from(key));
        }
        assert_eq!(keys.len(), MAX_KEYS);
        let tables = keys.shards.iter().map(|shard| shard.lock().entries.allocation_size());
        assert!(tables.sum::<usize>() <= 4_800_000);
    }

    #[test]
    fn those_that_are_over_go_first() {
        let keys = Keys::new();
        let old = 0..1_000;
        old.clone().for_each(|key| put(&keys, key, 0, 1_000_000));
        (1_000..500_000).for_each(|key| put(&keys, key, u64::from(key), u64::from(key) + 10));
        assert!(old.into_iter().all(|key| get(&keys, key) == 1_000_000), "the blocked stay");
    }

    #[test]
    fn a_flood_frees_hardly_anyone_with_much_to_forget() {
        let keys = Keys::new();
        let old = 0..1_000;
        old.clone().for_each(|key| put(&keys, key, 0, u64::MAX));
        (1_000..500_000).for_each(|key| put(&keys, key, 1, 1_000));
        let kept = old.into_iter().filter(|key| get(&keys, *key) == u64::MAX).count();
        assert!(990 < kept, "{kept}");
    }
}
