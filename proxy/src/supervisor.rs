//! Starts the workers and keeps them running, where nobody else does: `outrigger-proxy run -- COMMAND`.
//!
//! A worker that dies is started again, after ever longer waits. SIGHUP replaces every worker by a new process, one
//! after the other, and loses no request: the new one serves before the old one is asked to stop.
//! Each worker leads a process group of its own, so that whatever it starts ends with it.

mod process;
mod slot;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

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
}

impl Settings {
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
            restart_all(&orders).await;
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

/// One worker after the other; the first that fails ends it, and those after it stay as they are.
async fn restart_all(orders: &[Orders]) {
    tracing::info!(workers = orders.len(), "rolling restart");
    for (i, order) in orders.iter().enumerate() {
        let (reply, replaced) = tokio::sync::oneshot::channel();
        if order.send(reply).await.is_err() {
            return; // the slot ended: the process is about to
        }
        if replaced.await != Ok(true) {
            return tracing::error!(worker = name(i), left = orders.len() - i, "rolling restart stopped");
        }
    }
    tracing::info!("rolling restart done");
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
