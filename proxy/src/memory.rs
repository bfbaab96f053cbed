//! The memory that the process may have, and how much of it its clients can make it hold.
//!
//! The limit is divided: some is the process's own, each connection may always hold a little, and a pool is for whatever takes
//! more, such as long heads, answers that nobody reads and bodies that no worker takes. `limit` finds the limit, `share` is a
//! data thread's part of the pool, `watch` compares what the process uses with its limit. What a connection holds is noted
//! where it holds it (`connection/holding.rs`).

mod limit;
mod share;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

pub use self::limit::Limit;
pub use self::share::Share;
pub use self::watch::watch;

/// What the process needs besides its clients: its program, policies, metrics and connections to workers.
const OWN: u64 = 32 << 20;
/// What a connection takes at most without a part of the pool, with its sockets: `docs/limits.md` has what was measured.
const PER_CONNECTION: u64 = 32 << 10;
/// A connection may hold as much, whatever others hold.
pub const ALWAYS: usize = 16 << 10;
/// The pool is this part of the limit.
const POOL: u64 = 4;
/// As many connections are taken whatever the limit is.
const LEAST_CONNECTIONS: usize = 64;

/// The memory of the process.
pub struct Memory {
    limit: Limit,
    /// What each data thread's connections may hold besides what they always may.
    share: usize,
    /// What each data thread's connections hold, as of its last tick.
    held: Box<[AtomicUsize]>,
    used: AtomicU64,
    scarce: AtomicBool,
}

impl Memory {
    /// The memory of a process with this limit and so many data threads.
    pub fn new(limit: Limit, threads: usize) -> Arc<Self> {
        let share = usize::try_from(limit.bytes / POOL).unwrap_or(usize::MAX) / threads.max(1);
        let held = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { limit, share, held, used: AtomicU64::new(0), scarce: AtomicBool::new(false) })
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit.bytes
    }

    /// For how many connections of clients the limit is enough.
    pub fn connections(&self) -> usize {
        let left = self.limit.bytes.saturating_sub(OWN + self.limit.bytes / POOL);
        usize::try_from(left / PER_CONNECTION).unwrap_or(usize::MAX).max(LEAST_CONNECTIONS)
    }

    /// What connections hold besides what they take anyway, in bytes, a tick old at most.
    pub fn held(&self) -> u64 {
        self.held.iter().map(|held| held.load(Relaxed) as u64).sum()
    }

    /// What the process uses, in bytes, as it was looked at last.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Whether the process is about to reach its limit.
    fn is_scarce(&self) -> bool {
        self.scarce.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The law of the division: with every place taken, every connection at the most that it may always hold and the pool full,
    /// the process is within its limit.
    #[test]
    fn all_that_connections_may_hold_fits_the_limit() {
        for mebibytes in [64_u64, 128, 256, 1024, 64 << 10] {
            for threads in [1, 2, 7] {
                let memory = Memory::new(Limit::of(mebibytes << 20), threads);
                let pool = memory.share as u64 * threads as u64;
                let most = OWN + memory.connections() as u64 * PER_CONNECTION + pool;
                assert!(most <= memory.limit(), "{most} of {mebibytes} MiB");
            }
        }
        assert_eq!(Memory::new(Limit::of(256 << 20), 2).connections(), 5_120);
        assert_eq!(Memory::new(Limit::of(16 << 20), 1).connections(), LEAST_CONNECTIONS);
    }
}
