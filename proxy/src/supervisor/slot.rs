//! The place of one worker: one process serves in it at a time, while others start or end.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::port::{self, Owner, Stranger};
use super::process::{Elsewhere, Family, Listens, NotStarted, Process, exit};
use super::{Patience, Supervised, address, name};
use crate::backoff::Backoff;
use crate::drain::Phase;
use crate::health;
use crate::worker::Worker;

/// Tells whether the slot's process was replaced, and why not.
pub(super) type Reply = oneshot::Sender<Result<(), String>>;
/// Orders to replace the slot's process.
pub(super) type Orders = mpsc::Sender<Reply>;

/// How often a process that retires is asked for its requests in flight. A request that still sees it in an
/// older snapshot has counted itself long before the first time.
const IN_FLIGHT: Duration = Duration::from_millis(50);
/// The time between two health checks of a process that is to replace another.
const CHECK: Duration = Duration::from_millis(100);
/// How often is looked whether a worker's process has its port still. Connections look by themselves.
const WATCH: Duration = Duration::from_millis(250);

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
        let mut ordered: Option<Reply> = None;
        loop {
            let started = self.start(ordered.is_some()).await;
            if let Some(reply) = ordered.take() {
                let _ = reply.send(started.as_ref().map_err(ToString::to_string).copied()); // as in `replace`
            }
            match started {
                Err(error) => {
                    tracing::error!(worker = self.name, %error, "worker does not start");
                    self.shared.settings.beginning.does_not_start(self.index, &error);
                }
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
            ordered = timeout(wait, next(orders)).await.ok(); // who orders a restart does not wait
        }
    }

    /// Starts a process and puts it in service as soon as it accepts connections; one that was ordered, as soon as it passes
    /// the health check too.
    async fn start(&mut self, ordered: bool) -> Result<(), NotStarted> {
        let process = self.spawn().await?;
        if ordered {
            let (process, worker) = self.prove(process).await?;
            self.put_in_service(process, worker);
            return Ok(());
        }
        let (process, worker) = self.accepts(process).await?;
        if self.shared.control.snapshot().policy.health_check.is_some() {
            worker.set_healthy(false); // until its first check passes
        }
        self.put_in_service(process, worker);
        Ok(())
    }

    async fn spawn(&self) -> Result<Process, NotStarted> {
        let settings = &self.shared.settings;
        let address = address(settings, self.index, self.turn)?;
        let process = Process::start(&settings.command, self.index, address).await?;
        settings.beginning.executes();
        Ok(process)
    }

    /// Waits until a process accepts connections.
    async fn accepts(&self, mut process: Process) -> Result<(Process, Arc<Worker>), NotStarted> {
        let Patience { start, stop, .. } = self.shared.patience;
        match timeout(start, listens(&self.shared, self.index, &mut process)).await {
            Ok(worker) => Ok((process, worker?)),
            Err(_) => {
                process.stop(stop).await;
                Err(NotStarted::Silent)
            }
        }
    }

    /// Serves until the process dies, whatever replaced it in the meantime; returns how long it lived.
    async fn serve(&mut self, orders: &mut mpsc::Receiver<Reply>) -> Duration {
        loop {
            let Some(serving) = &mut self.serving else { return Duration::ZERO };
            let lost = loses_its_port(serving.worker.clone(), serving.process.family());
            tokio::select! {
                status = serving.process.ended() => return self.died(&status).await,
                stranger = lost => return self.lost(&stranger).await,
                Some(reply) = orders.recv() => self.replace(reply).await,
            }
        }
    }

    async fn died(&mut self, status: &io::Result<ExitStatus>) -> Duration {
        let Some(mut serving) = self.serving.take() else { return Duration::ZERO };
        serving.worker.set_draining(true);
        let (life, status) = (serving.since.elapsed(), exit(status));
        tracing::error!(worker = self.name, status, life_seconds = life.as_secs_f64(), "worker died");
        self.shared.settings.beginning.is_not_up(self.index, format!("it ended with {status}"));
        serving.process.kill().await; // what it left behind, which may have its port
        life
    }

    /// Ends a process in whose place another one listens: it serves nobody any more.
    async fn lost(&mut self, stranger: &Stranger) -> Duration {
        let Some(mut serving) = self.serving.take() else { return Duration::ZERO };
        serving.worker.set_draining(true);
        let (life, address) = (serving.since.elapsed(), serving.worker.address);
        tracing::error!(worker = self.name, %address, %stranger, "another process listens in the worker's place");
        self.shared.settings.beginning.is_not_up(self.index, format!("{address} is taken by {stranger}"));
        end(&mut serving.process, &self.shared).await;
        life
    }

    /// Puts a new process in the place of the one that serves; where that fails, the old one stays.
    async fn replace(&mut self, reply: Reply) {
        while self.retiring.try_join_next().is_some() {} // forgets what has ended
        self.turn += 1;
        let proved = match self.spawn().await {
            Ok(process) => self.prove(process).await,
            Err(error) => Err(error),
        };
        match proved {
            Ok((process, worker)) => {
                if let Some(old) = self.put_in_service(process, worker) {
                    self.retiring.spawn(retire(old, self.shared.clone(), reply));
                }
            }
            Err(error) => {
                tracing::error!(worker = self.name, %error, "worker is not replaced: the new process does not start");
                self.turn += 1; // the port of the process that stays is not free
                self.shared.settings.beginning.is_up(self.index);
                let _ = reply.send(Err(error.to_string())); // nobody waits any more: the restart was ended
            }
        }
    }

    /// Waits until a new process could serve: it accepts connections, and passes the health check if there is one.
    async fn prove(&mut self, mut process: Process) -> Result<(Process, Arc<Worker>), NotStarted> {
        let Patience { start, stop, .. } = self.shared.patience;
        let proved = {
            let proof = timeout(start, prove(&self.shared, self.index, &mut process));
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
            Ok(worker) => Ok((process, worker?)),
            Err(_) => {
                process.stop(stop).await;
                Err(NotStarted::NotReady)
            }
        }
    }

    /// Makes the process the one that serves; returns the one that did.
    fn put_in_service(&mut self, process: Process, worker: Arc<Worker>) -> Option<Serving> {
        tracing::info!(worker = self.name, address = %worker.address, id = process.id(), "worker is in service");
        self.shared.settings.beginning.is_up(self.index);
        let (index, new) = (self.index, worker.clone());
        self.shared.control.change_workers(move |workers| in_order(workers, index, new));
        self.serving.replace(Serving { process, worker, since: Instant::now() })
    }
}

/// The next order. Never ends when nobody can give one.
async fn next(orders: &mut mpsc::Receiver<Reply>) -> Reply {
    match orders.recv().await {
        Some(reply) => reply,
        None => std::future::pending().await,
    }
}

/// Waits until a process listens; the worker that it is.
async fn listens(shared: &Supervised, slot: usize, process: &mut Process) -> Result<Arc<Worker>, NotStarted> {
    let elsewhere = |Elsewhere { listens, told }| {
        tracing::warn!(worker = name(slot), listens, %told, "worker does not listen where it was told to, by HOST and PORT");
        shared
            .settings
            .beginning
            .is_not_up(slot, format!("it listens on {listens} and not on {told}, its HOST and PORT"));
    };
    let Listens { address, held } = process.listens(elsewhere).await?;
    let worker = Worker::new(&name(slot), address);
    worker.listening.set(held);
    Ok(worker)
}

async fn prove(shared: &Supervised, slot: usize, process: &mut Process) -> Result<Arc<Worker>, NotStarted> {
    let worker = listens(shared, slot, process).await?;
    let policy = shared.control.snapshot().policy.clone();
    let Some(check) = policy.health_check.as_ref() else {
        worker.set_healthy(true);
        return Ok(worker);
    };
    let protocol = policy.worker(&worker.name).protocol;
    let passes = async {
        while health::check_once(&worker, protocol, check).await.is_err() {
            sleep(CHECK).await;
        }
    };
    tokio::select! {
        status = process.ended() => Err(NotStarted::Ended(exit(&status))),
        () = passes => {
            worker.set_healthy(true);
            Ok(worker)
        }
    }
}

/// Waits until another process listens in a worker's place. A process of the worker's own may take over from another one.
async fn loses_its_port(worker: Arc<Worker>, family: Family) -> Stranger {
    loop {
        sleep(WATCH).await;
        if !worker.listening.is_lost() {
            continue;
        }
        match port::owner(worker.address, &family.members()) {
            Owner::Own(held) => worker.listening.set(held),
            Owner::Nobody => {} // which the connections of `health` say
            Owner::Stranger(stranger) => return stranger,
        }
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
    let _ = reply.send(Ok(())); // nobody waits any more: the restart was ended
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
