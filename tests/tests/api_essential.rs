//! The operator ends when any of its essential tasks does, and names it: on a real API server, each of them in turn.

use std::time::Duration;

use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use outrigger_operator::app::{self, Running};
use outrigger_operator::config::Config;
use system_tests::cluster::{kubeconfig, kubectl, run};
use tokio::time::timeout;

const NAMESPACE: &str = "api-essential";
const SOON: Duration = Duration::from_secs(30);

/// An operator of its own, beside whichever the cluster has.
async fn start() -> Running {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        config: Config,
    }
    let listen = ["--push-listen", "--webhook-listen", "--admin-listen"].map(|flag| [flag, "127.0.0.1:0"]);
    let flags = ["operator", "--namespace", NAMESPACE, "--proxy-image", "registry.example/outrigger-proxy:1"];
    let config = Flags::parse_from(flags.into_iter().chain(listen.concat())).config;
    let file = Kubeconfig::read_from(kubeconfig()).expect("a kubeconfig");
    let cluster =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a cluster");
    let client = kube::Client::try_from(cluster).expect("a client");
    timeout(SOON, app::start(client, config)).await.expect("in time").expect("it starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_essential_task_is_missed() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // the tests of a file share it
    let _ = run("kubectl", &["create", "namespace", NAMESPACE]); // it may be there
    let mut running = start().await;
    let names: Vec<_> = running.essential().names().collect();
    assert!(12 <= names.len(), "{names:?}");
    assert!(timeout(Duration::from_secs(2), running.failed()).await.is_err(), "all of them go on");
    running.stop().await;
    for name in names {
        let mut running = start().await;
        running.essential().end(name);
        let ended = timeout(SOON, running.failed()).await.expect("it is missed");
        assert_eq!(ended, name);
        running.stop().await;
    }
    kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
}
