//! A canary as clients meet it: shares by step, clients and sessions that stay, previews, counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_policy::merge::{Candidate, merge};
use outrigger_policy::report::CanaryReport;
use outrigger_policy::wire::{CanaryShare, Update};
use outrigger_proxy::snapshot::Source;
use system_tests::client::{self, get};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::workers::{self, Manner, Worker};

/// Two workers of the old version and one of the new.
async fn three(new: Manner) -> Vec<Worker> {
    let mut started = Vec::new();
    for (name, manner) in [("old-1", Manner::default()), ("old-2", Manner::default()), ("new", new)] {
        started.push(workers::start(name, manner).await);
    }
    started
}

fn start(workers: &[Worker], rest: &str) -> RunningProxy {
    let addresses: Vec<SocketAddr> = workers.iter().map(|worker| worker.address).collect();
    start_proxy(&addresses, &spec(rest))
}

fn spec(rest: &str) -> String {
    let canary = "canary:\n  version: v2\n  steps: [{weight: 10}, {weight: 50}]";
    format!("workers: [{{name: worker-3, version: v2}}]\n{canary}\n{rest}")
}

/// What the operator does when a step begins.
fn give(proxy: &RunningProxy, weight: u32, step: u32) {
    let before = proxy.control.snapshot().update();
    let share = CanaryShare { weight, epoch: format!("v2.1/{step}") };
    let update = Update::new(before.policy, before.session_keys).with_canary(Some(share));
    proxy.control.apply(&update, Source::File).expect("valid");
}

/// What was counted, once so many requests were: the last one counts when its answer has ended here.
async fn counted(proxy: &RunningProxy, requests: u64) -> CanaryReport {
    let counted = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let report = proxy.control.snapshot().canary.as_ref().and_then(|canary| canary.report());
            if let Some(report) =
                report.filter(|report| report.old.requests + report.new.requests == requests)
            {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    counted.await.expect("all are counted within ten seconds")
}

/// How many of the requests each worker answered; every one is of another client.
async fn shares(proxy: &RunningProxy, requests: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for i in 0..requests {
        let user = format!("user-{i}");
        let answer = client::send(proxy.data, get("/", &[("x-user", &user)])).await.expect("an answer");
        *shares.entry(answer.worker().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_gets_the_share_of_the_step() {
    let workers = three(Manner::default()).await;
    let proxy = start(&workers, "");
    let nothing_yet = shares(&proxy, 100).await;
    assert_eq!(nothing_yet.get("new"), None, "nobody began it: {nothing_yet:?}");
    for (step, weight, expected) in
        [(1, 10, 60..=140), (2, 50, 430..=570), (3, 100, 1000..=1000), (4, 0, 0..=0)]
    {
        give(&proxy, weight, step);
        let shares = shares(&proxy, 1000).await;
        let new = shares.get("new").copied().unwrap_or_default();
        assert!(expected.contains(&new), "{weight} %: {shares:?}");
        let old: Vec<_> = ["old-1", "old-2"].map(|name| shares.get(name).copied().unwrap_or_default()).into();
        assert!(
            old[0].abs_diff(old[1]) <= 1,
            "the strategy shares out what the old version gets: {shares:?}"
        );
        let report = counted(&proxy, 1000).await;
        assert_eq!((report.new.requests, report.old.requests), (new as u64, 1000 - new as u64));
        assert_eq!(report.epoch, format!("v2.1/{step}"), "each step is counted anew");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_with_its_version() {
    let workers = three(Manner::default()).await;
    let sticky = "  stickiness: Client\n  clientHeader: x-user";
    let proxy = start(&workers, sticky);
    give(&proxy, 30, 1);
    let mut first = BTreeMap::new();
    for round in 0..5 {
        for i in 0..100 {
            let user = format!("user-{i}");
            let answer = client::send(proxy.data, get("/", &[("x-user", &user)])).await.expect("an answer");
            let new = answer.worker() == "new";
            assert_eq!(*first.entry(user).or_insert(new), new, "in round {round}");
        }
    }
    let new = first.values().filter(|new| **new).count();
    assert!((15..=45).contains(&new), "{new}");
    give(&proxy, 60, 2);
    for (user, was_new) in &first {
        let answer = client::send(proxy.data, get("/", &[("x-user", user)])).await.expect("an answer");
        assert!(answer.worker() == "new" || !was_new, "{user} went back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_until_its_version_is_switched_back() {
    let workers = three(Manner::default()).await;
    let proxy = start(&workers, "sessionPersistence: {}");
    give(&proxy, 100, 1);
    let first = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(first.worker(), "new");
    let cookie = first.cookie().expect("a cookie");
    give(&proxy, 10, 2);
    for _ in 0..20 {
        let answer = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
        assert_eq!((answer.worker(), answer.cookie()), ("new", None));
    }
    give(&proxy, 0, 3);
    let moved = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
    assert!(moved.worker().starts_with("old") && moved.cookie().is_some(), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_reaches_the_new_version_before_anybody_else() {
    let workers = three(Manner { status: 500, ..Manner::default() }).await;
    let proxy = start(&workers, "  preview: {name: x-preview, value: v2}");
    give(&proxy, 0, 1);
    for _ in 0..10 {
        let answer = client::send(proxy.data, get("/", &[("x-preview", "v2")])).await.expect("an answer");
        assert_eq!(answer.worker(), "new");
        let answer = client::send(proxy.data, get("/", &[("x-preview", "v1")])).await.expect("an answer");
        assert!(answer.worker().starts_with("old"));
    }
    let report = counted(&proxy, 10).await;
    assert_eq!((report.new.requests, report.old.requests), (0, 10), "a preview is not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_count_for_their_version() {
    let workers = three(Manner { status: 500, ..Manner::default() }).await;
    let proxy = start(&workers, "");
    give(&proxy, 50, 1);
    let before = proxy.control.snapshot().version.clone();
    shares(&proxy, 200).await;
    give(&proxy, 50, 1);
    assert_eq!(proxy.control.snapshot().version, before, "the same again");
    let other = serde_yaml::from_str(&spec("retry: {numRetries: 2}")).expect("a spec");
    let candidate = Candidate { name: "test", generation: 2, created: 0, spec: &other };
    let before = proxy.control.snapshot().update();
    let update = Update::new(merge(&[candidate]), before.session_keys).with_canary(before.canary);
    assert!(proxy.control.apply(&update, Source::File).expect("valid"), "another policy, the same step");
    let report = counted(&proxy, 200).await;
    assert_eq!((report.new.failures, report.new.requests + report.old.requests), (report.new.requests, 200));
    assert_eq!((report.old.failures, report.old.latencies()), (0, report.old.requests));
}
