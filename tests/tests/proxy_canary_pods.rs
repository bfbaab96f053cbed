//! A canary whose versions are pods, from proxy to proxy: shares, counts, and the way back.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_policy::report::CanaryReport;
use outrigger_policy::wire::CanaryShare;
use system_tests::client::{Connection, get};
use system_tests::siblings::{Beside, Operator, Pod};
use system_tests::workers::{self, Manner, Worker};

const SPEC: &str = "
subject: {podSelector: {matchLabels: {app: web}}}
loadBalancer: {scope: Workload}
canary: {podLabel: version, version: v2, steps: [{weight: 20}], preview: {name: x-preview, value: new}}
";
const SENT: &str = "outrigger_sibling_requests_sent_total";
const SERVED: &str = "outrigger_sibling_requests_served_total";

/// Two pods of one Deployment, of the old version, and one of another, of the new version.
struct Pods {
    operator: Operator,
    proxies: Vec<Beside>,
    workers: Vec<Worker>,
}

impl Pods {
    async fn start(new: Manner) -> Self {
        let operator = Operator::start().await;
        let (mut proxies, mut all) = (Vec::new(), Vec::new());
        for (pod, manner) in [("a", Manner::default()), ("b", Manner::default()), ("c", new)] {
            let worker = workers::start(pod, manner).await;
            proxies.push(Beside::start(&operator, pod, &[worker.address]));
            all.push(worker);
        }
        Self { operator, proxies, workers: all }
    }

    /// Gives the new version a share, and waits until all proxies keep it.
    async fn give(&self, weight: u32, step: u32) {
        let share = CanaryShare { weight, epoch: format!("v2.1/{step}") };
        let pods = self.proxies.iter().map(|proxy| {
            let pod = Pod::of(proxy);
            let (workload, version) = if pod.name == "c" { ("canary", "v2") } else { ("stable", "v1") };
            let labels = [("app", "web"), ("version", version)].map(|(k, v)| (k.to_owned(), v.to_owned()));
            Pod { workload: workload.to_owned(), labels: labels.into(), ..pod }
        });
        self.operator.put_step(SPEC, &pods.collect::<Vec<_>>(), &share);
        for (proxy, others) in self.proxies.iter().zip([["b", "c"], ["c", "a"], ["a", "b"]]) {
            proxy.is_certified().await;
            proxy.reaches(&others).await;
            let waited = tokio::time::timeout(Duration::from_secs(20), async {
                while report(proxy).is_none_or(|report| report.epoch != share.epoch) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            waited.await.expect("the share is in force within twenty seconds");
        }
    }
}

fn report(proxy: &Beside) -> Option<CanaryReport> {
    proxy.control.snapshot().canary.as_ref()?.report()
}

/// What was counted, once so many requests were: the last one counts when its answer has ended here.
async fn counted(proxy: &Beside, requests: u64) -> CanaryReport {
    let counted = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match report(proxy) {
                Some(report) if report.old.requests + report.new.requests == requests => return report,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    counted.await.expect("all are counted within ten seconds")
}

/// How many of the requests each pod's worker answered.
async fn shares(proxy: &Beside, requests: usize) -> BTreeMap<String, usize> {
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        let answer = connection.send(get("/", &[])).await.expect("an answer");
        *shares.entry(answer.worker().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn each_proxy_keeps_the_share_and_counts_what_it_sent() {
    let pods = Pods::start(Manner::default()).await;
    let [a, b, c] = &pods.proxies[..] else { panic!("three") };
    pods.give(20, 1).await;
    let from_old = shares(a, 600).await;
    let new = from_old["c"];
    assert!((80..=160).contains(&new), "{from_old:?}");
    assert_eq!(from_old["a"] + new, 600, "its own pod first: {from_old:?}");
    let report = counted(a, 600).await;
    assert_eq!((report.new.requests, report.old.requests), (new as u64, 600 - new as u64));
    assert_eq!((report.new.failures, report.old.failures), (0, 0));
    assert_eq!(a.counter(SENT).await, new as u64);
    assert_eq!(c.counter(SERVED).await, new as u64);
    counted(c, 0).await; // whoever drew them counts them
    assert_eq!((c.counter(SENT).await, b.counter(SERVED).await), (0, 0), "none was split again");

    let from_new = shares(c, 600).await;
    let stays = from_new["c"];
    assert!((80..=160).contains(&stays), "{from_new:?}");
    assert!(from_new["a"].abs_diff(from_new["b"]) <= 1, "the strategy shares out the rest: {from_new:?}");
    assert_eq!(counted(c, 600).await.new.requests, stays as u64);
    counted(a, 600).await; // and not what c sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_version_is_counted_and_gets_nothing_once_it_is_switched_back() {
    let pods = Pods::start(Manner { status: 500, ..Manner::default() }).await;
    let [a, _, c] = &pods.proxies[..] else { panic!("three") };
    pods.give(20, 1).await;
    let before = shares(a, 300).await;
    let report = counted(a, 300).await;
    assert_eq!(report.new.failures, before["c"] as u64, "{before:?}");
    assert_eq!((report.new.requests, report.old.failures), (report.new.failures, 0));

    pods.give(0, 2).await;
    let sent = pods.workers[2].count();
    assert_eq!(shares(a, 100).await, [(String::from("a"), 100)].into());
    let from_new = shares(c, 100).await;
    assert_eq!(
        from_new,
        [(String::from("a"), 50), (String::from("b"), 50)].into(),
        "its own pod gets none either"
    );
    assert_eq!(pods.workers[2].count(), sent);
    let mut connection = Connection::open(a.data).await.expect("connects");
    let preview = connection.send(get("/", &[("x-preview", "new")])).await.expect("an answer");
    assert_eq!((preview.worker(), preview.status.as_u16()), ("c", 500), "but for previews");
    assert_eq!(counted(a, 100).await.new.requests, 0, "which do not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_took_over_has_everything_and_its_pods_go_on_alone() {
    let mut pods = Pods::start(Manner::default()).await;
    pods.give(100, 1).await;
    for proxy in &pods.proxies {
        assert_eq!(shares(proxy, 50).await, [(String::from("c"), 50)].into());
    }
    assert_eq!(pods.proxies[2].counter(SERVED).await, 100);
    pods.give(20, 2).await;
    pods.workers.remove(2).stop().await;
    let without = shares(&pods.proxies[0], 100).await;
    assert_eq!(
        without.get("c"),
        None,
        "its proxy passes requests by, and the old version serves them: {without:?}"
    );
    assert_eq!(without.values().sum::<usize>(), 100);
}
