//! Starts the workers and keeps them running, where nobody else does: `outrigger-proxy run -- COMMAND`.
//!
//! A worker that dies is started again, after ever longer waits. SIGHUP replaces every worker by a new process, one
//! after the other, and loses no request: the new one serves before the old one is asked to stop.
//! A worker is the process that was started here: whoever else listens on its port gets no request (`port`), and whatever
//! it started ends with it, and with the proxy (`warden`).

mod beginning;
mod port;
mod preflight;
mod process;
mod slot;
pub mod warden;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

pub use self::beginning::Beginning;
pub use self::preflight::{Conflict, preflight};
use self::slot::{Orders, Slot};
use crate::control::Control;
use crate::drain::{Lifecycle, Phase};
use crate::essential::{Task, Tasks};

/// What to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How many workers.
    pub workers: usize,
    /// Worker `i` listens on `base_port + i`, and after a rolling restart on `base_port + workers + i`, and so on
    /// in turn. `None`: any free port.
    pub base_port: Option<u16>,
    /// How their start stands.
    pub beginning: Arc<Beginning>,
}

impl Settings {
    /// Workers that are not started yet.
    pub fn new(command: Vec<String>, workers: usize, base_port: Option<u16>) -> Self {
        Self { command, workers, base_port, beginning: Arc::default() }
    }

    /// What the workers are named.
    pub fn names(&self) -> Vec<String> {
        (0..self.workers).map(name).collect()
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// From a process's start until it accepts connections, and passes the health check in a rolling restart.
    start: Duration,
    /// From SIGTERM to SIGKILL.
    stop: Duration,
    /// The shortest and the longest wait before a worker that died is started again.
    restart: [Duration; 2],
    /// After a life of this length the next death is a first one.
    healthy: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            stop: Duration::from_secs(10),
            restart: [Duration::from_millis(100), Duration::from_secs(10)],
            healthy: Duration::from_secs(10),
        }
    }
}

/// Runs the workers until the lifecycle has ended and every process is gone. To be waited for: what ends the
/// program before leaves workers behind.
pub async fn run(control: Arc<Control>, settings: Settings, lifecycle: Lifecycle, tasks: Arc<Tasks>) {
    let (restart, restarts) = mpsc::channel(1);
    let hangups = async move {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return tracing::error!(%error, "SIGHUP cannot be waited for: no rolling restarts"),
        };
        while hangup.recv().await.is_some() {
            let _ = restart.try_send(()); // full: a restart waits already, and will replace everything
        }
    };
    let supervised = Supervised { control, settings, lifecycle, patience: Patience::default(), tasks };
    tokio::select! {
        () = supervise(supervised, restarts) => {}
        () = async { hangups.await; std::future::pending().await } => {}
    }
}

/// What every slot shares.
struct Supervised {
    control: Arc<Control>,
    settings: Settings,
    lifecycle: Lifecycle,
    patience: Patience,
    tasks: Arc<Tasks>,
}

async fn supervise(shared: Supervised, mut restarts: mpsc::Receiver<()>) {
    let shared = Arc::new(shared);
    let mut orders = Vec::new();
    let mut slots = JoinSet::new();
    for i in 0..shared.settings.workers {
        let (order, ordered) = mpsc::channel(1);
        orders.push(order);
        let (ordered, slot) = (Arc::new(Mutex::new(ordered)), shared.clone());
        let keep = move || {
            let (slot, ordered) = (Slot::new(i, slot.clone()), ordered.clone());
            async move { slot.keep(&mut *ordered.lock().await).await }
        };
        slots.spawn(shared.tasks.clone().kept(Task::Worker, keep));
    }
    let rolling = async {
        while restarts.recv().await.is_some() {
            restart_all(&shared.control, &orders).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = rolling => {}
        () = shared.lifecycle.reached(Phase::Ended) => {}
    }
    slots.join_all().await;
    tracing::info!("every worker has ended");
}

/// One worker after the other; the first that fails ends it, and those after it stay as they are. It is done when every old
/// process is gone and every new one serves.
async fn restart_all(control: &Control, orders: &[Orders]) {
    tracing::info!(workers = orders.len(), "rolling restart");
    let before: BTreeSet<u32> = control.snapshot().workers.iter().map(|worker| worker.id).collect();
    let stopped = |slot, reason: &str| {
        tracing::error!(worker = name(slot), reason, left = orders.len() - slot, "rolling restart stopped");
    };
    for (i, order) in orders.iter().enumerate() {
        let (reply, replaced) = tokio::sync::oneshot::channel();
        if order.send(reply).await.is_err() {
            return; // the slot ended: the process is about to
        }
        match replaced.await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return stopped(i, &reason),
            Err(_) => return stopped(i, "the proxy ends"),
        }
    }
    let snapshot = control.snapshot();
    let serves = |slot: &usize| {
        let mut new =
            snapshot.workers.iter().filter(|worker| !before.contains(&worker.id) && !worker.draining());
        new.any(|worker| worker.name == name(*slot))
    };
    match (0..orders.len()).find(|slot| !serves(slot)) {
        Some(slot) => stopped(slot, "the new process has ended already"),
        None => tracing::info!("rolling restart done"),
    }
}

/// Slots count from 0, workers from 1.
fn name(slot: usize) -> String {
    format!("worker-{}", slot + 1)
}

/// Where a slot's next process is to listen. `turn` counts the slot's replacements.
fn address(settings: &Settings, slot: usize, turn: usize) -> std::io::Result<SocketAddr> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(base) = settings.base_port else {
        // Taken and given back: another program may take it, and then the worker fails and gets the next.
        return TcpListener::bind(loopback(0))?.local_addr();
    };
    let offset = slot + turn % 2 * settings.workers;
    let port = u16::try_from(offset).ok().and_then(|offset| base.checked_add(offset));
    port.map(loopback).ok_or_else(|| std::io::Error::other("the worker's port would be above 65535"))
}

#[cfg(test)]
mod tests;
