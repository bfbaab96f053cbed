//! Accepts connections, so many at once and no more.
//!
//! Anything in the pod network may connect, so nobody may be able to hold the last place. When all are taken, a connection on which
//! nothing is served for anybody known gives way to the new one: of the addresses that have such connections, the one
//! with the most loses its oldest. The same holds for the memory of what is being read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep};

/// How many connections there may be, and how much may be read on them.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of bodies that are read at once, on all of them.
    pub bytes: usize,
}

/// Accepts connections within bounds.
pub struct Listener {
    listener: TcpListener,
    places: Arc<Places>,
}

struct Places {
    bounds: Bounds,
    open: Mutex<Vec<Arc<Open>>>,
    bytes: AtomicUsize,
}

/// One connection.
struct Open {
    address: IpAddr,
    /// When it was accepted, or its last request ended.
    since: Mutex<Instant>,
    /// Somebody known uses it: it gives way to nobody.
    kept: AtomicBool,
    bytes: AtomicUsize,
    evicted: AtomicBool,
    told: Notify,
}

/// A connection's place, until this is dropped.
pub struct Place {
    places: Arc<Places>,
    open: Arc<Open>,
}

impl Listener {
    /// Accepts by this socket.
    pub fn new(listener: TcpListener, bounds: Bounds) -> Self {
        let places = Places { bounds, open: Mutex::default(), bytes: AtomicUsize::new(0) };
        Self { listener, places: Arc::new(places) }
    }

    /// The next connection that finds a place.
    pub async fn accept(&self) -> (TcpStream, Place) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match self.places.take(address.ip().to_canonical()) {
                    Some(place) => return (stream, place),
                    None => tracing::warn!(%address, "refused a connection: all places serve somebody known"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
                }
            }
        }
    }
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut open = self.open.lock();
        if self.bounds.connections <= open.len() {
            let victim = victim(&open, |_| 1)?;
            let victim = open.swap_remove(victim);
            victim.evict();
        }
        let new = Arc::new(Open {
            address,
            since: Mutex::new(Instant::now()),
            kept: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            evicted: AtomicBool::new(false),
            told: Notify::new(),
        });
        open.push(new.clone());
        Some(Place { places: self.clone(), open: new })
    }
}

/// Which connection gives way: of the address that holds most of what `holds` counts, the oldest that holds anything.
fn victim(open: &[Arc<Open>], holds: impl Fn(&Open) -> usize) -> Option<usize> {
    let gives_way = |open: &Open| !open.kept.load(Relaxed) && 0 < holds(open);
    let mut sums = HashMap::<IpAddr, usize>::new();
    for open in open.iter().filter(|open| gives_way(open)) {
        *sums.entry(open.address).or_default() += holds(open);
    }
    let candidates = open.iter().enumerate().filter(|(_, open)| gives_way(open));
    let place = candidates.max_by_key(|(_, open)| (sums.get(&open.address), open.since.lock().elapsed()))?.0;
    Some(place)
}

impl Open {
    fn evict(&self) {
        self.evicted.store(true, Relaxed);
        self.told.notify_waiters();
    }
}

impl Place {
    /// The address at the other end.
    pub fn address(&self) -> IpAddr {
        self.open.address
    }

    /// Somebody known uses the connection: it gives way to nobody from now on.
    pub fn keep(&self) {
        self.open.kept.store(true, Relaxed);
    }

    /// Whether somebody known uses it.
    pub fn is_kept(&self) -> bool {
        self.open.kept.load(Relaxed)
    }

    /// A request was answered: its age counts from now on.
    pub fn served(&self) {
        *self.open.since.lock() = Instant::now();
    }

    /// Waits until the connection must give way.
    pub async fn evicted(&self) {
        loop {
            let told = self.open.told.notified();
            if self.open.evicted.load(Relaxed) {
                return;
            }
            told.await;
        }
    }

    /// So many bytes of a body were read, and are held until `forget`. Whoever holds most gives way when that is too much in
    /// all.
    pub fn read(&self, bytes: usize) {
        self.open.bytes.fetch_add(bytes, Relaxed);
        if self.places.bytes.fetch_add(bytes, Relaxed) + bytes <= self.places.bounds.bytes {
            return;
        }
        let open = self.places.open.lock();
        if let Some(victim) = victim(&open, |open| open.bytes.load(Relaxed)) {
            open[victim].evict();
        }
    }

    /// What was read is held no more.
    pub fn forget(&self) {
        let bytes = self.open.bytes.swap(0, Relaxed);
        self.places.bytes.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.forget();
        self.places.open.lock().retain(|open| !Arc::ptr_eq(open, &self.open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 66));
    const GOOD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn places(connections: usize, bytes: usize) -> Arc<Places> {
        let bounds = Bounds { connections, bytes };
        Arc::new(Places { bounds, open: Mutex::default(), bytes: AtomicUsize::new(0) })
    }

    fn is_evicted(place: &Place) -> bool {
        place.open.evicted.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_gives_way_and_the_oldest_of_theirs_first() {
        let places = places(4, 0);
        let good = places.take(GOOD).expect("room");
        let mut held: Vec<_> = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(1)).await;
            held.push(places.take(ATTACKER).expect("room"));
        }
        let another = places.take(GOOD).expect("there is always room for one more");
        assert!(!is_evicted(&good) && !is_evicted(&another));
        assert_eq!(held.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false]);
        held[0].evicted().await;
        drop(held);
        assert_eq!(places.open.lock().len(), 2);
    }

    #[tokio::test]
    async fn somebody_known_gives_way_to_nobody() {
        let places = places(2, 0);
        let (first, second) = (places.take(GOOD).expect("room"), places.take(GOOD).expect("room"));
        first.keep();
        second.keep();
        assert!(places.take(ATTACKER).is_none());
        assert!(!is_evicted(&first) && !is_evicted(&second));
        drop(first);
        assert!(places.take(ATTACKER).is_some());
    }

    #[tokio::test]
    async fn whoever_holds_most_memory_gives_way() {
        let places = places(9, 100);
        let good = places.take(GOOD).expect("room");
        let held = [places.take(ATTACKER).expect("room"), places.take(ATTACKER).expect("room")];
        good.read(45);
        held[0].read(25);
        held[1].read(25);
        assert!(!is_evicted(&good));
        good.read(10);
        assert!(is_evicted(&good), "it holds more than they do together");
        good.forget();
        held[1].read(80);
        assert!(held.iter().any(is_evicted));
        drop(held);
        drop(good);
        assert_eq!(places.bytes.load(Relaxed), 0);
    }
}
