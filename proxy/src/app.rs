//! Builds every part and starts every thread; the result knows the bound addresses, so that tests start the real
//! program on port 0.

mod workers;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

pub use self::workers::Workers;
use crate::admin::token::TokenFile;
use crate::admin::{self, Admin};
use crate::breaker;
use crate::capacity;
use crate::client::Trust;
use crate::config::Process;
use crate::connection::{Bounds, Cap, Limits};
use crate::control::file::{self, Watcher};
use crate::control::stream::{self, Status};
use crate::control::{self, Control, keys};
use crate::descriptors::Reserve;
use crate::drain::{self, Delay, Lifecycle, Phase};
use crate::essential::{Task, Tasks};
use crate::health;
use crate::listener::{self, Front};
use crate::memory::{self, Limit, Memory};
use crate::metrics::Metrics;
use crate::metrics::exposition::{Exposition, Families};
use crate::orphans;
use crate::siblings::{Identity, Siblings};
use crate::snapshot::Source;
use crate::startup::{self, Startup};
use crate::supervisor::{self, Beginning};
use crate::thread::DataThread;
use crate::tls::Reloading;

/// How long threads may take to end once nothing is served any more: longer than workers have between SIGTERM and SIGKILL.
const LAST: Duration = Duration::from_secs(15);
/// The same once the drain is cut: workers were killed.
const LAST_CUT: Duration = Duration::from_secs(1);

/// A proxy that runs.
pub struct Running {
    /// Where clients are served.
    pub data: SocketAddr,
    /// Where health, metrics and the API are served.
    pub admin: SocketAddr,
    /// Where siblings are served.
    pub sibling: Option<SocketAddr>,
    /// The policy in force.
    pub control: Arc<Control>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    pub(crate) tasks: Arc<Tasks>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts a proxy.
///
/// # Errors
/// What cannot be bound or read.
pub fn start(process: &Process, workers: Workers) -> Result<Running> {
    let reserve = reserve(process, &workers);
    let memory = Memory::new(Limit::find(process.memory_limit), process.threads());
    let connections = capacity::connections(process.max_connections, reserve, &memory)?;
    let identity = Arc::new(Identity::default());
    let control = control_over(process, &workers, identity.clone());
    let files = process.policy.as_ref().map(|path| follow_files(process, path, &control)).transpose()?;
    let lifecycle = Lifecycle::starting();
    let tasks = Tasks::new(lifecycle.clone());
    let metrics = Arc::new(Metrics::default());
    let tls = certificate(process)?;
    let (data, listeners) = bind_all(process.listen(), process, "--listen, or PORT")?;
    let wanted = process.sibling_listen;
    let bound = wanted.map(|wanted| bind_all(wanted, process, "--sibling-listen")).transpose()?;
    let (sibling, sibling_listeners) = bound.unzip();
    let mut sibling_listeners = sibling_listeners.into_iter().flatten();
    let admin = std::net::TcpListener::bind(process.admin_listen)
        .with_context(|| format!("cannot listen on {} (--admin-listen)", process.admin_listen))?;
    admin.set_nonblocking(true)?;
    let admin_address = admin.local_addr()?;
    workers.preflight()?;

    let services = Services {
        process: process.clone(),
        control: control.clone(),
        lifecycle: lifecycle.clone(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        tls: tls.clone(),
        memory: memory.clone(),
        files: files.map(|files| Arc::new(tokio::sync::Mutex::new(files))),
        push: Arc::default(),
        configured_workers: reserve.workers,
        beginning: workers.beginning(),
    };
    let serving = services.admin()?;
    let (ends, watching) = (lifecycle.clone(), tasks.clone());
    let mut threads = vec![
        spawn(&tasks, "admin", async move || serve_admin(admin, serving, watching, ends).await)?,
        spawn(&tasks, "control", async move || services.run(workers).await)?,
    ];
    let cap = Cap::new(connections, process.max_connections_per_address, process.threads());
    for (i, listener) in listeners.into_iter().enumerate() {
        let shard = metrics.shard();
        let trust = Trust::new(process.trusted_hops, process.trusted_networks.clone());
        let bounds = Bounds { limits: limits(), cap: cap.clone(), memory: memory.clone(), thread: i };
        let (control, lifecycle, kept) = (control.clone(), lifecycle.clone(), tasks.clone());
        let clients = (Task::Clients, listener, Front::Clients(tls.clone()));
        let siblings = sibling_listeners.next();
        let siblings = siblings.map(|listener| (Task::Siblings, listener, Front::Siblings(identity.clone())));
        threads.push(spawn(&tasks, &format!("data-{i}"), async move || {
            let thread = DataThread::new(control, shard, trust, bounds);
            serve(thread, [Some(clients), siblings].into_iter().flatten(), &kept, lifecycle).await;
        })?);
    }
    let shown = sibling.map(tracing::field::display);
    let count = process.threads();
    tracing::info!(%data, admin = %admin_address, sibling = shown, threads = count, connections, "serving");
    Ok(Running { data, admin: admin_address, sibling, control, lifecycle, metrics, tasks, threads })
}

impl Running {
    /// The process's phase.
    pub fn lifecycle(&self) -> Lifecycle {
        self.lifecycle.clone()
    }

    /// Waits until a thread has ended, which none does before the process: it is not whole any more. The thread's name.
    pub async fn thread_ended(&self) -> String {
        self.tasks.thread_ended().await
    }

    /// Stops gracefully, as the policy says, and returns when every thread has ended.
    pub async fn drain(self, delay: Delay) {
        let idle = || nobody_connected(self.metrics.clone());
        self.lifecycle.drain(&self.control, delay, idle).await;
        let threads = &self.threads;
        let ended = async {
            while !threads.iter().all(JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let cut = async {
            self.lifecycle.reached(Phase::Cut).await;
            tokio::time::sleep(LAST_CUT).await;
        };
        let in_time = tokio::select! {
            () = ended => true,
            () = tokio::time::sleep(LAST) => false,
            () = cut => false,
        };
        if !in_time {
            let left = threads.iter().filter(|thread| !thread.is_finished());
            for name in left.filter_map(|thread| thread.thread().name()) {
                tracing::error!(thread = name, "a thread does not end: the process ends without it");
            }
        }
    }
}

async fn nobody_connected(metrics: Arc<Metrics>) {
    while metrics.sum(|shard| &shard.connections) + metrics.sum(|shard| &shard.active) != 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn control_over(process: &Process, workers: &Workers, identity: Arc<Identity>) -> Arc<Control> {
    let has_source = process.operator.is_some() || process.policy.is_some();
    let first = if has_source { Source::Awaited } else { Source::Default };
    let siblings = Siblings::none(process.instance.clone(), identity);
    match workers {
        Workers::Given(given) => {
            given.iter().for_each(|worker| worker.starts()); // others start them, perhaps only now
            Control::beside(given.clone(), siblings, first)
        }
        Workers::Started(settings) => Control::awaiting(settings.names(), siblings, first),
    }
}

/// The listener's certificate, where there is one.
fn certificate(process: &Process) -> Result<Option<Arc<Reloading>>> {
    match (&process.tls_cert, &process.tls_key) {
        (Some(cert), Some(key)) => {
            Ok(Some(Arc::new(Reloading::load(cert, key).context("--tls-cert and --tls-key")?)))
        }
        _ => Ok(None),
    }
}

/// Puts in force what the policy files say.
fn follow_files(process: &Process, path: &Path, control: &Arc<Control>) -> Result<Watcher> {
    let state_dir = process.state_dir.clone();
    let keys = keys::load_or_create(state_dir.as_deref());
    let settings = file::Settings { path: path.to_owned(), keys, state_dir };
    Ok(Watcher::start(control.clone(), settings)?)
}

fn reserve(process: &Process, workers: &Workers) -> Reserve {
    let (workers, wardens) = (workers.count(), workers.started());
    Reserve { threads: process.threads(), workers, wardens, admin: admin::CONNECTIONS }
}

fn limits() -> Limits {
    Limits { head: Duration::from_secs(10), idle: Duration::from_secs(75), stall: Duration::from_secs(60) }
}

/// One listener per data thread, all on the same address.
fn bind_all(
    wanted: SocketAddr,
    process: &Process,
    setting: &str,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let bound = listener::bind_all(wanted, process.reuse_port, process.threads());
    bound.with_context(|| format!("cannot listen on {wanted} ({setting})"))
}

async fn serve(
    thread: Rc<DataThread>,
    fronts: impl Iterator<Item = (Task, std::net::TcpListener, Front)>,
    tasks: &Arc<Tasks>,
    lifecycle: Lifecycle,
) {
    for (task, listener, front) in fronts {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => Rc::new(listener),
            Err(error) => return tracing::error!(%error, "cannot register the listener"),
        };
        let (thread, lifecycle) = (thread.clone(), lifecycle.clone());
        tasks.keep(task, move || {
            listener::accept(thread.clone(), listener.clone(), front.clone(), lifecycle.clone())
        });
    }
    let waiting = thread.clone();
    tasks.keep(Task::Alarms, move || ringing(waiting.clone()));
    let sending = thread.outbox.clone();
    tasks.keep(Task::OutboxSend, move || sending.clone().run());
    let resuming = thread.outbox.clone();
    tasks.keep(Task::OutboxResume, move || resuming.clone().resume());
    let phase = lifecycle.clone();
    tasks.keep(Task::Connections, move || thread.clone().look_after(phase.watch()));
    lifecycle.reached(Phase::Ended).await;
}

async fn ringing(thread: Rc<DataThread>) {
    thread.alarms.run().await;
}

/// Serves the admin port, on a thread of its own: `/livez` answers while another thread stands still.
async fn serve_admin(
    listener: std::net::TcpListener,
    admin: Arc<Admin>,
    tasks: Arc<Tasks>,
    lifecycle: Lifecycle,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => Arc::new(listener),
        Err(error) => return tracing::error!(%error, "cannot register the listener of the admin port"),
    };
    tasks.keep(Task::Admin, move || admin::serve(listener.clone(), admin.clone()));
    let watching = tasks.clone();
    tasks.keep(Task::Watch, move || watching.clone().watch());
    lifecycle.reached(Phase::Ended).await;
}

/// What runs beside the data path, on a thread of its own.
struct Services {
    process: Process,
    control: Arc<Control>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    tasks: Arc<Tasks>,
    tls: Option<Arc<Reloading>>,
    memory: Arc<Memory>,
    files: Option<Arc<tokio::sync::Mutex<Watcher>>>,
    /// How the operator's stream stands.
    push: Arc<Status>,
    /// The number of workers once all have started.
    configured_workers: usize,
    beginning: Arc<Beginning>,
}

impl Services {
    async fn run(self, workers: Workers) {
        let tasks = self.tasks.clone();
        if let Some(tls) = self.tls.clone() {
            tasks.keep(Task::Certificate, move || tls.clone().watch());
        }
        self.take_policy();
        let follow = |task, run: fn(Arc<Control>) -> Following| {
            let control = self.control.clone();
            tasks.keep(task, move || run(control.clone()));
        };
        follow(Task::Switches, |control| Box::pin(control::switch::run(control)));
        follow(Task::Breakers, |control| Box::pin(breaker::watch::run(control)));
        follow(Task::Scores, |control| Box::pin(health::keep_score(control)));
        follow(Task::Drains, |control| Box::pin(drain::follow_workers(control)));
        tasks.keep(Task::Orphans, orphans::reap);
        let memory = self.memory.clone();
        tasks.keep(Task::Memory, move || memory::watch(memory.clone()));
        let (control, checking) = (self.control.clone(), tasks.clone());
        tasks.keep(Task::HealthChecks, move || health::run(control.clone(), checking.clone()));
        match workers {
            Workers::Given(_) => self.lifecycle.reached(Phase::Ended).await,
            Workers::Started(settings) => {
                let (control, lifecycle, kept) = (self.control, self.lifecycle, tasks.clone());
                let run =
                    || supervisor::run(control.clone(), settings.clone(), lifecycle.clone(), kept.clone());
                tasks.kept(Task::Workers, run).await;
            }
        }
    }

    fn take_policy(&self) {
        let control = self.control.clone();
        if let Some(operator) = self.process.operator.clone() {
            let settings = stream::Settings {
                operator,
                ca_pem: self.process.operator_ca.clone().unwrap_or_default(),
                token_file: self.process.token_file.clone(),
                state_dir: self.process.state_dir.clone(),
            };
            let push = self.push.clone();
            let run = move || stream::run(control.clone(), settings.clone(), push.clone());
            self.tasks.keep(Task::OperatorStream, run);
        } else if let Some(files) = self.files.clone() {
            self.tasks.keep(Task::PolicyFile, move || file::follow(files.clone()));
        }
        let (control, lifecycle) = (self.control.clone(), self.lifecycle.clone());
        let Process { require_policy, policy_timeout: timeout, .. } = self.process;
        let startup = Startup { require_policy, timeout };
        self.tasks.keep(Task::Startup, move || begin(control.clone(), lifecycle.clone(), startup));
    }

    fn admin(&self) -> Result<Arc<Admin>> {
        let token = self.process.admin_token_file.clone().map(TokenFile::new);
        if let Some(token) = &token {
            let _ = token.token(); // what is wrong with it is said now, and not first to who comes
        }
        let exposition = Exposition::new(Families {
            metrics: self.metrics.clone(),
            control: self.control.clone(),
            push: self.push.clone(),
            tasks: self.tasks.clone(),
            memory: self.memory.clone(),
        });
        Ok(Arc::new(Admin {
            control: self.control.clone(),
            lifecycle: self.lifecycle.clone(),
            tasks: self.tasks.clone(),
            push: self.push.clone(),
            metrics: Box::new(move || exposition.text()),
            token: token.map(|file| Box::new(move || file.token()) as _),
            open_on_loopback: self.process.admin_open,
            started: Instant::now(),
            configured_workers: self.configured_workers,
            beginning: self.beginning.clone(),
        }))
    }
}

/// Serves as soon as there is a policy, and stays: what returns is started again.
async fn begin(control: Arc<Control>, lifecycle: Lifecycle, startup: Startup) {
    startup::serve_with_policy(&control, &lifecycle, startup).await;
    std::future::pending().await
}

/// What follows the policy in force.
type Following = Pin<Box<dyn Future<Output = ()>>>;

/// Starts a thread. Should it end before the process does, `Running::thread_ended` says so.
fn spawn(
    tasks: &Arc<Tasks>,
    name: &str,
    main: impl AsyncFnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.with_context(|| format!("cannot start the runtime of thread {name}"))?;
    let alive = Arc::new(tasks.thread(name));
    let tasks = tasks.clone();
    let run = move || {
        LocalSet::new().block_on(&runtime, async move {
            tasks.keep(Task::Heartbeat, move || alive.clone().beat());
            main().await;
        });
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.with_context(|| format!("cannot start thread {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::essential::Dead;

    #[tokio::test]
    async fn a_thread_that_ends_before_the_process_is_told_and_fails_livez() {
        let tasks = Tasks::new(Lifecycle::default());
        let panicking = async || panic!("in no task");
        let panics = spawn(&tasks, "one", panicking).expect("it starts");
        assert_eq!(tasks.thread_ended().await, "one");
        assert!(panics.join().is_err());
        assert_eq!(tasks.alive(), Err(vec![Dead::ThreadEnded("one".to_owned())]));
        let returns = spawn(&tasks, "other", async || ()).expect("it starts");
        returns.join().expect("no panic");
        assert_eq!(tasks.alive().map_err(|dead| dead.len()), Err(2));
    }
}
