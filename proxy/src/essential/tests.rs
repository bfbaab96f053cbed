//! Every task is ended in a whole proxy, by a return and by a panic, and threads are made to stand still.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use clap::Parser;
use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;

use super::*;
use crate::app::{self, Running, Workers};
use crate::config::{Cli, Command};
use crate::drain::Delay;
use crate::snapshot::Source;
use crate::supervisor;
use crate::worker::Worker;

/// What a test does to every run of a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Return,
    Panic,
    /// It blocks its thread.
    Block(Duration),
}

/// Reaches the tasks that run.
pub(super) struct Hook {
    ends: broadcast::Sender<(Task, End)>,
    /// How many of each run.
    running: [AtomicU32; Task::ALL.len()],
}

impl Default for Hook {
    fn default() -> Self {
        let running = std::array::from_fn(|_| AtomicU32::new(0));
        Self { ends: broadcast::Sender::new(64), running }
    }
}

impl Hook {
    fn runs(&self, task: Task) -> bool {
        0 < self.running[task as usize].load(Relaxed)
    }

    fn end(&self, task: Task, end: End) {
        let _ = self.ends.send((task, end)); // an error: none runs
    }
}

/// A task runs for as long as this is held.
struct Runs<'a>(&'a AtomicU32);

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Tasks {
    /// Runs a task until it ends, or a test ends it.
    pub(super) async fn run<F: Future>(&self, task: Task, running: F) {
        let mut ends = self.hook.ends.subscribe();
        let count = &self.hook.running[task as usize];
        count.fetch_add(1, Relaxed);
        let _runs = Runs(count);
        let mut running = pin!(running);
        loop {
            tokio::select! {
                _ = &mut running => return,
                Ok((wanted, end)) = ends.recv() => match end {
                    _ if wanted != task => {}
                    End::Return => return,
                    End::Panic => panic!("a test ends it"),
                    End::Block(time) => std::thread::sleep(time),
                },
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
const POLICY: &str = "drain: {delay: 0s, timeout: 1s}\n  timeout: {request: 200ms}\n  \
                      healthCheck: {active: {path: /health, interval: 1s}}";

fn document(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {{name: a}}\nspec:\n  {spec}\n"
    )
}

/// A worker that answers everything but `/slow`; how often it was asked for its health.
fn worker() -> (SocketAddr, Arc<AtomicU32>) {
    let checks = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, counted) = (listener.local_addr().expect("bound"), checks.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, counted) = (stream.expect("accepted"), counted.clone());
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut request) {
                    if request[..read].starts_with(b"GET /health") {
                        counted.fetch_add(1, Relaxed);
                    } else if request[..read].starts_with(b"GET /slow") {
                        continue;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                }
            });
        }
    });
    (address, checks)
}

fn start(flags: &[&str], workers: Workers) -> Running {
    let fixed = ["outrigger-proxy", "serve", "--workers", "unused=1", "--threads", "2"];
    let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let Command::Serve(serve) =
        Cli::try_parse_from([&fixed[..], &listen, flags].concat()).expect("flags").command
    else {
        panic!("it is `serve`")
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // tests share it
    app::start(&serve.process, workers).expect("it starts")
}

/// A proxy with a policy file.
fn start_with_file(dir: &Path, worker: SocketAddr) -> Running {
    let policy = dir.join("policy.yaml");
    std::fs::write(&policy, document(POLICY)).expect("written");
    let policy = policy.display().to_string();
    start(&["--policy", &policy], Workers::Given(vec![Worker::new("a", worker)]))
}

/// A proxy with an operator, which is away, with siblings, a certificate and workers of its own.
fn start_with_operator(dir: &Path) -> Running {
    let made = rcgen::generate_simple_self_signed([String::from("localhost")]).expect("a certificate");
    let [cert, key] = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())].map(
        |(name, content)| {
            std::fs::write(dir.join(name), content).expect("written");
            dir.join(name).display().to_string()
        },
    );
    let flags = ["--operator", "localhost:1", "--instance", "a", "--sibling-listen", "127.0.0.1:0"];
    let command = ["sleep", "1000"].map(String::from).to_vec();
    let settings = supervisor::Settings::new(command, 1, None);
    let running =
        start(&[&flags[..], &["--tls-cert", &cert, "--tls-key", &key]].concat(), Workers::Started(settings));
    let spec = serde_yaml::from_str("{drain: {delay: 0s, timeout: 1s}}").expect("a spec");
    let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
    running.control.apply(&update, Source::Operator).expect("valid");
    running
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let until = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, until).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn is_alive(proxy: &Running) -> bool {
    get(proxy.admin, "/livez").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[tokio::test]
async fn every_task_that_ends_is_started_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (worker, checks) = worker();
    let proxies = [start_with_file(dir.path(), worker), start_with_operator(dir.path())];
    for task in Task::ALL {
        for end in [End::Return, End::Panic] {
            let name = task.name();
            until(&format!("{name} runs"), async || proxies.iter().any(|proxy| proxy.tasks.hook.runs(task)))
                .await;
            for proxy in proxies.iter().filter(|proxy| proxy.tasks.hook.runs(task)) {
                let before = proxy.tasks.restarts(task);
                proxy.tasks.hook.end(task, end);
                let again = async || before < proxy.tasks.restarts(task) && proxy.tasks.hook.runs(task);
                until(&format!("{name} is started again after {end:?}"), again).await;
            }
        }
    }

    // What they do is done again.
    let [proxy, other] = &proxies;
    let answers =
        async |path, status: &str| get(proxy.data, path).await.is_ok_and(|got| got.contains(status));
    until("requests are answered", async || answers("/", " 200 ").await).await;
    until("and given up in time", async || answers("/slow", " 504 ").await).await;
    let (version, checked) = (proxy.control.snapshot().version.clone(), checks.load(Relaxed));
    let changed = document(&POLICY.replace("200ms", "300ms"));
    std::fs::write(dir.path().join("policy.yaml"), changed).expect("written");
    until("the policy is followed", async || proxy.control.snapshot().version != version).await;
    until("the worker is checked", async || checked < checks.load(Relaxed)).await;
    for proxy in [proxy, other] {
        until("/livez agrees", async || is_alive(proxy).await).await;
    }
    let metrics = get(proxy.admin, "/metrics").await.expect("an answer");
    assert!(metrics.contains("outrigger_alive 1\n"), "{metrics}");
    for task in [Task::Clients, Task::PolicyFile, Task::HealthCheck] {
        let none = format!("outrigger_task_restarts_total{{task=\"{}\"}} 0\n", task.name());
        assert!(!metrics.contains(&none) && metrics.contains(none.trim_end_matches("0\n")), "{metrics}");
    }
    for proxy in proxies {
        proxy.drain(Delay::Whole).await;
    }
}

#[tokio::test]
async fn a_thread_that_stands_still_fails_livez_until_it_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = start_with_file(dir.path(), worker().0);
    for (task, thread) in [(Task::Scores, "control"), (Task::Connections, "data-")] {
        until("it is alive", async || is_alive(&proxy).await).await;
        until(&format!("{} runs", task.name()), async || proxy.tasks.hook.runs(task)).await;
        proxy.tasks.hook.end(task, End::Block(Duration::from_secs(3)));
        until(&format!("/livez says that {thread} stands still"), async || {
            let answer = get(proxy.admin, "/livez").await.expect("it answers while others stand still");
            answer.starts_with("HTTP/1.1 503") && answer.contains(&format!("not alive: thread {thread}"))
        })
        .await;
        let metrics = get(proxy.admin, "/metrics").await.expect("an answer");
        assert!(metrics.contains("outrigger_alive 0\n"), "{metrics}");
    }
    until("it is alive", async || is_alive(&proxy).await).await;
    proxy.drain(Delay::Whole).await;
}

/// The times at which a task is started that panics at once.
async fn starts(tasks: &Arc<Tasks>, task: Task, count: usize) -> Vec<Duration> {
    let began = Instant::now();
    let (start, mut started) = tokio::sync::mpsc::unbounded_channel();
    let run = move || {
        let _ = start.send(began.elapsed());
        async { panic!("at once") }
    };
    let kept = tokio::spawn(tasks.clone().kept(task, run));
    let mut starts = Vec::new();
    while starts.len() < count {
        starts.extend(started.recv().await);
    }
    kept.abort();
    let _ = kept.await;
    starts
}

#[tokio::test(start_paused = true)]
async fn the_waits_grow() {
    let tasks = Tasks::new(Lifecycle::default());
    let starts = starts(&tasks, Task::Scores, 12).await;
    let waits: Vec<_> = starts.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000]);
    assert_eq!(tasks.restarts(Task::Scores), 11);
}

#[tokio::test(start_paused = true)]
async fn livez_fails_where_a_task_that_requests_need_ends_again_and_again() {
    let tasks = Tasks::new(Lifecycle::default());
    for (task, fails) in [(Task::Alarms, true), (Task::PolicyFile, false)] {
        let runs = AtomicU32::new(0);
        let run = move || {
            let panics = runs.fetch_add(1, Relaxed) < TOO_OFTEN + 3;
            async move {
                assert!(!panics, "again");
                std::future::pending::<()>().await;
            }
        };
        let kept = tokio::spawn(tasks.clone().kept(task, run));
        sleep(Duration::from_secs(30)).await;
        let expected = if fails { Err(vec![Dead::Again(task.name())]) } else { Ok(()) };
        assert_eq!(tasks.alive(), expected, "{task:?}");
        sleep(STEADY).await;
        assert_eq!(tasks.alive(), Ok(()), "{task:?} is well again");
        kept.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_given_up_is_not_held_against_the_process() {
    let tasks = Tasks::new(Lifecycle::default());
    starts(&tasks, Task::Alarms, 20).await;
    assert_eq!(tasks.alive(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_returns_when_the_process_takes_no_new_connections_is_over() {
    let lifecycle = Lifecycle::default();
    let tasks = Tasks::new(lifecycle.clone());
    let kept = tokio::spawn(tasks.clone().kept(Task::Clients, move || {
        let lifecycle = lifecycle.clone();
        async move { lifecycle.reached(Phase::Closing).await }
    }));
    let control = crate::control::Control::new(Vec::new());
    tasks.lifecycle.drain(&control, Delay::Whole, || async {}).await;
    kept.await.expect("it ends");
    assert_eq!(tasks.restarts(Task::Clients), 0);
}
