//! The cluster of the end-to-end tests: the node that `tests/cluster/up` boots, or the one of `KUBECONFIG`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tools::Started;

/// Where the node's programs and state are.
fn home() -> PathBuf {
    let cache = std::env::var("XDG_CACHE_HOME")
        .unwrap_or_else(|_| format!("{}/.cache", std::env::var("HOME").expect("HOME")));
    std::env::var("KUBE_HOME").map_or_else(|_| Path::new(&cache).join("outrigger-kube"), PathBuf::from)
}

/// Whether the tests booted the node themselves.
pub fn own_node() -> bool {
    std::env::var_os("KUBECONFIG").is_none()
}

/// The file by which clients reach the cluster.
pub fn kubeconfig() -> PathBuf {
    std::env::var_os("KUBECONFIG").map_or_else(|| home().join("state/admin.kubeconfig"), PathBuf::from)
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    if own_node() {
        let path = format!("{}:{}", home().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        command = Command::new("env");
        command.arg(format!("PATH={path}")).arg(program);
        command.env("KUBECONFIG", kubeconfig());
    }
    command.current_dir(root());
    command
}

/// What a command printed, if it succeeded; what it complained of, if not.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    run_with_input(program, args, "")
}

/// As `run`, with this on its standard input.
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut command = command(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the command reads its input");
    let output = child.wait_with_output().expect("the command ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Starts a command that runs until the test ends it; its standard output is piped.
pub fn spawn(program: &str, args: &[&str]) -> Started {
    let mut command = command(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    Started::new(&mut command)
}

/// The namespace of the operator.
pub const SYSTEM: &str = "outrigger-system";

/// Installs the chart with the images that were built here, once for all tests of a file, or leaves it as it is when
/// that was done before.
pub fn install_chart() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let chart = ["upgrade", "--install", "outrigger", "charts/outrigger", "--namespace", SYSTEM];
        let images =
            "image.registry=localhost,proxy.image.registry=localhost,image.tag=dev,proxy.image.tag=dev";
        let how = ["--create-namespace", "--set", images, "--wait", "--timeout", "3m"];
        run("helm", &[&chart[..], &how[..]].concat()).unwrap_or_else(|error| panic!("helm: {error}"));
        wait("the API server reaches the webhook", Duration::from_secs(60), || injected().then_some(()));
    });
}

/// Whether a labelled pod would get its proxy now. The node's rules for the webhook's Service come a moment after
/// the operator is ready, and until then pods start without.
fn injected() -> bool {
    let labels = "labels: {outrigger.dev/inject: enabled}";
    let worker = "containers: [{name: a, image: none, ports: [{name: worker-a, containerPort: 8081}]}]";
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: try, namespace: default, {labels}}}, spec: {{{worker}}}}}"
    );
    let dry = ["create", "-f", "-", "--dry-run=server", "-o", "json"];
    run_with_input("kubectl", &dry, &pod).is_ok_and(|made| made.contains("outrigger-proxy"))
}

/// The file of the node's cluster with this path under its state; `None` on a cluster of somebody else.
pub fn node_file(path: &str) -> Option<PathBuf> {
    own_node().then(|| home().join("state").join(path))
}

/// `kubectl`, which must succeed.
pub fn kubectl(args: &[&str]) -> String {
    run("kubectl", args).unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
}

/// `kubectl … -o json`.
pub fn kubectl_json(args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&kubectl(&args)).expect("kubectl prints JSON")
}

/// `kubectl apply` of this text.
pub fn apply(yaml: &str) -> Result<String, String> {
    run_with_input("kubectl", &["apply", "-f", "-"], yaml)
}

/// A page of a pod's port, through the API server.
pub fn pod_page(namespace: &str, pod: &str, port_and_path: &str) -> Result<String, String> {
    let (port, path) = port_and_path.split_once('/').expect("PORT/PATH");
    run(
        "kubectl",
        &["get", "--raw", &format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}")],
    )
}

/// Ends a container's process as `kill -9` does.
pub fn kill_container(namespace: &str, pod: &str, container: &str) {
    let pod = kubectl_json(&["get", "pod", "-n", namespace, pod]);
    let statuses = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].clone());
    let id = statuses
        .iter()
        .filter_map(Value::as_array)
        .flatten()
        .find(|status| status["name"] == container)
        .and_then(|status| status["containerID"].as_str())
        .and_then(|id| id.split("//").nth(1))
        .unwrap_or_else(|| panic!("the pod has no running container {container}"))
        .to_owned();
    let kill = ["-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &id];
    let killed = if own_node() {
        let socket = home().join("state/containerd/containerd.sock").display().to_string();
        run("ctr", &[&["-a", &socket], &kill[..]].concat())
    } else {
        let node = pod["spec"]["nodeName"].as_str().expect("scheduled");
        run("docker", &[&["exec", node, "ctr"], &kill[..]].concat())
    };
    killed.unwrap_or_else(|error| panic!("cannot kill {container}: {error}"));
}

/// Asks until the answer is `Some`, and how long that took.
pub fn wait<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(found) = ask() {
            return (found, started.elapsed());
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
