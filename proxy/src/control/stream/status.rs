//! How the operator's stream stands, for `/api/snapshot` and the metrics.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

/// How the operator's stream stands.
#[derive(Default)]
pub struct Status {
    /// Whether there is an operator to have a stream from.
    started: AtomicBool,
    connected: AtomicBool,
    acknowledged: AtomicU64,
    rejected: AtomicU64,
    lost: AtomicU64,
    detail: Mutex<Detail>,
}

#[derive(Default)]
struct Detail {
    replica: Option<String>,
    since: Option<Instant>,
    last_error: Option<String>,
}

/// What is shown of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Whether the stream is open.
    pub connected: bool,
    /// The replica that holds it, or held it last.
    pub replica: Option<String>,
    /// How long it has been open, or broken.
    pub since_seconds: Option<u64>,
    /// Why it last ended.
    pub last_error: Option<String>,
    /// Updates put in force.
    pub acknowledged: u64,
    /// Updates refused.
    pub rejected: u64,
    /// How often the stream ended, or could not be opened.
    pub lost: u64,
}

impl Status {
    /// Whether the stream is open.
    pub fn connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Updates put in force.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Updates refused.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// How often the stream ended, or could not be opened.
    pub fn lost_streams(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// What is shown of it; `None` without an operator.
    pub fn view(&self, now: Instant) -> Option<View> {
        if !self.started.load(Relaxed) {
            return None;
        }
        let detail = self.detail.lock();
        Some(View {
            connected: self.connected(),
            replica: detail.replica.clone(),
            since_seconds: detail.since.map(|since| now.saturating_duration_since(since).as_secs()),
            last_error: detail.last_error.clone(),
            acknowledged: self.acknowledged(),
            rejected: self.rejected(),
            lost: self.lost_streams(),
        })
    }

    pub(super) fn start(&self) {
        self.started.store(true, Relaxed);
        self.connected.store(false, Relaxed);
    }

    pub(super) fn welcomed(&self, replica: String) {
        let mut detail = self.detail.lock();
        detail.replica = Some(replica);
        detail.since = Some(Instant::now());
        self.connected.store(true, Relaxed);
    }

    pub(super) fn lost(&self, error: &impl Display) {
        let mut detail = self.detail.lock();
        detail.last_error = Some(error.to_string());
        if self.connected.swap(false, Relaxed) || detail.since.is_none() {
            detail.since = Some(Instant::now());
        }
        self.lost.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self, accepted: bool) {
        let counter = if accepted { &self.acknowledged } else { &self.rejected };
        counter.fetch_add(1, Relaxed);
    }
}
