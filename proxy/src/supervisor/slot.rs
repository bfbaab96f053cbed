//! The place of one worker: one process serves in it at a time, while others start or end.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::process::Process;
use super::{Patience, Supervised, address, name};
use crate::backoff::Backoff;
use crate::drain::Phase;
use crate::health;
use crate::worker::Worker;

/// Tells whether the slot's process was replaced.
pub(super) type Reply = oneshot::Sender<bool>;
/// Orders to replace the slot's process.
pub(super) type Orders = mpsc::Sender<Reply>;

/// How often a process that retires is asked for its requests in flight. A request that still sees it in an
/// older snapshot has counted itself long before the first time.
const IN_FLIGHT: Duration = Duration::from_millis(50);
/// The time between two health checks of a process that is to replace another.
const CHECK: Duration = Duration::from_millis(100);

/// The place of one worker.
pub(super) struct Slot {
    index: usize,
    name: String,
    shared: Arc<Supervised>,
    serving: Option<Serving>,
    /// Replacements, which decide the port.
    turn: usize,
    /// Processes that finish their requests.
    retiring: JoinSet<()>,
}

/// A process in service.
struct Serving {
    process: Process,
    worker: Arc<Worker>,
    since: Instant,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.worker.set_draining(true); // whatever ends its process, no request is sent there any more
    }
}

impl Slot {
    pub(super) fn new(index: usize, shared: Arc<Supervised>) -> Self {
        Self { index, name: name(index), shared, serving: None, turn: 0, retiring: JoinSet::new() }
    }

    /// Keeps a process in service until the lifecycle has ended; returns when no process is left.
    pub(super) async fn keep(mut self, orders: &mut mpsc::Receiver<Reply>) {
        let lifecycle = self.shared.lifecycle.clone();
        tokio::select! {
            () = self.work(orders) => {}
            () = lifecycle.reached(Phase::Ended) => {} // a process that only starts is killed: it serves nobody
        }
        if let Some(mut serving) = self.serving.take() {
            end(&mut serving.process, &self.shared).await;
        }
        while self.retiring.join_next().await.is_some() {}
    }

    async fn work(&mut self, orders: &mut mpsc::Receiver<Reply>) {
        let Patience { restart: [first, longest], healthy, .. } = self.shared.patience;
        let mut backoff = Backoff::new(first, longest);
        loop {
            match self.start().await {
                Err(error) => tracing::error!(worker = self.name, %error, "worker does not start"),
                Ok(()) => {
                    if healthy <= self.serve(orders).await {
                        backoff.reset();
                    }
                }
            }
            let wait = backoff.wait();
            tracing::info!(
                worker = self.name,
                wait_seconds = wait.as_secs_f64(),
                "worker will be started again"
            );
            let _ = timeout(wait, replaced_anyway(orders)).await;
        }
    }

    /// Starts a process and puts it in service as soon as it accepts connections.
    async fn start(&mut self) -> io::Result<()> {
        let mut process = self.spawn()?;
        match timeout(self.shared.patience.start, process.accepts()).await {
            Ok(accepts) => accepts?,
            Err(_) => {
                process.stop(self.shared.patience.stop).await;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts no connection in time"));
            }
        }
        let check = self.shared.control.snapshot().policy.health_check.is_some();
        let worker = Worker::new(&self.name, process.address);
        if check {
            worker.set_healthy(false); // until its first check passes
        }
        self.put_in_service(process, worker);
        Ok(())
    }

    fn spawn(&self) -> io::Result<Process> {
        let settings = &self.shared.settings;
        Process::start(&settings.command, self.index, address(settings, self.index, self.turn)?)
    }

    /// Serves until the process dies, whatever replaced it in the meantime; returns how long it lived.
    async fn serve(&mut self, orders: &mut mpsc::Receiver<Reply>) -> Duration {
        loop {
            let Some(serving) = &mut self.serving else { return Duration::ZERO };
            tokio::select! {
                status = serving.process.ended() => return self.died(&status),
                Some(reply) = orders.recv() => self.replace(reply).await,
            }
        }
    }

    fn died(&mut self, status: &io::Result<ExitStatus>) -> Duration {
        let Some(serving) = self.serving.take() else { return Duration::ZERO };
        serving.worker.set_draining(true);
        let life = serving.since.elapsed();
        tracing::error!(
            worker = self.name,
            status = exit(status),
            life_seconds = life.as_secs_f64(),
            "worker died"
        );
        life
    }

    /// Puts a new process in the place of the one that serves; where that fails, the old one stays.
    async fn replace(&mut self, reply: Reply) {
        while self.retiring.try_join_next().is_some() {} // forgets what has ended
        self.turn += 1;
        let proved = match self.spawn() {
            Ok(process) => self.prove(process).await,
            Err(error) => Err(error),
        };
        match proved {
            Ok(process) => {
                let worker = Worker::new(&self.name, process.address);
                worker.set_healthy(true);
                if let Some(old) = self.put_in_service(process, worker) {
                    self.retiring.spawn(retire(old, self.shared.clone(), reply));
                }
            }
            Err(error) => {
                tracing::error!(worker = self.name, %error, "worker is not replaced: the new process does not start");
                self.turn += 1; // the port of the process that stays is not free
                let _ = reply.send(false); // nobody waits any more: the restart was ended
            }
        }
    }

    /// Waits until a new process could serve: it accepts connections, and passes the health check if there is one.
    async fn prove(&mut self, mut process: Process) -> io::Result<Process> {
        let Patience { start, stop, .. } = self.shared.patience;
        let proved = {
            let proof = timeout(start, prove(&self.shared, &self.name, &mut process));
            tokio::pin!(proof);
            match &mut self.serving {
                None => proof.await,
                Some(old) => tokio::select! {
                    proved = &mut proof => proved,
                    status = old.process.ended() => {
                        old.worker.set_draining(true); // out of the choice at once; `serve` does the rest
                        tracing::error!(worker = self.name, status = exit(&status), "worker died while it was replaced");
                        proof.await
                    }
                },
            }
        };
        match proved {
            Ok(Ok(())) => Ok(process),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                process.stop(stop).await;
                Err(io::Error::new(io::ErrorKind::TimedOut, "it is not ready in time"))
            }
        }
    }

    /// Makes the process the one that serves; returns the one that did.
    fn put_in_service(&mut self, process: Process, worker: Arc<Worker>) -> Option<Serving> {
        tracing::info!(worker = self.name, address = %process.address, id = process.id(), "worker is in service");
        let (index, new) = (self.index, worker.clone());
        self.shared.control.change_workers(move |workers| in_order(workers, index, new));
        self.serving.replace(Serving { process, worker, since: Instant::now() })
    }
}

/// A worker that is down is started anew in any case.
async fn replaced_anyway(orders: &mut mpsc::Receiver<Reply>) {
    while let Some(reply) = orders.recv().await {
        let _ = reply.send(true); // nobody waits any more: the restart was ended
    }
    std::future::pending().await
}

async fn prove(shared: &Supervised, name: &str, process: &mut Process) -> io::Result<()> {
    process.accepts().await?;
    let policy = shared.control.snapshot().policy.clone();
    let Some(check) = policy.health_check.as_ref() else { return Ok(()) };
    let (address, protocol) = (process.address, policy.worker(name).protocol);
    let passes = async {
        while health::check_once(address, protocol, check).await.is_err() {
            sleep(CHECK).await;
        }
    };
    tokio::select! {
        status = process.ended() => Err(io::Error::other(format!("it ended with {}", exit(&status)))),
        () = passes => Ok(()),
    }
}

/// Lets a process that was replaced finish its requests, and ends it.
async fn retire(mut old: Serving, shared: Arc<Supervised>, reply: Reply) {
    old.worker.set_draining(true);
    let drained = async {
        sleep(IN_FLIGHT).await;
        while 0 < old.worker.in_flight() {
            sleep(IN_FLIGHT).await;
        }
    };
    let patience = shared.control.snapshot().policy.drain.timeout;
    tokio::select! {
        drained = timeout(patience, drained) => {
            if drained.is_err() {
                tracing::warn!(worker = old.worker.name, in_flight = old.worker.in_flight(), "worker is not drained in time");
            }
        }
        () = shared.lifecycle.reached(Phase::Ended) => {}
    }
    end(&mut old.process, &shared).await;
    let _ = reply.send(true); // nobody waits any more: the restart was ended
}

/// Asks a process to end, and kills it when it takes too long or nobody waits any more.
async fn end(process: &mut Process, shared: &Supervised) {
    tokio::select! {
        () = process.stop(shared.patience.stop) => {}
        () = shared.lifecycle.reached(Phase::Cut) => process.kill().await,
    }
}

/// The workers with this one at its slot's place.
fn in_order(workers: &[Arc<Worker>], index: usize, new: Arc<Worker>) -> Vec<Arc<Worker>> {
    let mut workers = workers.to_vec();
    if let Some(place) = workers.iter().position(|worker| worker.name == new.name) {
        workers[place] = new;
        return workers;
    }
    let before: Vec<_> = (0..index).map(name).collect();
    let place = workers.iter().filter(|worker| before.contains(&worker.name)).count();
    workers.insert(place, new);
    workers
}

fn exit(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
