//! What becomes of good clients while others take all that they can get.

use std::time::Duration;

use system_tests::flood::{self, Bounded, Good, Measured, Slow};
use system_tests::workers::{self, Manner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const EVERY: Duration = Duration::from_millis(20);
/// What the chart gives the proxy.
const LIMIT: u64 = 256 << 20;
/// Below it the machine decides how long an answer takes: the attackers and the workers run on it too, and in a build without
/// optimization 2,000 connections a second take most of it.
const FLOOR: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 50 });

const SLOW_HEAD: &str = "GET / HTTP/1.1\r\nhost: slow\r\nx: ";
const SLOW_BODY: &str = "POST /echo HTTP/1.1\r\nhost: slow\r\ncontent-length: 100000\r\n\r\n";

fn is_as_good(attacked: &Measured, quiet: &Measured) {
    assert_eq!(attacked.failures, Vec::<String>::new());
    let (now, before) = (attacked.quantile(0.99), quiet.quantile(0.99));
    assert!(now <= (before * 3).max(FLOOR), "p99 {now:?}, quiet {before:?}");
}

/// 300 requests a second, half of them on new connections.
async fn good_for(proxy: &Bounded, time: Duration) -> Measured {
    let good = Good::start(proxy.data, [3, 3], EVERY).await;
    tokio::time::sleep(time).await;
    good.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_slow_heads_and_two_thousand_slow_bodies_take_nothing_from_good_clients() {
    let workers =
        [workers::start("one", Manner::default()).await, workers::start("two", Manner::default()).await];
    let proxy =
        Bounded::start(&workers.each_ref().map(|worker| worker.address), [1024, 20_000], &["--threads", "2"]);
    let quiet = good_for(&proxy, Duration::from_secs(3)).await;
    let bodies = Slow::start(proxy.data, 2_000, SLOW_BODY).await;
    let heads = Slow::start(proxy.data, 10_000, SLOW_HEAD).await;
    let attacked = good_for(&proxy, Duration::from_secs(15)).await;
    eprintln!("quiet p99 {:?}, attacked p99 {:?}", quiet.quantile(0.99), attacked.quantile(0.99));
    let shed = proxy.metric("outrigger_rejections_total{reason=\"connection_limit\"}");
    eprintln!("shed {shed}, memory {} MiB", proxy.peak_memory() >> 20);
    is_as_good(&attacked, &quiet);
    assert!(0 < shed, "more came than there are places");
    assert!(proxy.peak_memory() < LIMIT, "{} MiB", proxy.peak_memory() >> 20);
    drop((bodies, heads));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_give_way_over_all_threads() {
    let workers = [workers::start("one", Manner::default()).await];
    let flags = ["--threads", "2", "--max-connections", "8"];
    let proxy = Bounded::start(&[workers[0].address], [1024, 1024], &flags);
    let mut held = Vec::new();
    for i in 0..40 {
        let mut stream = flood::connect(proxy.data).await.expect("the kernel accepts");
        flood::ask(&mut stream).await.unwrap_or_else(|error| panic!("client {i}: {error}"));
        held.push(stream);
        if 7 <= i {
            tokio::time::sleep(Duration::from_millis(300)).await; // those before it rest
        } else if i == 6 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_its_share() {
    let workers = [workers::start("one", Manner::default()).await];
    let flags = ["--threads", "2", "--max-connections-per-address", "3"];
    let proxy = Bounded::start(&[workers[0].address], [1024, 1024], &flags);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = flood::connect(proxy.data).await.expect("the kernel accepts");
        flood::ask(&mut stream).await.expect("it has its share");
        held.push(stream);
    }
    let mut over = flood::connect(proxy.data).await.expect("the kernel accepts");
    assert!(flood::ask(&mut over).await.is_err(), "it is closed");
    assert_eq!(proxy.metric("outrigger_rejections_total{reason=\"address_limit\"}"), 1);
    drop(held);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut again = flood::connect(proxy.data).await.expect("the kernel accepts");
    flood::ask(&mut again).await.expect("there is room again");
}

/// A client that asks for `/livez` every two seconds on a connection that it keeps, and comes again when that is closed.
async fn watches(admin: std::net::SocketAddr) {
    loop {
        if let Ok(mut stream) = flood::connect(admin).await {
            while stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
                let mut answer = [0; 512];
                if !stream.read(&mut answer).await.is_ok_and(|read| 0 < read) {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn every_probe_is_answered_beside(count: usize, idle: usize) {
    let workers = [workers::start("one", Manner::default()).await];
    let proxy = Bounded::start(&[workers[0].address], [2048, 2048], &["--threads", "1"]);
    let watching: Vec<_> = (0..count).map(|_| tokio::spawn(watches(proxy.admin))).collect();
    let idle = flood::silent(proxy.admin, idle).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for probe in 0..20 {
        let asked = async {
            let mut stream = flood::connect(proxy.admin).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n").await?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            anyhow::Ok(answer == *b"HTTP/1.1 200")
        };
        let answered = tokio::time::timeout(Duration::from_secs(1), asked).await;
        assert!(matches!(answered, Ok(Ok(true))), "probe {probe} beside {count}: {answered:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    watching.iter().for_each(tokio::task::JoinHandle::abort);
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn eighty_and_four_hundred_connections_to_the_admin_port_keep_no_probe_out() {
    every_probe_is_answered_beside(80, 0).await;
    every_probe_is_answered_beside(400, 100).await;
}
