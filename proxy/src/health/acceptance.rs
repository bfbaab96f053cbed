//! Whether a worker accepts connections, as the proxy finds out by itself where no health check is configured: it connects now
//! and then, and closes the connection at once.
//!
//! Only these connections decide. What requests meet is not asked: a client could choose when and how often.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant as Time};

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::availability;
use crate::worker::Worker;

/// How long after the start of the process a worker that accepts no connection is waited for.
pub const GRACE: Duration = Duration::from_secs(30);
/// The time between two connections to a worker that accepts them.
const INTERVAL: Duration = Duration::from_secs(2);
/// The same while it does not.
const AGAIN: Duration = Duration::from_millis(250);
/// A connection that takes longer says nothing: the worker may be busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a worker accepts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// It accepted one when it was asked last, or nothing else is known.
    Accepting,
    /// It has accepted none since the proxy started: its process may be starting.
    Starting,
    /// It did accept them, and now nobody listens at its address.
    Refusing,
}

/// The same, shared by all threads: one byte, for requests may read it.
pub struct Accepts(AtomicU8);

impl Default for Accepts {
    fn default() -> Self {
        Self(AtomicU8::new(Acceptance::Accepting as u8))
    }
}

impl Accepts {
    /// What is known.
    pub fn now(&self) -> Acceptance {
        [Acceptance::Starting, Acceptance::Refusing]
            .into_iter()
            .find(|acceptance| *acceptance as u8 == self.0.load(Relaxed))
            .unwrap_or(Acceptance::Accepting)
    }

    /// Notes what is known now; what was known before.
    pub fn set(&self, acceptance: Acceptance) -> Acceptance {
        let before = self.now();
        self.0.store(acceptance as u8, Relaxed);
        before
    }
}

impl Worker {
    /// Its process may be still starting: it accepts no connections before one of the proxy's own says so.
    pub fn starts(&self) {
        self.accepts.set(Acceptance::Starting);
        availability::changed();
    }

    /// A connection of the proxy's own was accepted. A worker that was away starts slowly, where the policy says so, and may
    /// be another program.
    pub fn accepts(&self) {
        let before = self.accepts.set(Acceptance::Accepting);
        if before == Acceptance::Accepting {
            return;
        }
        if before == Acceptance::Refusing {
            self.speaks.forget();
        }
        self.load.set_ready(Time::now());
        availability::changed();
        tracing::info!(worker = self.name, "worker accepts connections");
    }

    /// A connection of the proxy's own was refused.
    pub fn refuses(&self) {
        if self.acceptance() == Acceptance::Accepting {
            self.accepts.set(Acceptance::Refusing);
            availability::changed();
            tracing::warn!(worker = self.name, "worker refuses connections");
        }
    }

    /// Whether it accepts connections, as far as the proxy's own say.
    pub fn acceptance(&self) -> Acceptance {
        self.accepts.now()
    }

    /// Whether it was not well since the proxy started: it has accepted no connection, or passed no health check.
    pub fn starting(&self) -> bool {
        self.acceptance() == Acceptance::Starting || !self.healthy() && !self.health_known()
    }
}

/// Connects to one worker again and again. Never ends.
pub(super) async fn keep_connecting(worker: Arc<Worker>) {
    keep_asking(&worker, || async { worker.connect().await.map(drop) }).await;
}

async fn keep_asking<F: Future<Output = io::Result<()>>>(worker: &Worker, dial: impl Fn() -> F) {
    let (began, mut told) = (Instant::now(), false);
    loop {
        match timeout(PATIENCE, dial()).await {
            Ok(Ok(())) => worker.accepts(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => worker.refuses(),
            // Out of descriptors, memory or ports; or a worker that is busy.
            Ok(Err(_)) | Err(_) => {}
        }
        let acceptance = worker.acceptance();
        if acceptance == Acceptance::Starting
            && GRACE <= began.elapsed()
            && !std::mem::replace(&mut told, true)
        {
            let seconds = GRACE.as_secs();
            tracing::warn!(
                worker = worker.name,
                seconds,
                "worker has accepted no connection since the start"
            );
        }
        sleep(if acceptance == Acceptance::Accepting { INTERVAL } else { AGAIN }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;

    use super::*;

    /// What a connection meets at a time after the beginning.
    type Meets = fn(Duration) -> Result<(), io::ErrorKind>;

    /// What is known of a worker, that was starting where `starts`, at each of these times in seconds.
    async fn known(starts: bool, meets: Meets, seconds: &[u64]) -> Vec<Acceptance> {
        let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
        if starts {
            worker.starts();
        }
        let began = Instant::now();
        let asking = keep_asking(&worker, || async move { meets(began.elapsed()).map_err(io::Error::from) });
        let mut found = Vec::new();
        let looking = async {
            for second in seconds {
                tokio::time::sleep_until(began + Duration::from_secs(*second)).await;
                found.push(worker.acceptance());
            }
        };
        tokio::select! {
            () = asking => {}
            () = looking => {}
        }
        found
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_starts_until_it_accepts_a_connection() {
        use Acceptance::*;
        let meets: Meets = |at| if at.as_secs() < 6 { Err(io::ErrorKind::ConnectionRefused) } else { Ok(()) };
        assert_eq!(known(true, meets, &[1, 5, 7, 60]).await, [Starting, Starting, Accepting, Accepting]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_gone_refuses_until_it_is_back() {
        use Acceptance::*;
        let meets: Meets = |at| {
            if (10..40).contains(&at.as_secs()) { Err(io::ErrorKind::ConnectionRefused) } else { Ok(()) }
        };
        assert_eq!(known(false, meets, &[9, 13, 39, 41]).await, [Accepting, Refusing, Refusing, Accepting]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_the_workers_doing_says_nothing() {
        for errno in
            [rustix::io::Errno::MFILE, rustix::io::Errno::ADDRNOTAVAIL, rustix::io::Errno::HOSTUNREACH]
        {
            for starts in [false, true] {
                let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
                if starts {
                    worker.starts();
                }
                let before = worker.acceptance();
                let asking = keep_asking(&worker, || async move { Err(errno.into()) });
                assert!(timeout(Duration::from_secs(60), asking).await.is_err());
                assert_eq!(worker.acceptance(), before, "{errno}");
            }
        }
        let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
        let hanging = keep_asking(&worker, std::future::pending);
        assert!(timeout(Duration::from_secs(60), hanging).await.is_err());
        assert_eq!(worker.acceptance(), Acceptance::Accepting, "a full queue is no refusal");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_few() {
        let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
        let count = |meets: fn() -> io::Result<()>| {
            let (worker, made) = (worker.clone(), Cell::new(0));
            async move {
                let counted = || async {
                    made.set(made.get() + 1);
                    meets()
                };
                let _ = timeout(Duration::from_secs(60), keep_asking(&worker, counted)).await; // it never ends
                made.get()
            }
        };
        assert!((30..=31).contains(&count(|| Ok(())).await));
        assert!((240..=241).contains(&count(|| Err(io::ErrorKind::ConnectionRefused.into())).await));
    }
}
