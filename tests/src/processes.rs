//! Real processes for tests: the example's Node workers and the proxy's binary. Each ends with the test.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::tools::free_address;

/// A process that ends when this is dropped.
pub struct Running(Child);

/// A Node worker (`deploy/workers/server.js`), or the place of one.
pub struct NodeWorker {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    process: Option<Running>,
}

impl Running {
    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("there is `kill`");
        assert!(sent.success(), "the process lives");
    }

    /// Its status, once it has ended within `limit`.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// A Node server of a script of the tests, which listens on the port that it is given as `PORT`.
pub struct Process {
    /// Where it listens.
    pub address: SocketAddr,
    _running: Running,
}

impl Process {
    /// Starts the server of this script, and waits until it listens.
    pub fn node(script: &str) -> Self {
        let address = free_address();
        let child = Command::new("node")
            .arg(root().join(script))
            .env("PORT", address.port().to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("node is installed: scripts/tools");
        let running = Running(child);
        wait_until_it_listens(address);
        Self { address, _running: running }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn wait_until_it_listens(address: SocketAddr) {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl NodeWorker {
    /// Starts one.
    pub fn start(name: &str) -> Self {
        let mut worker = Self { name: name.to_owned(), address: free_address(), process: None };
        worker.restart();
        worker
    }

    /// Starts a new process in its place, and waits until it listens.
    pub fn restart(&mut self) {
        self.process = None;
        let child = Command::new("node")
            .arg(root().join("deploy/workers/server.js"))
            .env("PORT", self.address.port().to_string())
            .env("WORKER_NAME", &self.name)
            .stdout(Stdio::null())
            .spawn()
            .expect("node is installed: scripts/tools");
        self.process = Some(Running(child));
        wait_until_it_listens(self.address);
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends its process a signal.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }
}

/// Starts the proxy's binary over these workers, with its policy in this file, and waits until it listens.
pub fn proxy_binary(workers: &[&NodeWorker], policy: &Path) -> (Running, SocketAddr) {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "outrigger-proxy", "--bin", "outrigger-proxy"])
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the proxy is built");
    let tests = std::env::current_exe().expect("this test's path");
    let binary = tests.parent().and_then(Path::parent).expect("target/debug/deps").join("outrigger-proxy");
    let address = free_address();
    let workers: Vec<_> =
        workers.iter().map(|worker| format!("{}={}", worker.name, worker.address)).collect();
    let child = Command::new(binary)
        .args(["serve", "--admin-listen", "127.0.0.1:0", "--threads", "2", "--log", "warn"])
        .arg("--listen")
        .arg(address.to_string())
        .arg("--workers")
        .arg(workers.join(","))
        .arg("--policy")
        .arg(policy)
        .stdout(Stdio::null())
        .spawn()
        .expect("the proxy starts");
    let running = Running(child);
    wait_until_it_listens(address);
    (running, address)
}
