//! What becomes of good clients while this machine, or what the process may have of it, is used up.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use system_tests::flood::{self, Bounded, Good};
use system_tests::proxy::document;
use system_tests::tools;
use system_tests::workers::{self, Manner, Worker};

const EVERY: Duration = Duration::from_millis(20);

async fn workers<const N: usize>() -> [Worker; N] {
    let mut started = Vec::new();
    for i in 0..N {
        started.push(workers::start(&format!("worker-{}", i + 1), Manner::default()).await);
    }
    started.try_into().unwrap_or_else(|_| panic!("so many were started"))
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_idle_clients_and_256_descriptors_take_nothing_from_those_that_are_there() {
    let workers = workers::<4>().await;
    let proxy =
        Bounded::start(&workers.each_ref().map(|worker| worker.address), [128, 256], &["--threads", "2"]);
    let mut good = Vec::new();
    for _ in 0..16 {
        let mut stream = flood::connect(proxy.data).await.expect("the proxy accepts");
        flood::ask(&mut stream).await.expect("the proxy answers");
        good.push(stream);
    }
    let idle = flood::silent(proxy.data, 400).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(4500)).await; // no connection to a worker rests for so long
        let asked = good.iter_mut().map(flood::ask);
        let failed: Vec<_> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
    assert!(proxy.descriptors() < 240, "some are kept for the rest of the process");
    assert_eq!(proxy.open_files(), 256, "the soft limit is raised to the hard one");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_descriptor_for_a_new_client_those_that_are_there_go_on_and_the_thread_does_not_spin() {
    let workers = workers::<1>().await;
    let policy = tempfile::NamedTempFile::new().expect("a file");
    let check = "healthCheck: {active: {type: TCP, interval: 100ms, unhealthyThreshold: 1}}";
    std::fs::write(policy.path(), document(check)).expect("writable");
    let path = policy.path().display().to_string();
    let proxy = Bounded::start(&[workers[0].address], [1024, 1024], &["--threads", "1", "--policy", &path]);
    let good = Good::start(proxy.data, [1, 0], EVERY).await; // and one connection to the worker
    proxy.limit_open_files([proxy.descriptors() as u64 - 1, 1024]);
    let before = proxy.computed();
    let mut late = flood::silent(proxy.data, 100).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let computed = proxy.computed() - before;
    assert!(computed < Duration::from_secs(1), "{computed:?} of two seconds");
    proxy.limit_open_files([1024, 1024]);
    flood::ask(&mut late[0]).await.expect("it is served once there is a descriptor");
    let measured = good.stop().await;
    assert_eq!(
        measured.failures,
        Vec::<String>::new(),
        "a check that could not be made says nothing of its worker"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_descriptor_for_a_connection_to_a_worker_no_worker_is_blamed() {
    let workers = workers::<2>().await;
    let policy = tempfile::NamedTempFile::new().expect("a file");
    let strict = "circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}\nretry: {numRetries: 0}";
    std::fs::write(policy.path(), document(strict)).expect("writable");
    let path = policy.path().display().to_string();
    let addresses = workers.each_ref().map(|worker| worker.address);
    let proxy = Bounded::start(&addresses, [1024, 1024], &["--threads", "1", "--policy", &path]);
    let mut client = flood::connect(proxy.data).await.expect("the proxy accepts");
    proxy.limit_open_files([proxy.next_descriptor(), 1024]);
    for _ in 0..10 {
        let refused = flood::ask(&mut client).await.expect_err("there is no descriptor for a connection");
        assert!(refused.to_string().contains("503"), "{refused:#}");
    }
    proxy.limit_open_files([1024, 1024]);
    assert_eq!(proxy.metric(r#"outrigger_rejections_total{reason="local_exhaustion"}"#), 10);
    assert!(10 <= proxy.metric("outrigger_worker_connects_exhausted_total"));
    for _ in 0..4 {
        flood::ask(&mut client).await.expect("no breaker has opened");
    }
}

#[test]
fn a_process_that_the_proxy_starts_has_the_limit_that_the_proxy_was_started_with() {
    let worker = tools::example_worker().display().to_string();
    let proxy = Bounded::command([128, 512], &["run", "--workers", "1", "--", &worker]);
    assert_eq!(proxy.open_files(), 512);
    let started = Instant::now();
    while proxy.workers().first().and_then(|worker| flood::open_files(*worker)) != Some(128) {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", proxy.workers());
        std::thread::sleep(Duration::from_millis(10));
    }
}
