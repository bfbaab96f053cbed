//! `outrigger-proxy run`, the real binary over real Node workers: what people use a process manager for.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use system_tests::client::{self, Answer, Connection, get};
use system_tests::cluster::root;
use system_tests::proxy::document;
use system_tests::tools::{self, Started};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
/// What the policies of these tests have in common: nobody routes to the proxy, so nobody has to learn of its end.
const DRAIN: &str = "drain: {delay: 0s, timeout: 10s}";

/// A proxy that started its workers.
struct Supervisor {
    process: Started,
    data: SocketAddr,
    admin: SocketAddr,
    policy: PathBuf,
    log: Arc<Mutex<Vec<Value>>>,
    _folder: TempDir,
}

impl Supervisor {
    /// Starts it with this command for each worker, and with this environment.
    fn start(flags: &[&str], worker: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch(&[], DRAIN, flags, worker, environment)
    }

    /// The same by a program that starts what it is given, and under a policy of this spec.
    fn launch(
        by: &[&str],
        spec: &str,
        flags: &[&str],
        worker: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let policy = folder.path().join("policy.yaml");
        std::fs::write(&policy, document(spec)).expect("writable");
        let (data, admin) = (tools::free_address(), tools::free_address());
        let program = tools::outrigger_proxy().display().to_string();
        let line = [by, &[&program, "run"]].concat();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]);
        command.current_dir(root()).args(flags).arg("--admin-open").arg("--policy").arg(&policy);
        command.env("PORT", data.port().to_string()).env("OUTRIGGER_ADMIN_LISTEN", admin.to_string());
        command.envs(environment.iter().copied()).arg("--").args(worker).stdout(Stdio::piped());
        let mut process = Started::new(&mut command);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (process.0.stdout.take().expect("piped"), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str(&line) {
                    kept.lock().push(line); // the workers' own lines are no JSON
                }
            }
        });
        let loopback = SocketAddr::from(([127, 0, 0, 1], data.port()));
        Self { process, data: loopback, admin, policy, log, _folder: folder }
    }

    /// Four Node workers that all serve.
    async fn of_node() -> Self {
        let this = Self::start(&["--workers", "4"], &["node", "deploy/workers/server.js"], &[]);
        this.until("four workers serve", async || this.usable().await.len() == 4).await;
        this
    }

    async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !condition().await {
            assert!(started.elapsed() < SOON, "not within {SOON:?}: {what}; log: {:#?}", self.log.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The addresses of the workers that take requests, by `/api/snapshot`.
    async fn usable(&self) -> Vec<(String, String)> {
        let mut request = get("/api/snapshot", &[]);
        request.headers_mut().insert("host", "127.0.0.1".parse().expect("a host"));
        let Ok(answer) = client::send(self.admin, request).await else { return Vec::new() };
        let view: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let workers = view["workers"].as_array().cloned().unwrap_or_default();
        let usable = workers.iter().filter(|worker| worker["usable"] == true);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        usable.map(|worker| (text(&worker["name"]), text(&worker["address"]))).collect()
    }

    /// The processes that answer, by the names they answer with.
    async fn processes(&self) -> BTreeSet<(String, i64)> {
        let mut found = BTreeSet::new();
        for _ in 0..16 {
            let answer = client::send(self.data, get("/", &[])).await.expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            found.insert(who(&answer));
        }
        found
    }

    fn signal(&self, name: &str) {
        signal(i64::from(self.process.0.id()), name);
    }

    /// What it logged with this message.
    fn logged(&self, message: &str) -> Vec<Value> {
        self.log.lock().iter().filter(|line| line["message"] == message).cloned().collect()
    }

    /// Waits until it has ended by itself; its exit code.
    async fn ended(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().expect("it is ours") {
                return status.code();
            }
            assert!(started.elapsed() < SOON, "it does not end: {:#?}", self.log.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Supervisor {
    /// Ends it as a signal does, so that its workers end as they do for users.
    fn drop(&mut self) {
        if self.process.0.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        self.signal("TERM");
        let told = Instant::now();
        while told.elapsed() < SOON && self.process.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The worker that answered, and its process.
fn who(answer: &Answer) -> (String, i64) {
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let name = body["worker"].as_str().expect("a name").to_owned();
    (name, body["pid"].as_i64().expect("a process"))
}

fn signal(process: i64, name: &str) {
    let killed = Command::new("kill").args([format!("-{name}"), process.to_string()]).status();
    assert!(killed.expect("kill runs").success(), "process {process} is there to be told {name}");
}

fn lives(process: i64) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ") // one that nobody has waited for yet is gone
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_has_a_name_and_a_port_of_its_own() {
    let supervisor = Supervisor::of_node().await;
    let workers = supervisor.usable().await;
    let names: Vec<_> = workers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["worker-1", "worker-2", "worker-3", "worker-4"], "as policies name them");
    let addresses: BTreeSet<_> = workers.iter().map(|(_, address)| address).collect();
    assert_eq!(addresses.len(), 4, "{workers:?}");
    let processes = supervisor.processes().await;
    let answering: Vec<_> = processes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(answering, names, "four processes answer: {processes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_is_ready_when_the_slowest_worker_listens() {
    let slow = r#"if [ "$WORKER_ID" = 2 ]; then sleep 3; fi; exec node deploy/workers/server.js"#;
    let begun = Instant::now();
    let supervisor = Supervisor::start(&["--workers", "2"], &["sh", "-c", slow], &[]);
    let ready = async || client::send(supervisor.admin, get("/readyz", &[])).await;
    supervisor.until("the first serves", async || supervisor.usable().await.len() == 1).await;
    let early = ready().await.expect("an answer");
    assert_eq!(early.status, 503);
    assert!(early.text().starts_with("not ready: the workers start: 1 of 2 are up"), "{}", early.text());
    supervisor.until("it is ready", async || ready().await.is_ok_and(|answer| answer.status == 200)).await;
    assert!(Duration::from_secs(3) <= begun.elapsed());
    assert_eq!(supervisor.usable().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_replaced_and_costs_no_later_request() {
    let supervisor = Supervisor::of_node().await;
    let before = supervisor.processes().await;
    let (name, process) = before.first().expect("a process").clone();
    signal(process, "KILL");
    supervisor.until("it is gone, and with it what it had in flight", async || !lives(process)).await;
    for _ in 0..50 {
        let answer = client::send(supervisor.data, get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    supervisor
        .until("it is back", async || {
            let after = supervisor.processes().await;
            after.len() == 4 && after.iter().any(|(who, id)| *who == name && *id != process)
        })
        .await;
    let died = supervisor.logged("worker died");
    assert_eq!((died.len(), died[0]["worker"].as_str()), (1, Some(name.as_str())));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_again_and_again_is_started_less_and_less_often() {
    let supervisor = Supervisor::start(&["--workers", "1"], &["sh", "-c", "exit 3"], &[]);
    let again = "worker will be started again";
    supervisor.until("it was tried five times", async || 5 <= supervisor.logged(again).len()).await;
    let waits = supervisor.logged(again).into_iter().take(5).map(|line| line["wait_seconds"].as_f64());
    assert_eq!(waits.collect::<Option<Vec<_>>>(), Some(vec![0.1, 0.2, 0.4, 0.8, 1.6]));
    let answer = client::send(supervisor.data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 503, "the proxy itself lives and says so");
    let ready = client::send(supervisor.admin, get("/readyz", &[])).await.expect("an answer");
    assert_eq!(ready.status, 503);
    assert!(ready.text().ends_with("; worker-1: it ended with exit status: 3\n"), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request() {
    let supervisor = Supervisor::of_node().await;
    let before = supervisor.processes().await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|i| {
            let (data, stop, served) = (supervisor.data, stop.clone(), served.clone());
            tokio::spawn(load(data, i, stop, served))
        })
        .collect();
    supervisor.signal("HUP");
    let done = || supervisor.logged("rolling restart done").len();
    supervisor.until("it is said to be done", async || 0 < done()).await;
    let left: Vec<_> = before.iter().filter(|(_, process)| lives(*process)).collect();
    assert!(left.is_empty(), "{left:?} are there when it is said to be done");
    assert_eq!(supervisor.usable().await.len(), 4);
    let others = async || {
        let now = supervisor.processes().await;
        assert!(now.is_disjoint(&before), "{now:?} after {before:?}");
        now.len() == 4 // under load 16 requests need not meet all of them
    };
    supervisor.until("four other processes serve", others).await;
    assert_eq!(done(), 1);
    stop.store(true, Relaxed);
    for client in clients {
        client.await.expect("no request failed");
    }
    assert!(100 < served.load(Relaxed), "{served:?} requests while workers were replaced");
}

/// Sends requests on a kept connection, some of them slow, until told to stop; fails with the first that fails.
async fn load(data: SocketAddr, client: usize, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
    let mut connection = Connection::open(data).await.expect("connects");
    let path = if client.is_multiple_of(2) { "/" } else { "/slow?ms=50" };
    while !stop.load(Relaxed) {
        let answer = connection.send(get(path, &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        served.fetch_add(1, Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_finishes_what_is_in_flight_and_leaves_nothing_behind() {
    for name in ["TERM", "INT"] {
        let mut supervisor = Supervisor::of_node().await;
        let processes = supervisor.processes().await;
        let in_flight = tokio::spawn(client::send(supervisor.data, get("/slow?ms=1000", &[])));
        let serving = async || supervisor.in_flight().await == 1;
        supervisor.until("the request is at a worker", serving).await;
        supervisor.signal(name);
        assert_eq!(in_flight.await.expect("no panic").expect("an answer").status, 200, "{name}");
        assert_eq!(supervisor.ended().await, Some(0), "{name}");
        let left: Vec<_> = processes.iter().filter(|(_, process)| lives(*process)).collect();
        assert!(left.is_empty(), "{name} leaves {left:?}");
        assert!(Connection::open(supervisor.data).await.is_err(), "{name}: nobody listens any more");
    }
}

impl Supervisor {
    /// Requests at workers, by `/api/snapshot`.
    async fn in_flight(&self) -> u64 {
        let mut request = get("/api/snapshot", &[]);
        request.headers_mut().insert("host", "127.0.0.1".parse().expect("a host"));
        let answer = client::send(self.admin, request).await.expect("an answer");
        let view: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let workers = view["workers"].as_array().expect("workers");
        workers.iter().filter_map(|worker| worker["inFlight"].as_u64()).sum()
    }
}

/// The descendants of a process that have ended and that nobody has waited for.
fn zombies(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let read = |stat: String| -> Option<(u32, String, u32)> {
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let (state, parent) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
        Some((stat.split(' ').next()?.parse().ok()?, state, parent))
    };
    let all: Vec<_> = stats.filter_map(read).collect();
    let mut family = vec![of];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(all.iter().filter(|(_, _, by)| *by == parent).map(|(process, ..)| process));
        next += 1;
    }
    assert!(2 < next, "the proxy, a warden and a worker at least");
    let is_one = |(process, state, _): &&(u32, String, u32)| state == "Z" && family.contains(process);
    all.iter().filter(is_one).map(|(process, ..)| *process).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_of_a_container_it_leaves_no_zombies() {
    let container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let as_root = ["unshare", "--user", "--map-root-user"].into_iter().chain(container[1..].iter().copied());
    let container = if std::fs::metadata("/proc/self").expect("there is /proc").uid() == 0 {
        container.to_vec()
    } else {
        as_root.collect()
    };
    // Each of the sleeps outlives the shell that started it, and ends when a warden is its parent.
    let worker =
        "for i in 1 2 3 4 5 6 7 8; do (sleep 0.$i & sleep 0.5$i &); done; exec node deploy/workers/server.js";
    let supervisor = Supervisor::launch(&container, DRAIN, &["--workers", "2"], &["sh", "-c", worker], &[]);
    supervisor.until("two workers serve", async || supervisor.usable().await.len() == 2).await;
    let children = format!("/proc/{0}/task/{0}/children", supervisor.process.0.id());
    let children = std::fs::read_to_string(children).expect("the kernel tells children");
    let proxy: u32 = children.trim().parse().expect("one child of `unshare`");
    tokio::time::sleep(Duration::from_millis(1_200)).await; // all of them have ended
    supervisor.until("none is left", async || zombies(proxy).is_empty()).await;
    let workers = supervisor.processes().await;
    signal(i64::from(proxy), "TERM");
    let mut supervisor = supervisor;
    assert_eq!(supervisor.ended().await, Some(0), "{workers:?}");
    assert_eq!(
        supervisor.logged("worker died"),
        Vec::<Value>::new(),
        "how the workers ended is told to their slots"
    );
}

/// The processes with this text in their environment, which descendants inherit.
fn marked(mark: &str) -> Vec<i64> {
    let all = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let has_mark = |process: &i64| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(has_mark).filter(|process| lives(*process)).collect()
}

/// The first of so many ports in a row that nobody listens on, and that no other test gets.
fn free_ports(count: usize) -> u16 {
    loop {
        let ports: Vec<_> = (0..count).map(|_| tools::free_address().port()).collect();
        if ports.windows(2).all(|pair| pair[1] == pair[0] + 1) {
            return ports[0];
        }
    }
}

/// Nothing of what the worker started escapes: neither what left its process group nor what its parent left behind.
#[tokio::test(flavor = "multi_thread")]
async fn killed_it_leaves_no_worker() {
    let worker = "setsid sleep 1000 & (sleep 1000 &) ; setsid sh -c 'sleep 1000 & sleep 1000' & \
                  exec node deploy/workers/server.js";
    let port = free_ports(4).to_string();
    let flags = ["--workers", "2", "--worker-port", &port];
    let start = |mark: &str| Supervisor::start(&flags, &["sh", "-c", worker], &[("MARK", mark)]);
    let mark = format!("first-{port}");
    let mut killed = start(&mark);
    killed.until("two workers serve", async || killed.usable().await.len() == 2).await;
    let mark = format!("MARK={mark}");
    // The proxy and, twice: a warden, a server and four sleeps.
    killed.until("all of it runs", async || 13 <= marked(&mark).len()).await;
    killed.process.0.kill().expect("it runs");
    killed.process.0.wait().expect("it was killed");
    let next = start(&format!("second-{port}")); // at once, on the same ports
    next.until("two workers serve", async || next.usable().await.len() == 2).await;
    let left = marked(&mark);
    assert!(left.is_empty(), "{left:?} are left");
    let second: BTreeSet<_> = marked(&format!("MARK=second-{port}")).into_iter().collect();
    let answering = next.processes().await;
    assert!(answering.iter().all(|(_, process)| second.contains(process)), "{answering:?} of {second:?}");
}

/// The exit code of `run` with these flags and this command, and what it says on standard error.
fn refused(flags: &[&str], worker: &[&str], data: SocketAddr) -> (Option<i32>, String) {
    let mut command = Command::new(tools::outrigger_proxy());
    command.arg("run").args(flags).args(["--admin-listen", "127.0.0.1:0", "--log", "off"]);
    command.arg("--listen").arg(data.to_string()).arg("--").args(worker);
    let output = command.output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_command_that_makes_no_worker_ends_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    std::fs::write(&text, "no program").expect("writable");
    let (text, folder) = (text.display().to_string(), folder.path().display().to_string());
    for (program, reason) in [
        ("/nonexistent/node", "No such file or directory"),
        ("nod-e", "No such file or directory"),
        (&text, "Permission denied"),
        (&folder, "Permission denied"),
    ] {
        let data = tools::free_address();
        let (code, said) = refused(&["--workers", "2"], &[program, "server.js"], data);
        assert_eq!(code, Some(1), "{program}: {said}");
        let expected = format!("error: no worker can be started: '{program}' cannot be executed: {reason}");
        assert!(said.starts_with(&expected) && said.lines().count() == 1, "{said}");
    }
}

/// A listener that counts the connections on which anything is sent, and answers them.
struct Stranger {
    requests: Arc<AtomicUsize>,
    _listener: TcpListener,
}

impl Stranger {
    fn at(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let requests = Arc::new(AtomicUsize::new(0));
        let (accepting, count) = (listener.try_clone()?, requests.clone());
        std::thread::spawn(move || {
            for mut stream in accepting.incoming().map_while(Result::ok) {
                let count = count.clone();
                std::thread::spawn(move || {
                    if stream.read(&mut [0; 1024]).is_ok_and(|read| 0 < read) {
                        count.fetch_add(1, Relaxed);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nstranger");
                    }
                });
            }
        });
        Ok(Self { requests, _listener: listener })
    }

    /// Takes the port as soon as it is free.
    fn lies_in_wait_at(port: u16) -> std::thread::JoinHandle<Self> {
        let begun = Instant::now();
        std::thread::spawn(move || {
            loop {
                match Self::at(port) {
                    Ok(stranger) => return stranger,
                    Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
                }
            }
        })
    }

    fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

#[test]
fn a_stranger_on_a_workers_port_ends_the_start() {
    let this = std::process::id();
    for offset in 0..4 {
        let port = free_ports(4);
        let stranger = Stranger::at(port + offset).expect("it is free");
        let base = port.to_string();
        let flags = ["--workers", "2", "--worker-port", &base];
        let (code, said) = refused(&flags, &["node", "deploy/workers/server.js"], tools::free_address());
        assert_eq!(code, Some(1), "{offset}: {said}");
        let expected = format!("error: 127.0.0.1:{} is taken by process {this} (", port + offset);
        assert!(said.starts_with(&expected) && said.contains("choose another --worker-port"), "{said}");
        assert_eq!(stranger.requests(), 0);
    }
    let data = SocketAddr::from(([127, 0, 0, 1], free_ports(4)));
    let base = data.port().to_string();
    let (code, said) = refused(&["--workers", "2", "--worker-port", &base], &["node"], data);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with(&format!("error: {data} is taken by this proxy itself: ")), "{said}");
    let (code, said) =
        refused(&["--workers", "2", "--worker-port", "65533"], &["node"], tools::free_address());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("error: --worker-port 65533: 2 workers take 4 ports"), "{said}");
}

/// The worker's server is killed while clients ask, and another process takes its port before anybody hears of it: where the
/// server is the process that was started, and where that one lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_takes_the_port_later_gets_no_request() {
    let server = "node deploy/workers/server.js";
    let lives_on = format!("{server} & wait; exec sleep 1000");
    for (worker, named) in [
        (format!("exec {server}"), "worker does not start"),
        (lives_on, "another process listens in the worker's place"),
    ] {
        let port = free_ports(4);
        let base = port.to_string();
        let flags = ["--workers", "2", "--worker-port", &base];
        let supervisor = Supervisor::start(&flags, &["sh", "-c", &worker], &[]);
        supervisor.until("two workers serve", async || supervisor.usable().await.len() == 2).await;
        let processes = supervisor.processes().await;
        let (_, first) = processes.iter().find(|(name, _)| name == "worker-1").expect("it answers").clone();
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> =
            (0..4).map(|_| tokio::spawn(ask_on(supervisor.data, stop.clone(), served.clone()))).collect();
        let stranger = Stranger::lies_in_wait_at(port);
        signal(first, "KILL");
        let stranger = tokio::task::spawn_blocking(|| stranger.join().expect("it gets the port"));
        let stranger = stranger.await.expect("no panic");
        let taken = format!("is taken by process {} (", std::process::id());
        let by_process = format!("process {} (", std::process::id());
        let says = |line: &Value| {
            line["error"].as_str().is_some_and(|error| error.contains(&taken))
                || line["stranger"].as_str().is_some_and(|stranger| stranger.starts_with(&by_process))
        };
        supervisor.until("it is named", async || supervisor.logged(named).iter().any(says)).await;
        let before = served.load(Relaxed);
        supervisor.until("the other one serves", async || before + 100 < served.load(Relaxed)).await;
        stop.store(true, Relaxed);
        for client in clients {
            client.await.expect("no panic");
        }
        assert_eq!(stranger.requests(), 0, "{worker}");
    }
}

/// Sends requests, each on a connection of its own, until told to stop, and counts those that a worker answered.
async fn ask_on(data: SocketAddr, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
    while !stop.load(Relaxed) {
        let answer = client::send(data, get("/", &[])).await.expect("an answer");
        assert_ne!(answer.text(), "stranger");
        served.fetch_add(usize::from(answer.status == 200), Relaxed);
    }
}

/// A server on the port `PORT` and this host, or where `ELSEWHERE` says.
const LISTENS: &str = "require('http').createServer((request, response) => response.end('here')) \
    .listen(...JSON.parse(process.env.ELSEWHERE ?? `[${process.env.PORT}, \"::1\"]`), \
    () => console.log('{\"message\": \"listens\"}'))";

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_listens_elsewhere_is_named() {
    let worker = ["node", "-e", LISTENS];
    let supervisor = Supervisor::start(&["--workers", "1"], &worker, &[]);
    supervisor.until("it listens", async || !supervisor.logged("listens").is_empty()).await;
    let begun = Instant::now();
    supervisor.until("what listens on ::1 serves", async || supervisor.usable().await.len() == 1).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed()); // half a second, on a machine at rest
    let (_, address) = supervisor.usable().await[0].clone();
    assert!(address.starts_with("[::1]:"), "{address}");
    let answer = client::send(supervisor.data, get("/", &[])).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "here"));
    let not_there = "worker does not listen where it was told to, by HOST and PORT";
    assert_eq!(supervisor.logged(not_there), Vec::<Value>::new());

    let elsewhere = tools::free_address();
    let arguments = format!("[{}, \"127.0.0.1\"]", elsewhere.port());
    let supervisor = Supervisor::start(&["--workers", "1"], &worker, &[("ELSEWHERE", &arguments)]);
    supervisor.until("it listens", async || !supervisor.logged("listens").is_empty()).await;
    let begun = Instant::now();
    supervisor.until("it is named", async || !supervisor.logged(not_there).is_empty()).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed()); // a second and a half
    let line = supervisor.logged(not_there)[0].clone();
    assert_eq!((&line["worker"], &line["listens"]), (&"worker-1".into(), &elsewhere.to_string().into()));
    let told = line["told"].as_str().expect("an address");
    let ready = client::send(supervisor.admin, get("/readyz", &[])).await.expect("an answer");
    let expected = format!("; worker-1: it listens on {elsewhere} and not on {told}, its HOST and PORT\n");
    assert!(ready.status == 503 && ready.text().ends_with(&expected), "{}", ready.text());
    let answer = client::send(supervisor.data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 503, "nobody asks it there");
}

/// A second to end, and none that starts while the file is there, if it is the second worker.
fn restarting(broken: &Path) -> String {
    format!(
        "[ \"$WORKER_ID\" = 2 ] && [ -e '{}' ] && exit 3; exec node -e 'require(`./deploy/workers/server.js`); \
         process.removeAllListeners(`SIGTERM`); process.on(`SIGTERM`, () => setTimeout(process.exit, 1000))'",
        broken.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_is_done_only_when_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "").expect("writable");
    let supervisor = Supervisor::start(&["--workers", "2"], &["sh", "-c", &restarting(&broken)], &[]);
    let logged = |message: &str| supervisor.logged(message);
    let (done, stopped) = ("rolling restart done", "rolling restart stopped");
    supervisor.until("the first serves", async || supervisor.usable().await.len() == 1).await;
    let tried = async || !logged("worker does not start").is_empty();
    supervisor.until("the second does not", tried).await;

    supervisor.signal("HUP");
    supervisor.until("the second does not start", async || logged(stopped).len() == 1).await;
    let line = &logged(stopped)[0];
    assert_eq!((&line["worker"], &line["left"]), (&"worker-2".into(), &1.into()));
    assert_eq!(line["reason"], "it ended with exit status: 3");

    let before = supervisor.processes().await;
    assert_eq!(before.len(), 1, "{before:?}");
    std::fs::remove_file(&broken).expect("it is there");
    supervisor.signal("HUP");
    supervisor.until("it is said to be done", async || logged(done).len() == 1).await;
    let left: Vec<_> = before.iter().filter(|(_, process)| lives(*process)).collect();
    assert!(left.is_empty(), "{left:?} are there when it is said to be done");
    assert_eq!(supervisor.usable().await.len(), 2, "those that are to take over do");
    let second = supervisor.processes().await;
    assert!(second.is_disjoint(&before) && second.len() == 2, "{second:?} after {before:?}");

    std::fs::write(&broken, "").expect("writable");
    supervisor.signal("HUP");
    supervisor.until("the second is not replaced", async || logged(stopped).len() == 2).await;
    assert_eq!(logged(stopped)[1]["worker"], "worker-2");
    let third = supervisor.processes().await;
    assert_eq!(
        third.intersection(&second).map(|(name, _)| name).collect::<Vec<_>>(),
        ["worker-2"],
        "it stays"
    );
    assert_eq!(logged(done).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_what_does_not_want_to_end() {
    let stubborn = "exec node -e 'require(`./deploy/workers/server.js`); process.removeAllListeners(`SIGTERM`); \
                    process.on(`SIGTERM`, () => {})'";
    let mut supervisor = Supervisor::start(&["--workers", "2"], &["sh", "-c", stubborn], &[]);
    supervisor.until("two workers serve", async || supervisor.usable().await.len() == 2).await;
    let mut processes = BTreeSet::new();
    supervisor.until("both are known", async || supervisor.processes().await.len() == 2).await;
    processes.extend(supervisor.processes().await);
    supervisor.signal("INT");
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert!(processes.iter().all(|(_, process)| lives(*process)), "they do not hear of it");
    let told = Instant::now();
    supervisor.signal("INT");
    assert_eq!(supervisor.ended().await, Some(0));
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    let left: Vec<_> = processes.iter().filter(|(_, process)| lives(*process)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_still_starting_is_not_warned_of() {
    let spec = format!("workers: [{{name: worker-1, weight: 2}}, {{name: worker-2, weight: 3}}]\n{DRAIN}");
    let slow = "sleep 0.$((WORKER_ID * 3)); exec node deploy/workers/server.js";
    let supervisor = Supervisor::launch(&[], &spec, &["--workers", "2"], &["sh", "-c", slow], &[]);
    supervisor.until("two workers serve", async || supervisor.usable().await.len() == 2).await;
    let warnings = || -> Vec<Value> {
        supervisor.log.lock().iter().filter(|line| line["level"] == "WARN").cloned().collect()
    };
    assert_eq!(warnings(), Vec::<Value>::new());
    let spec = format!("workers: [{{name: worker-3, weight: 2}}]\n{DRAIN}");
    std::fs::write(&supervisor.policy, document(&spec)).expect("writable");
    supervisor
        .until("a name that no worker will have is told", async || {
            let warned = warnings();
            warned.len() == 1 && warned[0]["path"] == "spec.workers[0].name"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_says_what_flags_do_not() {
    let worker = tools::example_worker().display().to_string();
    let supervisor = Supervisor::start(&[], &[&worker], &[("WORKERS", "3"), ("OUTRIGGER_THREADS", "1")]);
    supervisor.until("three workers serve", async || supervisor.usable().await.len() == 3).await;
    let processes = supervisor.processes().await;
    assert_eq!(
        processes.len(),
        3,
        "on the port of PORT, by the worker for machines without Node: {processes:?}"
    );
    assert_eq!(supervisor.logged("serving")[0]["threads"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_policy_is_in_force_and_a_broken_one_is_not() {
    let supervisor = Supervisor::of_node().await;
    let cookie = async || client::send(supervisor.data, get("/", &[])).await.expect("an answer").cookie();
    assert_eq!(cookie().await, None);
    let write = |spec: &str| std::fs::write(&supervisor.policy, document(spec)).expect("writable");
    write(&format!("sessionPersistence: {{}}\n{DRAIN}"));
    supervisor.until("sessions are on", async || cookie().await.is_some()).await;

    write("retry: {numRetries: 99}\ntimeout: {connect: soon}");
    let refused = "policy refused; the last good one stays";
    supervisor.until("it is refused", async || supervisor.logged(refused).len() == 2).await;
    let fields: Vec<_> = supervisor.logged(refused).iter().map(|line| line["field"].clone()).collect();
    assert_eq!(fields, ["spec.retry.numRetries", "spec.timeout.connect"], "every violation is told");
    assert!(cookie().await.is_some(), "the last good one stays");

    write(DRAIN);
    supervisor.until("sessions are off", async || cookie().await.is_none()).await;
}

#[test]
fn check_prints_every_violation_and_says_so_by_its_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.yaml");
    let spec = "retry: {numRetries: 99}\ntimeout: {connect: soon}\nloadBalancer: {type: RoundRobin}";
    std::fs::write(&broken, document(spec)).expect("writable");
    let check = |paths: &[&Path]| {
        let mut command = Command::new(tools::outrigger_proxy());
        let output = command.arg("check").args(paths).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let good = root().join("deploy/policies/demo.yaml");
    let (code, out, err) = check(&[&good]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.trim_end().ends_with("demo.yaml: valid"), "{out}");

    let (code, out, err) = check(&[&good, &broken]);
    assert_eq!(code, Some(1));
    assert!(out.contains("demo.yaml: valid"), "{out}");
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines.len(), 2, "{err}");
    assert!(lines[0].contains("broken.yaml: spec.retry.numRetries: "), "{err}");
    assert!(lines[1].contains("broken.yaml: spec.timeout.connect: "), "{err}");

    let (code, _, err) = check(&[&folder.path().join("missing.yaml")]);
    assert_eq!(code, Some(1));
    assert!(err.contains("missing.yaml"), "{err}");
}
