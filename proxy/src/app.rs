//! Builds every part and starts every thread; the result knows the bound addresses, so that tests start the real
//! program on port 0.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use crate::admin::{self, Admin};
use crate::breaker;
use crate::capacity;
use crate::client::Trust;
use crate::config::Process;
use crate::connection::Limits;
use crate::control::file::{self, Watcher};
use crate::control::stream::{self, Status};
use crate::control::{self, Control, keys};
use crate::descriptors::Reserve;
use crate::drain::{self, Lifecycle, Phase};
use crate::health;
use crate::listener::{self, Front};
use crate::metrics::Metrics;
use crate::metrics::exposition::Exposition;
use crate::siblings::{Identity, Siblings};
use crate::snapshot::Source;
use crate::startup::{self, Startup};
use crate::supervisor;
use crate::thread::DataThread;
use crate::tls::Reloading;
use crate::worker::Worker;

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
    data_threads: Vec<JoinHandle<()>>,
    control_thread: JoinHandle<()>,
}

/// Who the workers are.
pub enum Workers {
    /// Others start them.
    Given(Vec<Arc<Worker>>),
    /// The proxy starts them.
    Started(supervisor::Settings),
}

/// Starts a proxy.
///
/// # Errors
/// What cannot be bound or read.
pub fn start(process: &Process, workers: Workers) -> Result<Running> {
    let connections = capacity::connections(process.max_connections, reserve(process, &workers))?;
    let identity = Arc::new(Identity::default());
    let control = control_over(process, &workers, identity.clone());
    let files = process.policy.as_ref().map(|path| follow_files(process, path, &control)).transpose()?;
    let lifecycle = Lifecycle::starting();
    let metrics = Arc::new(Metrics::default());
    let tls = match (&process.tls_cert, &process.tls_key) {
        (Some(cert), Some(key)) => Some(Arc::new(Reloading::load(cert, key)?)),
        _ => None,
    };
    let (data, listeners) = bind_all(process.listen(), process.threads(), "--listen, or PORT")?;
    let wanted = process.sibling_listen;
    let bound = wanted.map(|wanted| bind_all(wanted, process.threads(), "--sibling-listen")).transpose()?;
    let (sibling, sibling_listeners) = bound.unzip();
    let mut sibling_listeners = sibling_listeners.into_iter().flatten();
    let admin = std::net::TcpListener::bind(process.admin_listen)
        .with_context(|| format!("cannot listen on {} (--admin-listen)", process.admin_listen))?;
    admin.set_nonblocking(true)?;
    let admin_address = admin.local_addr()?;

    let services = Services {
        process: process.clone(),
        control: control.clone(),
        lifecycle: lifecycle.clone(),
        metrics: metrics.clone(),
        tls: tls.clone(),
        workers,
        files,
    };
    let control_thread = spawn("control", move || run_local(services.run(admin)))?;
    let mut data_threads = Vec::new();
    for (i, listener) in listeners.into_iter().enumerate() {
        let shard = metrics.shard();
        let trust = Trust::new(process.trusted_hops, process.trusted_networks.clone());
        let limits = limits(connections.div_ceil(process.threads()));
        let (control, lifecycle) = (control.clone(), lifecycle.clone());
        let clients = (listener, Front::Clients(tls.clone()));
        let siblings = sibling_listeners.next().map(|listener| (listener, Front::Siblings(identity.clone())));
        data_threads.push(spawn(&format!("data-{i}"), move || {
            run_local(async move {
                let thread = DataThread::new(control, shard, trust, limits);
                serve(thread, [Some(clients), siblings].into_iter().flatten(), lifecycle).await;
            });
        })?);
    }
    let shown = sibling.map(tracing::field::display);
    let threads = process.threads();
    tracing::info!(%data, admin = %admin_address, sibling = shown, threads, connections, "serving");
    Ok(Running {
        data,
        admin: admin_address,
        sibling,
        control,
        lifecycle,
        metrics,
        data_threads,
        control_thread,
    })
}

impl Running {
    /// Stops gracefully, as the policy says, and returns when every thread has ended.
    pub async fn drain(self) {
        let metrics = self.metrics.clone();
        let idle = async move {
            while metrics.sum(|shard| &shard.connections) + metrics.sum(|shard| &shard.active) != 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        self.lifecycle.drain(&self.control, idle).await;
        let ended = tokio::task::spawn_blocking(move || {
            for thread in self.data_threads.into_iter().chain([self.control_thread]) {
                if thread.join().is_err() {
                    tracing::error!("a thread panicked");
                }
            }
        });
        let _ = ended.await; // joining does not fail
    }
}

fn control_over(process: &Process, workers: &Workers, identity: Arc<Identity>) -> Arc<Control> {
    let given = match workers {
        Workers::Given(given) => given.clone(),
        Workers::Started(_) => Vec::new(),
    };
    let has_source = process.operator.is_some() || process.policy.is_some();
    let first = if has_source { Source::Awaited } else { Source::Default };
    Control::beside(given, Siblings::none(process.instance.clone(), identity), first)
}

/// Puts in force what the policy files say.
fn follow_files(process: &Process, path: &Path, control: &Arc<Control>) -> Result<Watcher> {
    let state_dir = process.state_dir.clone();
    let keys = keys::load_or_create(state_dir.as_deref());
    let settings = file::Settings { path: path.to_owned(), keys, state_dir };
    Ok(Watcher::start(control.clone(), settings)?)
}

fn reserve(process: &Process, workers: &Workers) -> Reserve {
    let workers = match workers {
        Workers::Given(given) => given.len(),
        Workers::Started(settings) => settings.workers,
    };
    Reserve { threads: process.threads(), workers, admin: admin::CONNECTIONS }
}

fn limits(connections: usize) -> Limits {
    Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        stall: Duration::from_secs(60),
        connections,
    }
}

/// One listener per data thread, all on the same address.
fn bind_all(
    wanted: SocketAddr,
    threads: usize,
    setting: &str,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let cannot = || format!("cannot listen on {wanted} ({setting})");
    let first = listener::bind(wanted).with_context(cannot)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < threads {
        listeners.push(listener::bind(address).with_context(cannot)?);
    }
    Ok((address, listeners))
}

async fn serve(
    thread: std::rc::Rc<DataThread>,
    fronts: impl Iterator<Item = (std::net::TcpListener, Front)>,
    lifecycle: Lifecycle,
) {
    for (listener, front) in fronts {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                let accepting = listener::accept(thread.clone(), listener, front, lifecycle.clone());
                tokio::task::spawn_local(accepting);
            }
            Err(error) => return tracing::error!(%error, "cannot register the listener"),
        }
    }
    let waiting = thread.clone();
    tokio::task::spawn_local(async move { waiting.alarms.run().await });
    let sending = thread.outbox.clone();
    tokio::task::spawn_local(async move { sending.run().await });
    let resuming = thread.outbox.clone();
    tokio::task::spawn_local(async move { resuming.resume().await });
    tokio::task::spawn_local(thread.look_after(lifecycle.watch()));
    lifecycle.reached(Phase::Ended).await;
}

/// What runs beside the data path, on a thread of its own.
struct Services {
    process: Process,
    control: Arc<Control>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Reloading>>,
    workers: Workers,
    files: Option<Watcher>,
}

impl Services {
    async fn run(mut self, admin: std::net::TcpListener) {
        let status = Arc::new(Status::default());
        if let Err(error) = self.serve_admin(admin, status.clone()) {
            tracing::error!(%error, "the admin port cannot be served");
        }
        if let Some(tls) = self.tls.clone() {
            tokio::task::spawn_local(tls.watch());
        }
        self.take_policy(status);
        tokio::task::spawn_local(control::switch::run(self.control.clone()));
        tokio::task::spawn_local(health::run(self.control.clone()));
        tokio::task::spawn_local(breaker::watch::run(self.control.clone()));
        tokio::task::spawn_local(health::keep_score(self.control.clone()));
        tokio::task::spawn_local(drain::follow_workers(self.control.clone()));
        match self.workers {
            Workers::Given(_) => self.lifecycle.reached(Phase::Ended).await,
            Workers::Started(settings) => supervisor::run(self.control, settings, self.lifecycle).await,
        }
    }

    fn take_policy(&mut self, status: Arc<Status>) {
        if let Some(operator) = self.process.operator.clone() {
            let settings = stream::Settings {
                operator,
                ca_pem: self.process.operator_ca.clone().unwrap_or_default(),
                token_file: self.process.token_file.clone(),
                state_dir: self.process.state_dir.clone(),
            };
            tokio::task::spawn_local(stream::run(self.control.clone(), settings, status));
        } else if let Some(files) = self.files.take() {
            tokio::task::spawn_local(files.follow());
        }
        let (control, lifecycle) = (self.control.clone(), self.lifecycle.clone());
        let Process { require_policy, policy_timeout: timeout, .. } = self.process;
        let startup = Startup { require_policy, timeout };
        tokio::task::spawn_local(async move {
            startup::serve_with_policy(&control, &lifecycle, startup).await;
        });
    }

    fn serve_admin(&self, listener: std::net::TcpListener, push: Arc<Status>) -> Result<()> {
        let token = match &self.process.admin_token_file {
            None => None,
            Some(path) => {
                let token = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(token.trim_ascii().to_vec())
            }
        };
        let exposition = Exposition::new(self.metrics.clone(), self.control.clone(), push.clone());
        let admin = Arc::new(Admin {
            control: self.control.clone(),
            lifecycle: self.lifecycle.clone(),
            push,
            metrics: Box::new(move || exposition.text()),
            token,
            open_on_loopback: self.process.admin_open,
            started: Instant::now(),
        });
        tokio::task::spawn_local(admin::serve(TcpListener::from_std(listener)?, admin));
        Ok(())
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("cannot start thread {name}"))
}

/// Runs on this thread alone.
fn run_local(main: impl Future<Output = ()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return;
        }
    };
    LocalSet::new().block_on(&runtime, main);
}
