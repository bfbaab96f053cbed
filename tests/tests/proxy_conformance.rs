//! The corpus against the proxy: malformed and ambiguous requests, legal but rare ones, hostile answers.
//!
//! Judged by the bytes that a recording worker received, not by the status codes.
//! `cargo test -p system-tests --test proxy_conformance -- --nocapture` prints the table;
//! `CASE=te-and-cl` runs the cases whose id begins so; `tests/corpus/compare` runs them through other proxies.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::wire::client::{Client, Plan};
use system_tests::wire::corpus::{self, Case};
use system_tests::wire::grammar::values;
use system_tests::wire::lanes::{self, Job, Lane, Verdict, report};
use system_tests::wire::peer::Peer;
use system_tests::wire::recorder::Recorder;
use system_tests::wire::table;
use tokio::task::JoinSet;

/// The defaults, but for retries, so that each answer is asked for once: nothing that a policy must set for the proxy
/// to be strict.
/// The recorders take note of all that they are sent, and are not asked for their protocol.
const POLICY: &str = "retry: {numRetries: 0}\nworkers: [{name: worker-1, protocol: HTTP1}]";
const LANES: usize = 8;

async fn through_the_proxy(title: &str, jobs: Vec<Job>) -> Result<()> {
    judge(title, &of_the_proxy(jobs).await?)
}

async fn of_the_proxy(jobs: Vec<Job>) -> Result<Vec<Verdict>> {
    let mut lanes = Vec::new();
    let mut running: Vec<RunningProxy> = Vec::new();
    for _ in 0..LANES {
        let recorder = Recorder::start().await?;
        let proxy = start_proxy(&[recorder.address], POLICY);
        lanes.push(Lane::of(proxy.data, recorder));
        running.push(proxy);
    }
    lanes::run(lanes, jobs).await
}

#[expect(clippy::print_stdout, reason = "the table is for people")]
fn judge(title: &str, verdicts: &[Verdict]) -> Result<()> {
    let report = report(title, verdicts);
    println!("{report}");
    let pending = corpus::pending()?;
    let deviating = verdicts.iter().filter(|verdict| !verdict.deviations.is_empty());
    let new: Vec<_> = deviating.map(|verdict| &verdict.id).filter(|id| !pending.contains(*id)).collect();
    ensure!(new.is_empty(), "{report}\nnot among those that are known to deviate: {new:?}");
    let right = verdicts.iter().filter(|verdict| verdict.deviations.is_empty());
    let mended: Vec<_> = right.map(|verdict| &verdict.id).filter(|id| pending.contains(*id)).collect();
    if !mended.is_empty() {
        println!("known to deviate, and right by now: {mended:?}");
    }
    let slow: Vec<_> =
        verdicts.iter().filter(|verdict| verdict.took.as_secs() >= 5).map(|verdict| &verdict.id).collect();
    ensure!(slow.is_empty(), "took 5 s or more: {slow:?}");
    Ok(())
}

fn chosen(id: &str) -> bool {
    std::env::var("CASE").map_or(true, |prefix| id.starts_with(&prefix))
}

fn requests(cases: Vec<Case>) -> Vec<Job> {
    cases.into_iter().filter(|case| chosen(&case.id)).map(|case| Job::Request(Box::new(case))).collect()
}

fn responses(h2: bool) -> Result<Vec<Job>> {
    let cases = corpus::hostile_responses()?.into_iter().filter(|case| chosen(&case.id));
    Ok(cases.map(|case| Job::Response { case: Box::new(case), h2 }).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_h1_requests_are_refused_or_normalised() -> Result<()> {
    through_the_proxy("h1 malformed", requests(corpus::h1_rejects()?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_h2_requests_are_refused_or_normalised() -> Result<()> {
    through_the_proxy("h2 malformed", requests(corpus::h2_rejects()?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn legal_but_rare_requests_pass_whole() -> Result<()> {
    through_the_proxy("legal but rare", requests(corpus::accepts()?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn families_over_h1() -> Result<()> {
    through_the_proxy("h1 families", requests(corpus::h1_families()?)).await
}

/// Where the bytes are cut decides nothing.
#[tokio::test(flavor = "multi_thread")]
async fn families_over_h1_cut_at_line_ends() -> Result<()> {
    let mut cases = corpus::h1_families()?;
    cases.retain(|case| case.raw.as_ref().is_some_and(|raw| raw.0.len() < 1000));
    cases.iter_mut().for_each(|case| case.cut_at_line_ends = true);
    through_the_proxy("h1 families, cut", requests(cases)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn families_over_h2() -> Result<()> {
    through_the_proxy("h2 families", requests(corpus::h2_families()?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_responses_do_not_reach_an_h1_client() -> Result<()> {
    through_the_proxy("hostile to h1", responses(false)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_responses_do_not_reach_an_h2_client() -> Result<()> {
    through_the_proxy("hostile to h2", responses(true)?).await
}

/// The request cases through other proxies and this one: the table of `docs/conformance.md`, and each peer's deviations.
/// `tests/corpus/compare` runs it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the proxies that bench/install installs"]
async fn peers_for_comparison() -> Result<()> {
    let cases = [
        corpus::h1_rejects()?,
        corpus::h2_rejects()?,
        corpus::accepts()?,
        corpus::h1_families()?,
        corpus::h2_families()?,
    ];
    let jobs = requests(cases.concat());
    let mut lines = vec![table::line("Outrigger", true, &of_the_proxy(jobs.clone()).await?)];
    for peer in Peer::ALL {
        let verdicts = of_a_peer(peer, jobs.clone()).await?;
        println!("{}", report(peer.name(), &verdicts));
        lines.push(table::line(peer.name(), false, &verdicts));
    }
    println!("{}\n{}", table::HEAD, lines.join("\n"));
    Ok(())
}

async fn of_a_peer(peer: Peer, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
    let (mut lanes, mut running) = (Vec::new(), Vec::new());
    for _ in 0..LANES {
        let recorder = Recorder::start().await?;
        let started = peer.start(recorder.address).await?;
        lanes.push(Lane { proxy: started.data, h2: started.h2, recorder });
        running.push(started);
    }
    lanes::run(lanes, jobs).await
}

const STICKY: &str = "loadBalancer: {type: RoundRobin}\nsessionPersistence: {type: Cookie}\n";
const SHORT_LIVED: &str =
    "loadBalancer: {type: RoundRobin}\nsessionPersistence: {type: Cookie, absoluteTimeout: 1s}\n";

/// Sends 16 requests with this Cookie; every one must be served. The workers that served them.
async fn workers_behind(proxy: SocketAddr, cookie: &str) -> Result<HashSet<Vec<u8>>> {
    let request = format!("GET /session HTTP/1.1\r\nHost: conformance.test\r\nCookie: {cookie}\r\n\r\n");
    let plan = Plan { bytes: request.repeat(16).into_bytes(), heads: vec![false; 16], ..Plan::default() };
    let seen = Client::connect(proxy).await?.exchange(&plan).await;
    let statuses: Vec<_> = seen.responses.iter().map(|response| response.status).collect();
    ensure!(statuses == [200; 16], "{cookie:.80}: {statuses:?}");
    let workers = seen.responses.iter().flat_map(|response| values(&response.fields, "x-worker"));
    Ok(workers.map(<[u8]>::to_vec).collect())
}

/// A session's cookie, as the proxy sets it: name and value.
async fn session(proxy: SocketAddr) -> Result<(String, String)> {
    let bytes = b"GET /session HTTP/1.1\r\nHost: conformance.test\r\n\r\n".to_vec();
    let seen =
        Client::connect(proxy).await?.exchange(&Plan { bytes, heads: vec![false], ..Plan::default() }).await;
    let response = seen.responses.first().context("no answer")?;
    let set = values(&response.fields, "set-cookie").next().context("no Set-Cookie")?;
    let pair = String::from_utf8(set.to_vec())?.split(';').next().unwrap_or_default().to_owned();
    let (name, value) = pair.split_once('=').context("no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Cookies that the proxy did not make: each differs from a good one, or never was one.
fn forgeries(name: &str, good: &str, other_key: &str) -> Vec<String> {
    let mut values = vec![
        String::new(),
        String::from("worker-1"),
        String::from("%00"),
        String::from("\"\""),
        String::from("../../etc/passwd"),
        String::from("127.0.0.1:1"),
        "A".repeat(good.len()),
        "A".repeat(5000),
        format!("{good}{good}"),
        format!("{good}A"),
        format!("{good}="),
        format!("A{good}"),
        good.to_ascii_lowercase(),
        other_key.to_owned(),
    ];
    for (at, old) in good.char_indices() {
        let new = if old == 'A' { 'B' } else { 'A' };
        values.push(format!("{}{new}{}", &good[..at], &good[at + old.len_utf8()..]));
    }
    values.extend((1..good.len()).step_by(3).map(|length| good[..length].to_owned()));
    values.retain(|value| value != good);
    let mut cookies: Vec<_> = values.iter().map(|value| format!("{name}={value}")).collect();
    cookies.push(format!("{name}=AAAA; {name}=BBBB"));
    cookies.push(format!("a=b; {}{name}=x", "c=d; ".repeat(1000)));
    cookies
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_cookies_are_served_and_never_pin() -> Result<()> {
    let (one, two) = (Recorder::start().await?, Recorder::start().await?);
    let workers = [one.address, two.address];
    let (proxy, stranger) = (start_proxy(&workers, STICKY), start_proxy(&workers, STICKY));
    let (name, good) = session(proxy.data).await?;
    let (_, other_key) = session(stranger.data).await?;
    ensure!(
        workers_behind(proxy.data, &format!("{name}={good}")).await?.len() == 1,
        "a good cookie does not pin"
    );
    let mut trying = JoinSet::new();
    for cookie in forgeries(&name, &good, &other_key) {
        let data = proxy.data;
        trying.spawn(async move {
            let workers = workers_behind(data, &cookie).await?;
            ensure!(workers.len() == 2, "{cookie:.80} pins");
            Ok(())
        });
    }
    while let Some(tried) = trying.join_next().await {
        tried??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_cookie_is_served_and_does_not_pin() -> Result<()> {
    let (one, two) = (Recorder::start().await?, Recorder::start().await?);
    let proxy = start_proxy(&[one.address, two.address], SHORT_LIVED);
    let (name, value) = session(proxy.data).await?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    ensure!(
        workers_behind(proxy.data, &format!("{name}={value}")).await?.len() == 2,
        "an expired cookie pins"
    );
    Ok(())
}
