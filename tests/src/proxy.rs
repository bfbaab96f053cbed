//! The proxy, started in this process on ports of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use outrigger_proxy::app::{self, Running, Workers};
use outrigger_proxy::config::{Cli, Command, Process};
use outrigger_proxy::control::{Control, file};
use outrigger_proxy::drain::Delay;
use outrigger_proxy::snapshot::Source;
use outrigger_proxy::worker::Worker;
use tempfile::TempDir;

/// A proxy that runs until the test ends.
pub struct RunningProxy {
    /// Where it serves clients.
    pub data: SocketAddr,
    /// Where it serves health, metrics and the API.
    pub admin: SocketAddr,
    /// The policy in force.
    pub control: Arc<Control>,
    /// Its live policy file.
    pub policy_file: PathBuf,
    running: Option<Running>,
    _dir: TempDir,
}

impl RunningProxy {
    /// Puts another spec in force, through the same door as the policy file.
    pub fn apply(&self, spec: &str) {
        let text = document(spec);
        let path = self.policy_file.with_file_name("next.yaml");
        std::fs::write(&path, text).expect("the test's directory is writable");
        let mut update = file::load_once(&path).expect("the test's policy is valid");
        update.session_keys = self.control.snapshot().update().session_keys;
        let update = outrigger_policy::wire::Update::new(update.policy, update.session_keys);
        self.control.apply(&update, Source::File).expect("the test's policy is valid");
        std::fs::write(&self.policy_file, document(spec)).expect("the test's directory is writable");
    }

    /// Stops it as a signal would.
    pub async fn drain(mut self) {
        if let Some(running) = self.running.take() {
            running.drain(Delay::Whole).await;
        }
    }
}

/// A `ClusterPolicy` with this spec.
pub fn document(spec: &str) -> String {
    let spec = if spec.trim().is_empty() { "{}" } else { spec };
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {{name: test}}\nspec:\n{indented}"
    )
}

/// Starts the proxy over these workers, named `worker-1`, `worker-2`, …, with a policy of this spec in force.
pub fn start_proxy(workers: &[SocketAddr], spec: &str) -> RunningProxy {
    start_with(workers, spec, &[])
}

/// As `start_proxy`, with more flags.
pub fn start_with(workers: &[SocketAddr], spec: &str, flags: &[&str]) -> RunningProxy {
    let dir = TempDir::new().expect("a temporary directory");
    let policy_file = dir.path().join("policy.yaml");
    std::fs::write(&policy_file, document(spec)).expect("writable");
    let policy = policy_file.display().to_string();
    let proxy = start(workers, &[&["--policy", &policy], flags].concat(), dir);
    wait_until(|| proxy.control.snapshot().source == Source::File);
    proxy
}

/// Starts the proxy over these workers; its policy comes from where the flags say, if ever.
pub fn start_without_policy(workers: &[SocketAddr], flags: &[&str]) -> RunningProxy {
    start(workers, flags, TempDir::new().expect("a temporary directory"))
}

fn start(workers: &[SocketAddr], flags: &[&str], dir: TempDir) -> RunningProxy {
    let mut args = vec![
        "outrigger-proxy",
        "serve",
        "--workers",
        "unused=1",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--admin-open",
        "--threads",
        "2",
    ];
    args.extend(flags);
    let process = process(&args);
    let workers = workers
        .iter()
        .enumerate()
        .map(|(i, address)| Worker::new(&format!("worker-{}", i + 1), *address))
        .collect();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // the tests of a file share it
    let running = app::start(&process, Workers::Given(workers)).expect("the proxy starts");
    let (data, admin, control) = (running.data, running.admin, running.control.clone());
    let policy_file = dir.path().join("policy.yaml");
    RunningProxy { data, admin, control, policy_file, running: Some(running), _dir: dir }
}

/// Starts the proxy over these workers, with the policy that the operator of this address and trust pushes to whoever
/// has the token.
pub fn start_pushed(
    workers: &[SocketAddr],
    (operator, trust): (SocketAddr, &str),
    token: &str,
) -> RunningProxy {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("token");
    std::fs::write(&file, token).expect("writable");
    let operator = format!("localhost:{}", operator.port());
    let token_file = file.display().to_string();
    let trust = format!("--operator-ca={trust}"); // PEM begins with a dash
    let source = ["--operator", &operator, &trust, "--token-file", &token_file];
    let proxy = start(workers, &source, dir);
    wait_until(|| proxy.control.snapshot().source == Source::Operator);
    proxy
}

fn process(args: &[&str]) -> Process {
    match Cli::try_parse_from(args).expect("valid flags").command {
        Command::Serve(serve) => serve.process,
        _ => panic!("the flags are those of `serve`"),
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed().as_secs() < 10, "the policy file was not taken in ten seconds");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
