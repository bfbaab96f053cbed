//! `outrigger-proxy run`, the real binary over real Node workers: what people use a process manager for.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
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
    /// Ends it as a signal does: killed, it would leave its workers.
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

/// The children of a process that have ended and that nobody has waited for.
fn zombies(parent: u32) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let is_one = |stat: &String| {
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields[..2] == ["Z", &parent.to_string()]
    };
    stats.filter(is_one).collect()
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
    // Each of the sleeps outlives the shell that started it, and ends when the proxy is its parent.
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
