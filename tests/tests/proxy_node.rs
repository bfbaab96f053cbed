//! Node's own client and server on either side: interim answers, uploads that are refused, connections closed by half.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use system_tests::processes::Process;
use system_tests::proxy::{RunningProxy, start_proxy};

const LIMITED: &str = "
routes:
- name: limited
  match: {path: {value: /limited}}
  rateLimit: {rules: [{name: never, clientSelector: {type: SourceAddress}, limit: {requests: 1, unit: Hour}}]}";

/// A Node worker and the proxy in front of it.
fn setup() -> (Process, RunningProxy) {
    let worker = Process::node("tests/node/worker.js");
    let proxy = start_proxy(&[worker.address], LIMITED);
    (worker, proxy)
}

/// Runs one of the clients in `tests/node/client.js`.
async fn client(case: &'static str, proxy: &RunningProxy) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/client.js");
    let port = proxy.data.port().to_string();
    let run = move || {
        let mut command = Command::new("node");
        command.arg(script).args([case, &port]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().expect("node is installed: scripts/tools")
    };
    let run = tokio::task::spawn_blocking(run);
    let output =
        tokio::time::timeout(Duration::from_secs(60), run).await.expect("in time").expect("no panic");
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_reach_the_client_before_the_answer() {
    let (_worker, proxy) = setup();
    client("early hints", &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_decides_about_content_that_waits() {
    let (_worker, proxy) = setup();
    client("the worker asks for the content", &proxy).await;
    client("the worker refuses the content", &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_learns_why() {
    let (_worker, proxy) = setup();
    let first = Command::new("curl")
        .args(["-s", "-o", "/dev/null"])
        .arg(format!("http://{}/limited", proxy.data))
        .status();
    assert!(first.expect("curl is installed: scripts/tools").success(), "the one request of the hour");
    client("a refused upload learns why", &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_closed_its_direction_gets_its_answer() {
    let (_worker, proxy) = setup();
    client("half-closed", &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_passes_as_it_came() {
    let (_worker, proxy) = setup();
    client("an untouched query", &proxy).await;
}
