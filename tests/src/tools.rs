//! The programs that tests drive: those of the machine, those that `scripts/tools` builds, and the proxy itself.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a program that was started may take until it accepts connections.
const START: Duration = Duration::from_secs(30);

/// A program that `scripts/tools` builds into its cache; the version is part of the name.
pub fn built(name: &str) -> PathBuf {
    cached(&format!("bin/{name}"))
}

/// A file or folder of the cache of `scripts/tools`.
pub fn cached(name: &str) -> PathBuf {
    in_cache(&cache().join("outrigger-tools").join(name))
}

/// A program of those that `tests/cluster/build` builds.
pub fn of_cluster(name: &str) -> PathBuf {
    let home = std::env::var_os("KUBE_HOME").map_or_else(|| cache().join("outrigger-kube"), PathBuf::from);
    in_cache(&home.join("bin").join(name))
}

fn cache() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    )
}

fn in_cache(path: &Path) -> PathBuf {
    assert!(path.exists(), "{} is missing: run scripts/tools", path.display());
    path.to_owned()
}

/// A program of the machine.
pub fn program(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&folders).map(|folder| folder.join(name));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is missing: run scripts/tools"))
}

/// The binary `outrigger-proxy`, of the sources as they are.
pub fn outrigger_proxy() -> PathBuf {
    build().join("outrigger-proxy")
}

/// The example worker for machines without Node.
pub fn example_worker() -> PathBuf {
    build().join("examples/worker")
}

/// Builds the proxy's programs, as the tests themselves were built; the folder they are in.
fn build() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments = [
            "build",
            "--locked",
            "--package",
            "outrigger-proxy",
            "--bin",
            "outrigger-proxy",
            "--example",
            "worker",
        ];
        let mut command = Command::new(cargo);
        command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = command.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let this = std::env::current_exe().expect("this test's program"); // …/debug/deps/proxy_…
        this.ancestors().nth(2).expect("the folder of the profile").to_owned()
    };
    FOLDER.get_or_init(build).clone()
}

/// A program that runs until the test ends.
pub struct Started(pub Child);

impl Started {
    /// Starts it.
    pub fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill(); // an error: it has ended already
        let _ = self.0.wait();
    }
}

/// A port of the loopback interface that is free, and not one of those that the kernel gives to others.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97); // so that tests of several files meet rarely
    loop {
        let turn = first.wrapping_add(NEXT.fetch_add(1, Relaxed)) % 19_000;
        let port = 10_500 + u16::try_from(turn).expect("small");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().expect("bound");
        }
    }
}

/// Waits until a program accepts connections.
pub fn until_it_accepts(address: SocketAddr) {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(started.elapsed() < START, "nothing accepts at {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts the example's Node worker.
pub fn node_worker(name: &str) -> (SocketAddr, Started) {
    let address = free_address();
    let mut command = Command::new(program("node"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/workers/server.js"));
    command.env("PORT", address.port().to_string()).env("WORKER_NAME", name).stdout(Stdio::null());
    let started = Started::new(&mut command);
    until_it_accepts(address);
    (address, started)
}
