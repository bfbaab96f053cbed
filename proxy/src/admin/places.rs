//! Who may be connected to the admin port: so many at once, and nobody keeps the others out.
//!
//! A connection is always accepted. When all places are taken, the address with the most connections loses the one on which
//! nothing was answered for longest, so that a probe that comes has its answer before its own turn comes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The places of the port.
pub(super) struct Places {
    most: usize,
    open: Mutex<Vec<Arc<Open>>>,
}

struct Open {
    address: IpAddr,
    /// When it was accepted, or its last request answered.
    since: Mutex<Instant>,
    evicted: AtomicBool,
    told: Notify,
}

/// A connection's place, until this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    open: Arc<Open>,
}

impl Places {
    /// So many.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A place for a connection from this address.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        let mut open = self.open.lock();
        if self.most <= open.len()
            && let Some(victim) = victim(&open)
        {
            open.swap_remove(victim).evict();
        }
        let since = Mutex::new(Instant::now());
        let new = Open { address, since, evicted: AtomicBool::new(false), told: Notify::new() };
        let new = Arc::new(new);
        open.push(new.clone());
        Place { places: self.clone(), open: new }
    }
}

/// Which connection gives way: of the address that has most, the oldest.
fn victim(open: &[Arc<Open>]) -> Option<usize> {
    let mut counts = HashMap::<IpAddr, usize>::new();
    for open in open {
        *counts.entry(open.address).or_default() += 1;
    }
    let candidates = open.iter().enumerate();
    let first = candidates.max_by_key(|(_, open)| (counts.get(&open.address), open.since.lock().elapsed()));
    first.map(|(place, _)| place)
}

impl Open {
    fn evict(&self) {
        self.evicted.store(true, Relaxed);
        self.told.notify_one();
    }
}

impl Place {
    /// A request was answered.
    pub(super) fn answered(&self) {
        *self.open.since.lock() = Instant::now();
    }

    /// Waits until the connection has to give way.
    pub(super) async fn evicted(&self) {
        while !self.open.evicted.load(Relaxed) {
            self.open.told.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.lock().retain(|open| !Arc::ptr_eq(open, &self.open));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CROWD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 66));
    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn is_evicted(place: &Place) -> bool {
        place.open.evicted.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_loses_the_one_that_was_answered_longest_ago() {
        let places = Places::new(4);
        let node = places.take(NODE);
        let mut crowd = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(1)).await;
            crowd.push(places.take(CROWD));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        crowd[0].answered();
        let next = places.take(CROWD);
        assert!(!is_evicted(&node) && !is_evicted(&next));
        assert_eq!(crowd.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        crowd[1].evicted().await;
        drop((crowd, next));
        assert_eq!(places.open.lock().len(), 1);
    }
}
