//! How the real program begins: nothing is served under other rules than those asked for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use system_tests::client::{self, get};
use system_tests::proxy::{RunningProxy, document, start_proxy};
use system_tests::tools::{self, Started};
use system_tests::workers::{self, Manner};

const LIMIT: &str = "rateLimit: {rules: [{name: one, limit: {requests: 1, unit: Hour}}]}\ndrain: {delay: 0s}";

fn serve(worker: SocketAddr, data: SocketAddr, policy: &Path) -> Command {
    let mut command = Command::new(tools::outrigger_proxy());
    command.args(["serve", "--admin-listen", "127.0.0.1:0", "--threads", "2", "--log", "error"]);
    command.arg("--workers").arg(format!("a={worker}")).arg("--listen").arg(data.to_string());
    command.arg("--policy").arg(policy).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The status of an answer; `None` where nobody listens yet.
fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1).map(str::to_owned)
}

/// Clients that ask from before the process listens on: its very first requests are among theirs.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_requests_of_a_process_meet_the_limit_of_its_policy() {
    let worker = workers::start("a", Manner::default()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, document(LIMIT)).expect("writable");
    for _ in 0..20 {
        let data = tools::free_address();
        let mut proxy = serve(worker.address, data, &policy);
        let clients: Vec<_> = (0..3)
            .map(|_| {
                tokio::task::spawn_blocking(move || {
                    let (begun, mut statuses) = (Instant::now(), Vec::new());
                    while statuses.len() < 3 && begun.elapsed() < Duration::from_secs(30) {
                        statuses.extend(ask(data));
                    }
                    statuses
                })
            })
            .collect();
        let _proxy = Started::new(&mut proxy);
        let mut statuses = Vec::new();
        for client in clients {
            statuses.extend(client.await.expect("no panic"));
        }
        statuses.sort();
        assert_eq!(statuses.len(), 9, "{statuses:?}");
        assert_eq!((statuses[0].as_str(), statuses[1].as_str()), ("200", "429"), "{statuses:?}");
    }
}

#[test]
fn a_policy_that_is_missing_or_wrong_ends_the_start_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let start = |more: &[&str]| -> Output {
        let data = SocketAddr::from(([127, 0, 0, 1], 0));
        serve(nobody, data, &policy).args(more).stderr(Stdio::piped()).output().expect("it runs")
    };
    let refused = |reasons: &[&str], more: &[&str]| {
        let output = start(more);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for reason in reasons {
            assert_eq!(text.matches(reason).count(), 1, "{reason} in {text}");
        }
    };
    let state = folder.path().join("state").display().to_string();
    std::fs::create_dir(&state).expect("created");
    refused(&["error: no policy can be put in force", "No such file or directory"], &[]);
    refused(&["No such file or directory"], &["--state-dir", &state]);
    std::fs::write(&policy, document("retry: {numRetries: 99}\ntimeout: {connect: soon}")).expect("writable");
    refused(&["spec.retry.numRetries: ", "spec.timeout.connect: "], &[]);
}

/// What ends a start beside the policy: said once, with the setting.
#[test]
fn what_cannot_be_used_ends_the_start_and_is_said_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, document("")).expect("writable");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    };
    let (good, other) = (
        rcgen::generate_simple_self_signed(["a".to_owned()]),
        rcgen::generate_simple_self_signed(["b".to_owned()]),
    );
    let (good, other) = (good.expect("a certificate"), other.expect("a certificate"));
    let (cert, key) = (file("cert", &good.cert.pem()), file("key", &good.signing_key.serialize_pem()));
    let other_key = file("other", &other.signing_key.serialize_pem());
    let (empty, text) = (file("empty", ""), file("text", "no PEM at all"));
    let missing = "/nonexistent/file";
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    for (flags, expected) in [
        (vec!["--tls-cert", missing, "--tls-key", &key], "No such file"),
        (vec!["--tls-cert", &cert, "--tls-key", missing], "No such file"),
        (vec!["--tls-cert", &empty, "--tls-key", &key], "holds no"),
        (vec!["--tls-cert", &text, "--tls-key", &key], "holds no"),
        (vec!["--tls-cert", &cert, "--tls-key", &text], "holds no"),
        (vec!["--tls-cert", &key, "--tls-key", &key], "holds no"),
        (vec!["--tls-cert", &cert, "--tls-key", &other_key], "cannot be used"),
    ] {
        let mut command = serve(nobody, SocketAddr::from(([127, 0, 0, 1], 0)), &policy);
        let output = command.args(&flags).stderr(Stdio::piped()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {said}");
        assert_eq!(said.matches(expected).count(), 1, "{flags:?}: {said}");
        assert!(said.contains(flags[0]), "{flags:?}: {said}");
    }
}

/// The sockets of one process share an address; another process may not, unless it asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_address_is_refused_unless_it_asks() {
    let worker = workers::start("a", Manner::default()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, document("drain: {delay: 0s}")).expect("writable");
    let data = tools::free_address();
    let _first = Started::new(&mut serve(worker.address, data, &policy));
    tools::until_it_accepts(data);
    let second = serve(worker.address, data, &policy).stderr(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {data} (--listen")), "{said}");
    let mut sharing = Started::new(serve(worker.address, data, &policy).arg("--reuse-port"));
    for _ in 0..50 {
        assert_eq!(ask(data).as_deref(), Some("200"));
    }
    assert!(sharing.0.try_wait().expect("it can be asked").is_none(), "it runs");
}

async fn ready(proxy: &RunningProxy) -> bool {
    client::send(proxy.admin, get("/readyz", &[])).await.expect("an answer").status == 200
}

/// Two workers that begin to listen after a while, one well before the other, and neither a breaker nor a health check nor a
/// retry: who waits for the proxy to be ready meets no worker that is still starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_ready_only_when_its_workers_listen() {
    let addresses = [tools::free_address(), tools::free_address()];
    let proxy = start_proxy(&addresses, "retry: {numRetries: 0}");
    let begun = Instant::now();
    let starting = [(0, 2), (1, 6)].map(|(worker, seconds): (usize, u64)| {
        let address = addresses[worker];
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            workers::start_at(address, "late", Manner::default()).await
        })
    });
    while !ready(&proxy).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waited = begun.elapsed();
    let mut failed = 0;
    for _ in 0..200 {
        let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        failed += usize::from(answer.status != 200);
    }
    assert_eq!(failed, 0, "of 200, by a proxy that was ready after {waited:?}");
    assert!((6.0..10.0).contains(&waited.as_secs_f64()), "{waited:?}");
    for worker in starting {
        assert!(worker.await.expect("it started").count() >= 90, "both serve");
    }
}

/// Two of six workers die, and neither a breaker nor a health check says so.
#[tokio::test(flavor = "multi_thread")]
async fn dead_workers_are_told_and_avoided_without_a_breaker_and_a_health_check() {
    let mut workers = Vec::new();
    for _ in 0..6 {
        workers.push(workers::start("a", Manner::default()).await);
    }
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    let proxy = start_proxy(&addresses, "retry: {numRetries: 0}");
    let usable = async || {
        let page = client::send(proxy.admin, get("/metrics", &[])).await.expect("an answer").text();
        page.lines()
            .filter(|line| line.starts_with("outrigger_worker_usable{") && line.ends_with(" 1"))
            .count()
    };
    let becomes = async |count: usize| {
        let begun = Instant::now();
        while usable().await != count {
            assert!(begun.elapsed() < Duration::from_secs(10), "{} are usable, not {count}", usable().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    becomes(6).await;
    for _ in 0..2 {
        workers.pop().expect("six").stop().await;
    }
    becomes(4).await;
    assert!(ready(&proxy).await);
    for _ in 0..100 {
        assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, 200);
    }
    let _back = workers::start_at(addresses[5], "back", Manner::default()).await;
    becomes(5).await;
    for worker in workers {
        worker.stop().await;
    }
    becomes(1).await;
    assert!(ready(&proxy).await);
}
