//! Whether threads stand still.
//!
//! Each thread counts its heartbeats, and one thread looks at the counts of all. It counts its own looks rather than time:
//! a process that was stopped as a whole, or a machine that slept, is not held against a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Dead;
use crate::drain::{Lifecycle, Phase};
use crate::thread::TICK;

/// A thread stands still when so many looks in a row find no heartbeat: after ten seconds.
pub(super) const STANDS_STILL: u32 = if cfg!(test) { 4 } else { 40 };

/// The threads of a process.
pub(super) struct Threads {
    lifecycle: Lifecycle,
    all: Mutex<Vec<Arc<Thread>>>,
    /// The first that ended before the process did.
    ended: watch::Sender<Option<String>>,
}

/// What is known of one thread.
struct Thread {
    name: String,
    beats: AtomicU32,
    /// How many looks in a row found no heartbeat.
    still: AtomicU32,
    ended: AtomicBool,
}

/// A thread runs for as long as this is held.
pub struct Alive {
    thread: Arc<Thread>,
    lifecycle: Lifecycle,
    ended: watch::Sender<Option<String>>,
}

impl Threads {
    pub(super) fn new(lifecycle: Lifecycle) -> Self {
        Self { lifecycle, all: Mutex::default(), ended: watch::Sender::new(None) }
    }

    pub(super) fn begins(&self, name: &str) -> Alive {
        let thread = Arc::new(Thread {
            name: name.to_owned(),
            beats: AtomicU32::new(0),
            still: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        });
        self.all.lock().push(thread.clone());
        Alive { thread, lifecycle: self.lifecycle.clone(), ended: self.ended.clone() }
    }

    pub(super) async fn watch(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Vec::new();
        loop {
            tick.tick().await;
            self.look(&mut seen);
        }
    }

    /// Looks at every thread; `seen` are the counts of the look before.
    fn look(&self, seen: &mut Vec<u32>) {
        let threads = self.all.lock().clone();
        seen.resize(threads.len(), u32::MAX);
        for (thread, seen) in threads.iter().zip(seen) {
            let beats = thread.beats.load(Relaxed);
            let still = thread.still.load(Relaxed);
            let name = &thread.name;
            if std::mem::replace(seen, beats) != beats {
                thread.still.store(0, Relaxed);
                if STANDS_STILL <= still {
                    tracing::warn!(thread = name, "a thread goes on that stood still");
                }
            } else {
                thread.still.store(still.saturating_add(1), Relaxed);
                if still + 1 == STANDS_STILL && !thread.ended.load(Relaxed) {
                    tracing::error!(thread = name, "a thread stands still: /livez fails");
                }
            }
        }
    }

    pub(super) fn dead(&self) -> Vec<Dead> {
        let dead = |thread: &Arc<Thread>| {
            let still = thread.still.load(Relaxed);
            if thread.ended.load(Relaxed) {
                Some(Dead::ThreadEnded(thread.name.clone()))
            } else if STANDS_STILL <= still {
                let seconds = (TICK * still).as_secs();
                Some(Dead::StandsStill { thread: thread.name.clone(), seconds })
            } else {
                None
            }
        };
        self.all.lock().iter().filter_map(dead).collect()
    }

    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        let name = ended.wait_for(Option::is_some).await.ok().and_then(|name| name.clone());
        name.unwrap_or_default() // the sender lives as long as self
    }
}

impl Alive {
    /// Counts heartbeats. Never ends.
    pub async fn beat(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.thread.beats.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if Phase::Ended <= self.lifecycle.phase() {
            return;
        }
        let name = &self.thread.name;
        tracing::error!(thread = name, "a thread ended before the process");
        self.thread.ended.store(true, Relaxed);
        self.ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| name.clone());
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Delay;

    #[test]
    fn a_thread_without_a_heartbeat_stands_still_until_it_goes_on() {
        let threads = Threads::new(Lifecycle::default());
        let [one, other] = ["one", "other"].map(|name| threads.begins(name));
        let mut seen = Vec::new();
        let look = |seen: &mut Vec<u32>| {
            other.thread.beats.fetch_add(1, Relaxed);
            threads.look(seen);
        };
        for _ in 0..STANDS_STILL {
            look(&mut seen);
            assert_eq!(threads.dead(), []);
        }
        look(&mut seen);
        let seconds = (TICK * STANDS_STILL).as_secs();
        assert_eq!(threads.dead(), [Dead::StandsStill { thread: "one".to_owned(), seconds }]);
        one.thread.beats.fetch_add(1, Relaxed);
        look(&mut seen);
        assert_eq!(threads.dead(), []);
    }

    #[tokio::test]
    async fn a_thread_that_ends_before_the_process_is_told() {
        let lifecycle = Lifecycle::default();
        let threads = Threads::new(lifecycle.clone());
        let [one, other] = ["one", "other"].map(|name| threads.begins(name));
        drop(one);
        assert_eq!(threads.dead(), [Dead::ThreadEnded("one".to_owned())]);
        assert_eq!(threads.ended().await, "one");
        let control = crate::control::Control::new(Vec::new());
        tokio::time::pause();
        lifecycle.drain(&control, Delay::Whole, || async {}).await;
        drop(other);
        assert_eq!(threads.dead().len(), 1, "the other ended with the process");
    }
}
