//! A number for each client of every limit, of many clients at once, in bounded memory.
//!
//! The number is a time; one that is over says no more than a missing one does. A key is kept as a hash of 62 bits
//! with a seed of this process's own: clients cannot choose keys that collide, and what they sent is not stored.
//! Two of 229,376 keys share a hash, and so a bucket, in one of 100 million processes.
//!
//! There is one table for all limits, so that its bound is one whatever the policy says. When a part of it is full, keys whose
//! time is over go first. Of the others those are kept that were refused since: nobody else's requests take their time
//! from them, whoever floods the table with new keys. They are three quarters of it at most; the last quarter is for keys that
//! were never refused, of which the one goes that asked once and did not come again (a clock, as page caches have it;
//! Corbato, "A Paging Experiment with the Multics System", 1968). So a new key always has room and is never refused for
//! want of it, and what keeps asking stays.

use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::time::Instant;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use super::Decision;

/// Clients that all limits together remember.
pub const MAX_KEYS: usize = SHARDS * MAX_KEYS_OF_SHARD;

/// Many more than there are data threads, so that two rarely meet.
const SHARDS: usize = 256;
/// As many as half of a table of 2,048 places, so that it is never made larger. A place takes 17 bytes, the whole 9 MB.
const MAX_KEYS_OF_SHARD: usize = 896;

/// The clients of every limit, and until when each owes something.
pub struct Keys {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Keys that a shard holds.
    most: usize,
    /// What times count from: the first request's.
    epoch: OnceLock<Instant>,
}

impl Default for Keys {
    fn default() -> Self {
        Self::with_room(SHARDS, MAX_KEYS_OF_SHARD)
    }
}

impl Keys {
    fn with_room(shards: usize, most: usize) -> Self {
        let shards = (0..shards).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::default(), shards, most, epoch: OnceLock::new() }
    }

    /// A moment, in nanoseconds: what the times of all limits are compared in.
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_init(|| now);
        u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Gives `change` the time of a limit's client, 0 where there is none, and stores the time that it returns, if it does.
    pub(super) fn update(
        &self,
        (limit, client): (u64, &[u8]),
        now: u64,
        change: impl FnOnce(u64) -> (Option<u64>, Decision),
    ) -> Decision {
        let hash = self.hasher.hash_one((limit, client)) & !MARKS;
        // The table looks at the highest and the lowest bits.
        let shard = (hash >> 32) as usize % self.shards.len();
        self.shards[shard].lock().update(hash, (now, self.most), change)
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
    /// Entries with the mark `REFUSED`.
    refused: usize,
    /// No entry's time is over before this.
    first_over: u64,
    /// Where the next entry to go is looked for.
    hand: usize,
}

struct Entry {
    /// The last two bits are marks.
    hash: u64,
    time: u64,
}

/// It was refused, and its time is not over.
const REFUSED: u64 = 1;
/// It asked again since the hand was here.
const ASKED_AGAIN: u64 = 2;
const MARKS: u64 = REFUSED | ASKED_AGAIN;

impl Entry {
    fn is(&self, mark: u64) -> bool {
        self.hash & mark != 0
    }
}

impl Shard {
    fn update(
        &mut self,
        hash: u64,
        (now, most): (u64, usize),
        change: impl FnOnce(u64) -> (Option<u64>, Decision),
    ) -> Decision {
        let Some(entry) = self.entries.find_mut(hash, |entry| entry.hash & !MARKS == hash) else {
            let (time, decision) = change(0);
            if let Some(time) = time {
                self.insert(Entry { hash, time }, now, most);
            }
            return decision;
        };
        if entry.is(REFUSED) && entry.time <= now {
            entry.hash &= !REFUSED;
            self.refused -= 1;
        }
        let (time, decision) = change(entry.time);
        entry.time = time.unwrap_or(entry.time);
        entry.hash |= ASKED_AGAIN;
        if !decision.allowed && !entry.is(REFUSED) && self.refused < most / 4 * 3 {
            entry.hash |= REFUSED;
            self.refused += 1;
        }
        decision
    }

    fn insert(&mut self, entry: Entry, now: u64, most: usize) {
        if most <= self.entries.len() {
            self.forget_those_over(now);
        }
        if most <= self.entries.len() {
            self.forget_one();
        }
        self.first_over = self.first_over.min(entry.time);
        self.entries.insert_unique(entry.hash & !MARKS, entry, |entry| entry.hash & !MARKS);
    }

    /// Looks at every entry, but only when one of them may be over.
    fn forget_those_over(&mut self, now: u64) {
        if self.first_over <= now {
            self.entries.retain(|entry| now < entry.time);
            self.first_over = self.entries.iter().map(|entry| entry.time).min().unwrap_or(u64::MAX);
            self.refused = self.entries.iter().filter(|entry| entry.is(REFUSED)).count();
        }
    }

    /// The next entry that was not refused and did not ask again. A quarter was not refused, so there is one after two rounds.
    fn forget_one(&mut self) {
        let buckets = self.entries.num_buckets();
        for _ in 0..2 * buckets {
            let at = self.hand % buckets;
            self.hand = at + 1;
            let Ok(mut entry) = self.entries.get_bucket_entry(at) else { continue };
            if entry.get().is(REFUSED) {
                continue;
            }
            if !entry.get().is(ASKED_AGAIN) {
                entry.remove();
                return;
            }
            entry.get_mut().hash &= !ASKED_AGAIN;
        }
    }
}

#[cfg(test)]
mod tests;
