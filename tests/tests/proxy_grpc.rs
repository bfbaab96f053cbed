//! gRPC's own interoperability client and server, with the proxy between them.

use std::process::{Command, Stdio};

use system_tests::certificate::Certificate;
use system_tests::proxy::{RunningProxy, start_with};
use system_tests::tools::{self, Started};

/// Every case of the client that needs no account of a cloud.
const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
];

struct Server {
    address: std::net::SocketAddr,
    _process: Started,
}

fn server() -> Server {
    let address = tools::free_address();
    let mut command = Command::new(tools::built("grpc-interop-server-1.64.0"));
    command.args(["--port", &address.port().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Started::new(&mut command);
    tools::until_it_accepts(address);
    Server { address, _process: process }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_passes_in_plain_text() {
    let servers = [server(), server()];
    let proxy = start_with(&servers.each_ref().map(|server| server.address), "{}", &[]);
    all_pass(&proxy, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_passes_over_tls_to_workers_that_are_said_to_speak_http2() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = Certificate::write(folder.path());
    let flags = certificate.flags();
    let servers = [server(), server()];
    let spec = "workers: [{name: worker-1, protocol: H2C}, {name: worker-2, protocol: H2C}]";
    let addresses = servers.each_ref().map(|server| server.address);
    let proxy = start_with(&addresses, spec, &flags.each_ref().map(String::as_str));
    let ca = format!("--ca_file={}", certificate.certificate.display());
    all_pass(&proxy, &["--use_tls", "--use_test_ca", &ca, "--server_host_override=localhost"]).await;
}

async fn all_pass(proxy: &RunningProxy, flags: &[&str]) {
    let mut failures = Vec::new();
    for case in CASES {
        let mut command = Command::new(tools::built("grpc-interop-client-1.64.0"));
        let port = proxy.data.port().to_string();
        command.args(["--server_host", "127.0.0.1", "--server_port", &port, "--test_case", case]).args(flags);
        let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = ran.expect("the client runs");
        if !output.status.success() {
            failures.push(format!("{case}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), CASES.len());
    for worker in &proxy.control.snapshot().workers {
        assert!(0 < worker.requests(), "{} was asked too", worker.name);
    }
}
