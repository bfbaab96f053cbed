//! A data thread's part of the memory that clients can make the process hold.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Memory;

/// So much time is between two looks at who gives way: a look goes through all connections.
const BETWEEN: Duration = Duration::from_millis(50);

/// A data thread's part of the pool, and what its connections hold of it.
#[derive(Default)]
pub struct Share {
    /// `None`: a part without a bound, as in tests.
    of: Option<Part>,
    held: Cell<usize>,
    wanted: Notify,
}

struct Part {
    memory: Arc<Memory>,
    thread: usize,
}

impl Share {
    /// The part of this thread, of which nothing is held.
    pub fn new(memory: Arc<Memory>, thread: usize) -> Self {
        Self { of: Some(Part { memory, thread }), ..Self::default() }
    }

    /// A connection holds so many bytes more.
    pub fn take(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        if self.is_short() {
            self.wanted.notify_one();
        }
    }

    /// And so many less.
    pub fn give_back(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
    }

    /// Whether so many bytes more may be held.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        let Some(part) = &self.of else { return true };
        let has = !part.memory.is_scarce() && self.held.get().saturating_add(bytes) <= part.memory.share;
        if !has {
            self.wanted.notify_one();
        }
        has
    }

    /// Whether connections make do with less from here on, though it takes them longer.
    pub fn is_tight(&self) -> bool {
        let Some(part) = &self.of else { return false };
        part.memory.share / 2 < self.held.get() || part.memory.is_scarce()
    }

    /// Whether some connections have to give way.
    pub fn is_short(&self) -> bool {
        let Some(part) = &self.of else { return false };
        part.memory.share / 4 * 3 < self.held.get() || part.memory.is_scarce()
    }

    /// How much has to be let go of until it is enough.
    pub fn excess(&self) -> usize {
        let Some(part) = &self.of else { return 0 };
        let held = self.held.get();
        let scarce = part.memory.is_scarce();
        let enough = if scarce { held / 2 } else { part.memory.share / 8 * 5 };
        if self.is_short() { held.saturating_sub(enough) } else { 0 }
    }

    /// Says to all what is held.
    pub fn tell(&self) {
        if let Some(part) = &self.of
            && let Some(told) = part.memory.held.get(part.thread)
        {
            told.store(self.held.get(), Relaxed);
        }
    }

    /// Waits until connections have to give way, and since `last` for long enough.
    pub async fn is_wanted(&self, last: Instant) {
        self.wanted.notified().await;
        tokio::time::sleep_until((last + BETWEEN).into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limit;
    use super::*;

    #[test]
    fn a_share_gets_tight_then_short_then_full() {
        let memory = Memory::new(Limit::of(4096), 1);
        let share = Share::new(memory.clone(), 0);
        let states = |bytes: usize| {
            share.held.set(bytes);
            [share.is_tight(), share.is_short(), !share.has_room_for(1)]
        };
        assert_eq!(states(512), [false; 3]);
        assert_eq!(states(513), [true, false, false]);
        assert_eq!(states(769), [true, true, false]);
        assert_eq!(share.excess(), 769 - 640);
        assert_eq!(states(1024), [true; 3]);
        share.tell();
        assert_eq!(memory.held(), 1024);
    }

    #[test]
    fn where_the_process_is_near_its_limit_half_of_what_is_held_goes() {
        let memory = Memory::new(Limit::of(4096), 1);
        let share = Share::new(memory.clone(), 0);
        share.take(100);
        assert_eq!((share.excess(), share.has_room_for(1)), (0, true));
        memory.scarce.store(true, Relaxed);
        assert_eq!((share.excess(), share.has_room_for(1), share.is_tight()), (50, false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_give_way_are_looked_for_now_and_then() {
        let share = Share::new(Memory::new(Limit::of(4096), 1), 0);
        share.take(2000);
        share.take(2000);
        let last = tokio::time::Instant::now();
        share.is_wanted(last.into_std()).await;
        assert_eq!(last.elapsed(), BETWEEN);
        assert!(
            tokio::time::timeout(BETWEEN, share.is_wanted(last.into_std())).await.is_err(),
            "it was told"
        );
    }
}
