//! The log of answers that are not a worker's, of attempts that failed and of answers that broke off: a line each, up to
//! ten a second for each reason and thread. The rest is counted, and said once a second.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{Method, Uri};

use crate::connection::Client;
use crate::metrics;
use crate::rejection::Rejection;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// The target of these lines, whose number is bounded here.
pub const TARGET: &str = "outrigger_proxy::refusals";

/// Lines at once for each reason, and the time after which there may be one more.
const BURST: u32 = 10;
const EACH: Duration = Duration::from_millis(100);
/// How often it is said how many there were beside these.
const SAID: Duration = Duration::from_secs(1);
/// Bytes of a path that a line has at most.
const PATH: usize = 96;

/// Reasons beside those of a `Rejection`.
const MORE: [&str; 2] = ["attempt_failed", "answer_broke_off"];
const REASONS: usize = Rejection::LABELS.len() + MORE.len();

/// What was asked, as far as a line needs it: a copy, for the request itself goes on to a worker.
#[derive(Clone)]
pub struct Asked {
    /// Who asked, as far as hops that are believed say so.
    pub client: IpAddr,
    /// The worker that was tried last, by its id.
    pub worker: Cell<Option<u32>>,
    method: Option<Method>,
    path: [u8; PATH],
    length: u8,
}

impl Asked {
    /// By the peer of this connection, of which no head is known yet.
    pub fn by(client: &Client) -> Self {
        Self::from(client.peer.ip())
    }

    /// By a connection from this address.
    pub fn from(client: IpAddr) -> Self {
        Self { client, worker: Cell::new(None), method: None, path: [0; PATH], length: 0 }
    }

    /// Keeps the method and the beginning of the path. A query may hold secrets, and is not kept.
    pub fn heard(&mut self, method: &Method, target: &Uri) {
        self.method = Some(method.clone());
        let path = target.path();
        let length = path.floor_char_boundary(PATH);
        self.path[..length].copy_from_slice(&path.as_bytes()[..length]);
        self.length = u8::try_from(length).unwrap_or_default(); // `PATH` at most
    }

    fn path(&self) -> Option<&str> {
        self.method.as_ref()?; // nothing was heard
        std::str::from_utf8(&self.path[..usize::from(self.length)]).ok()
    }
}

/// What one thread has logged of late.
pub struct Refusals {
    reasons: [Reason; REASONS],
    said: Cell<Instant>,
}

struct Reason {
    /// When it may burst again.
    full_at: Cell<Instant>,
    suppressed: Cell<u64>,
}

impl Refusals {
    /// Nothing was logged yet.
    pub fn new(now: Instant) -> Self {
        let reason = |_| Reason { full_at: Cell::new(now), suppressed: Cell::new(0) };
        Self { reasons: std::array::from_fn(reason), said: Cell::new(now) }
    }

    /// The proxy answered itself.
    pub fn refused(&self, rejection: Rejection, asked: &Asked, (route, snapshot): (usize, &Snapshot)) {
        if !self.admits(rejection.index(), Instant::now()) {
            return;
        }
        let worker = asked.worker.get().and_then(|id| {
            let mut members = snapshot.workers.iter().chain(snapshot.siblings.members());
            members.find(|worker| worker.id == id)
        });
        tracing::info!(
            target: TARGET,
            reason = rejection.label(),
            status = rejection.status().as_u16(),
            detail = rejection.message(),
            client = %asked.client,
            method = asked.method.as_ref().map(Method::as_str),
            path = asked.path(),
            route = metrics::route_name(route),
            worker = worker.map(|worker| worker.name.as_str()),
            "refused"
        );
    }

    /// An attempt failed; there may be another.
    pub fn attempt_failed(&self, worker: &Worker, error: &dyn std::fmt::Display) {
        if self.admits(Rejection::LABELS.len(), Instant::now()) {
            tracing::info!(target: TARGET, worker = worker.name, %error, "an attempt failed");
        }
    }

    /// An answer that began well broke off.
    pub fn broke_off(&self, worker: &Worker, asked: &Asked, error: &dyn std::fmt::Display) {
        if self.admits(Rejection::LABELS.len() + 1, Instant::now()) {
            tracing::info!(
                target: TARGET,
                client = %asked.client,
                method = asked.method.as_ref().map(Method::as_str),
                path = asked.path(),
                worker = worker.name,
                %error,
                "an answer broke off"
            );
        }
    }

    /// Says once a second how many lines there were beside those that were logged.
    pub fn tick(&self, now: Instant) {
        if now < self.said.get() + SAID {
            return;
        }
        self.said.set(now);
        let names = Rejection::LABELS.iter().chain(&MORE);
        for (reason, name) in self.reasons.iter().zip(names) {
            match reason.suppressed.take() {
                0 => {}
                more => tracing::info!(target: TARGET, reason = name, suppressed = more, "more of these"),
            }
        }
    }

    fn admits(&self, reason: usize, now: Instant) -> bool {
        let reason = &self.reasons[reason];
        let next = reason.full_at.get().max(now) + EACH;
        let admitted = next <= now + EACH * BURST;
        match admitted {
            true => reason.full_at.set(next),
            false => reason.suppressed.set(reason.suppressed.get() + 1),
        }
        admitted
    }
}

#[cfg(test)]
mod tests;
