//! `make demo`, as somebody does who just cloned the project: with Node and without, in a terminal of its own.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::client::{self, Answer, get};
use system_tests::cluster::root;
use system_tests::tools::{self, Started};

/// Long enough for a build of the proxy.
const BUILD: Duration = Duration::from_secs(900);
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn with_node_and_without_the_urls_answer_the_policy_is_live_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = std::env::var("PATH").expect("PATH");
    demo(&path, "node").await;
    demo(&path_without_node(folder.path(), &path), "worker").await;
}

/// A `PATH` with every program but Node.
fn path_without_node(folder: &Path, path: &str) -> String {
    for entry in std::env::split_paths(path).filter_map(|folder| std::fs::read_dir(folder).ok()).flatten() {
        let program = entry.expect("an entry").path();
        let name = program.file_name().expect("a name");
        if name != "node" && name != "nodejs" {
            let _ = symlink(&program, folder.join(name)); // the first of a name counts, as in PATH
        }
    }
    folder.display().to_string()
}

async fn demo(path: &str, worker: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("demo.yaml");
    let text = std::fs::read_to_string(root().join("deploy/policies/demo.yaml")).expect("the demo's policy");
    std::fs::write(&policy, &text).expect("writable");
    let (data, admin) = (tools::free_address(), tools::free_address());
    let mut command = Command::new(root().join("scripts/demo"));
    command.env("PATH", path).env("DEMO_PROFILE", "dev");
    command.env("PORT", data.port().to_string()).env("OUTRIGGER_ADMIN_LISTEN", admin.to_string());
    command.env("OUTRIGGER_POLICY", &policy).stdout(Stdio::piped()).process_group(0);
    let mut demo = Started::new(&mut command);
    let mut stdout = demo.0.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map(|_| printed)
    });

    let who = |answer: &Answer| serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let serving = async || client::send(data, get("/", &[])).await.is_ok_and(|answer| answer.status == 200);
    until("the demo serves", BUILD, serving).await;
    let mut workers = Vec::new();
    let all = async || {
        let answer = client::send(data, get("/", &[])).await.expect("an answer");
        let name = who(&answer)["worker"].as_str().map(str::to_owned);
        name.unwrap_or_else(|| panic!("no worker says its name: {answer:?}"))
    };
    let started = Instant::now();
    while workers.len() < 4 {
        let name = all().await;
        if !workers.contains(&name) {
            workers.push(name);
        }
        assert!(started.elapsed() < SOON, "{worker}: only {workers:?} answer");
    }
    workers.sort();
    assert_eq!(workers, ["worker-1", "worker-2", "worker-3", "worker-4"], "{worker}");
    for (path, status) in [("/slow?ms=10", 200), ("/fail?status=503", 503)] {
        let answer = client::send(data, get(path, &[])).await.expect("an answer");
        assert_eq!(answer.status, status, "{worker}: {path}");
    }
    for path in ["/metrics", "/api/snapshot"] {
        let mut request = get(path, &[]);
        request.headers_mut().insert("host", "127.0.0.1".parse().expect("a host"));
        let answer = client::send(admin, request).await.expect("an answer");
        assert_eq!(answer.status, 200, "{worker}: {path}");
    }

    let edited = text.replace("# sessionPersistence", "sessionPersistence");
    assert_ne!(edited, text, "the line that the file invites to edit");
    std::fs::write(&policy, edited).expect("writable");
    let sticky =
        async || client::send(data, get("/", &[])).await.is_ok_and(|answer| answer.cookie().is_some());
    until("the edited policy is in force", SOON, sticky).await;

    let ids = pids(data, &who).await;
    // Ctrl-C: the terminal tells its whole foreground group.
    let told =
        Command::new("kill").args(["-INT", "--", &format!("-{}", demo.0.id())]).status().expect("kill runs");
    assert!(told.success());
    let ended = Instant::now();
    while demo.0.try_wait().expect("it is ours").is_none() {
        assert!(ended.elapsed() < SOON, "{worker}: Ctrl-C does not end the demo");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left: Vec<_> = ids.iter().filter(|id| Path::new("/proc").join(id.to_string()).exists()).collect();
    assert!(left.is_empty(), "{worker}: Ctrl-C leaves workers {left:?}");
    let printed = reader.join().expect("no panic").expect("text"); // ends when nobody holds the terminal any more
    for url in [format!("http://127.0.0.1:{}/slow", data.port()), format!("http://{admin}/metrics")] {
        assert!(printed.contains(&url), "{worker}: {url} is not printed: {printed}");
    }
}

/// The workers' processes, as they say themselves.
async fn pids(data: SocketAddr, who: &impl Fn(&Answer) -> Value) -> Vec<i64> {
    let mut ids = Vec::new();
    for _ in 0..16 {
        let answer = client::send(data, get("/", &[])).await.expect("an answer");
        let id = who(&answer)["pid"].as_i64().expect("a process");
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    assert_eq!(ids.len(), 4);
    ids
}

async fn until(what: &str, limit: Duration, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
