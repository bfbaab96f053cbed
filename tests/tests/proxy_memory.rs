//! What becomes of the proxy and of good clients while others make it hold as much memory as they can, with the memory that
//! the chart gives it.

use std::time::Duration;

use system_tests::flood::{Bounded, Good, Measured};
use system_tests::hoard::{Hoard, Way};
use system_tests::workers::{self, Manner, Worker};

/// What the chart gives the proxy.
const LIMIT: u64 = 256 << 20;
const EVERY: Duration = Duration::from_millis(20);
/// Below it the machine decides how long an answer takes: the attackers and the workers run on it too.
const FLOOR: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 50 });

/// How many clients hoard in each way; in all they ask for many times the limit.
fn count(way: Way) -> usize {
    match way {
        Way::AnswersOverHttp2 => 200,
        Way::HeadsOverHttp2 => 20,
        Way::Answer | Way::Body => 600,
        Way::KeptBody => 2000,
        Way::Head => 3000,
    }
}

async fn two_workers() -> [Worker; 2] {
    [workers::start("one", Manner::default()).await, workers::start("two", Manner::default()).await]
}

fn start(workers: &[Worker]) -> Bounded {
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    Bounded::with_memory(&addresses, LIMIT, &["--threads", "2"])
}

async fn good_for(proxy: &Bounded, time: Duration) -> Measured {
    let good = Good::start(proxy.data, [3, 3], EVERY).await;
    tokio::time::sleep(time).await;
    good.stop().await
}

/// Good clients lose nothing and the proxy stays within its memory, while others hoard in these ways.
async fn holds_out(ways: &[Way], time: Duration) {
    let workers = two_workers().await;
    let mut proxy = start(&workers);
    let quiet = good_for(&proxy, Duration::from_secs(2)).await;
    let mut hoards = Vec::new();
    for way in ways {
        hoards.push(Hoard::start(proxy.data, *way, count(*way) / ways.len()).await);
    }
    let attacked = good_for(&proxy, time).await;
    assert!(proxy.runs(), "{ways:?}: it was killed");
    let shed = proxy.metric("outrigger_rejections_total{reason=\"memory_limit\"}");
    let (peak, of_group) = (proxy.peak_memory() >> 20, proxy.peak_of_group().map(|peak| peak >> 20));
    let [before, now] = [&quiet, &attacked].map(|measured| measured.quantile(0.99));
    eprintln!("{ways:?}: p99 {before:?}, then {now:?}; {peak} MiB, of the group {of_group:?}; {shed} shed");
    assert_eq!(attacked.failures, Vec::<String>::new(), "{ways:?}");
    assert!(proxy.peak_memory() < LIMIT, "{ways:?}: {peak} MiB");
    assert!(now <= (before * 3).max(FLOOR), "{ways:?}: p99 {now:?}, quiet {before:?}");
    assert_eq!(proxy.metric("outrigger_panics_total"), 0);
    drop(hoards);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_http2_that_nobody_reads_fit_its_memory() {
    holds_out(&[Way::AnswersOverHttp2], Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_heads_over_http2_fit_its_memory() {
    holds_out(&[Way::HeadsOverHttp2], Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_bodies_that_stand_still_fit_its_memory() {
    holds_out(&[Way::Answer, Way::Body], Duration::from_secs(6)).await;
    holds_out(&[Way::KeptBody], Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_do_not_end_fit_its_memory() {
    holds_out(&[Way::Head], Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_at_once_fit_its_memory() {
    holds_out(&Way::ALL, Duration::from_secs(10)).await;
}
