//! How many connections of clients the process has at once, over all its data threads, and how many of one address.
//!
//! A connection takes its place when it is accepted, which is all that threads share of it. Requests touch nothing here.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::rejection::Rejection;

/// One in so many places is kept free: while an old connection makes room, a new one finds a place.
const KEPT_FREE: usize = 64;

/// The places of the process.
pub struct Cap {
    most: usize,
    /// As many of one address, where that is bounded.
    of_an_address: Option<usize>,
    open: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    threads: Box<[Thread]>,
}

/// A data thread, as the others see it.
#[derive(Default)]
struct Thread {
    /// As many of its connections would give way, as of its last tick.
    gives: AtomicUsize,
    /// As many are asked of it.
    asked: AtomicUsize,
    told: Notify,
}

/// A connection's place, until this is dropped.
pub struct Place {
    cap: Arc<Cap>,
    address: IpAddr,
}

impl Cap {
    /// So many places, for so many data threads.
    pub fn new(most: usize, of_an_address: Option<usize>, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            of_an_address,
            open: AtomicUsize::new(0),
            addresses: Mutex::default(),
            threads: (0..threads).map(|_| Thread::default()).collect(),
        })
    }

    /// A place for a connection from this address, whether there is room or not.
    ///
    /// # Errors
    /// That the address has its share.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Rejection> {
        if let Some(share) = self.of_an_address {
            let mut addresses = self.addresses.lock();
            let open = addresses.entry(address).or_default();
            if share <= *open {
                return Err(Rejection::AddressLimit);
            }
            *open += 1;
        }
        self.open.fetch_add(1, Relaxed);
        Ok(Place { cap: self.clone(), address })
    }

    /// Whether a new connection needs an old one to give way.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.most - self.most / KEPT_FREE < self.open.load(Relaxed)
    }

    /// Whether the places that are kept free are taken too.
    pub(super) fn is_full(&self) -> bool {
        self.most <= self.open.load(Relaxed)
    }

    /// Whether there are more connections than there may be.
    pub(super) fn is_exceeded(&self) -> bool {
        self.most < self.open.load(Relaxed)
    }

    /// So many of a thread's connections would give way.
    pub(super) fn gives(&self, thread: usize, count: usize) {
        self.threads[thread].gives.store(count, Relaxed);
    }

    /// Asks another thread for a place. Whether one has any to give.
    pub(super) fn ask_another(&self, than: usize) -> bool {
        let others = self.threads.iter().enumerate().filter(|(i, _)| *i != than);
        others.map(|(_, other)| other).any(|other| {
            let has = other.gives.fetch_update(Relaxed, Relaxed, |gives| gives.checked_sub(1)).is_ok();
            if has {
                other.asked.fetch_add(1, Relaxed);
                other.told.notify_one();
            }
            has
        })
    }

    /// How many places others have asked of a thread since this was last asked.
    pub(super) fn asked(&self, thread: usize) -> usize {
        self.threads[thread].asked.swap(0, Relaxed)
    }

    /// Waits until another thread asks this one for a place.
    pub(super) async fn is_asked(&self, thread: usize) {
        self.threads[thread].told.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cap.open.fetch_sub(1, Relaxed);
        if self.cap.of_an_address.is_none() {
            return;
        }
        let mut addresses = self.cap.addresses.lock();
        if let Some(open) = addresses.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn a_place_is_the_process_s_and_not_a_thread_s() {
        let cap = Cap::new(128, None, 2);
        let mut places: Vec<_> = (0..126).map(|_| cap.take(ONE)).collect();
        assert!(!cap.is_nearly_full());
        places.push(cap.take(ONE));
        assert!(cap.is_nearly_full() && !cap.is_exceeded());
        places.extend((0..2).map(|_| cap.take(ONE)));
        assert!(cap.is_exceeded());
        drop(places);
        assert_eq!(cap.open.load(Relaxed), 0);
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let cap = Cap::new(9, Some(2), 1);
        let held = [cap.take(ONE), cap.take(ONE)];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(cap.take(ONE).err(), Some(Rejection::AddressLimit));
        assert!(cap.take(OTHER).is_ok());
        drop(held);
        assert!(cap.take(ONE).is_ok());
        assert!(cap.addresses.lock().is_empty(), "nothing is kept of who is gone");
    }

    #[tokio::test]
    async fn another_thread_is_asked_for_what_it_has() {
        let cap = Cap::new(9, None, 2);
        assert!(!cap.ask_another(0));
        cap.gives(1, 2);
        assert!(!cap.ask_another(1), "it asks others");
        assert!(cap.ask_another(0) && cap.ask_another(0));
        assert!(!cap.ask_another(0));
        cap.is_asked(1).await;
        assert_eq!([cap.asked(1), cap.asked(1), cap.asked(0)], [2, 0, 0]);
    }
}
