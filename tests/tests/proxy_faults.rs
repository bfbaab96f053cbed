//! Real workers that are killed, hung, slowed, made to fail or to break off, and started again, under load.
//!
//! Twenty rounds, a thousand requests a second, four in five of them GETs. `-- --nocapture` prints a line per round.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use system_tests::client::{self, Connection, get, request};
use system_tests::processes::NodeWorker;
use system_tests::proxy::{RunningProxy, start_proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const CLIENTS: u64 = 25;
const EVERY: Duration = Duration::from_millis(25);
/// How long a try may take; what is sent to a worker that hangs is given up after it.
const PER_TRY: Duration = Duration::from_millis(500);
/// How much later than it was meant something may happen here: the load, the proxy and the workers share two cores.
const SLACK: Duration = Duration::from_millis(250);

const POLICY: &str = "
loadBalancer: {type: RoundRobin}
retry:
  numRetries: 3
  retryOn: {triggers: [ConnectFailure, Reset, GatewayError]}
  perRetry: {timeout: 500ms}
circuitBreaker: {worker: {consecutiveFailures: 5, failureRateThreshold: 0, waitDurationInOpenState: 1s}}";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Hang,
    Slow,
    Fail,
    BreakOff,
    Restart,
}

const ROUNDS: [Fault; 20] = {
    use Fault::{BreakOff, Fail, Hang, Kill, Restart, Slow};
    [
        Kill, Hang, Slow, Fail, BreakOff, Restart, Kill, Hang, Fail, Kill, BreakOff, Kill, Hang, Restart,
        Kill, Slow, Fail, Kill, Hang, Kill,
    ]
};

/// A request that was sent.
#[derive(Clone, Debug)]
struct Sent {
    safe: bool,
    began: Instant,
    ended: Instant,
    failed: Option<String>,
}

struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

impl Traffic {
    fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS).map(|i| tokio::spawn(one_client(to, i, stop.clone()))).collect();
        Self { stop, clients }
    }

    async fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Relaxed);
        let mut sent = Vec::new();
        for client in self.clients {
            sent.extend(client.await.expect("a client does not panic"));
        }
        sent
    }
}

async fn one_client(to: SocketAddr, number: u64, stop: Arc<AtomicBool>) -> Vec<Sent> {
    let mut connection: Option<Connection> = None;
    let mut all = Vec::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Relaxed) {
        tick.tick().await;
        let safe = !(all.len() as u64 + number).is_multiple_of(5);
        let began = Instant::now();
        let request = if safe { get("/", &[]) } else { request("POST", "/", &[], "x") };
        let failed = match connection.take().filter(Connection::is_open) {
            Some(kept) => send(kept, request, &mut connection).await,
            None => match Connection::open(to).await {
                Ok(new) => send(new, request, &mut connection).await,
                Err(error) => Some(error.to_string()),
            },
        };
        all.push(Sent { safe, began, ended: Instant::now(), failed });
    }
    all
}

async fn send(
    mut on: Connection,
    request: http::Request<http_body_util::Full<bytes::Bytes>>,
    kept: &mut Option<Connection>,
) -> Option<String> {
    match on.send(request).await {
        Ok(answer) if answer.status == 200 => {
            *kept = Some(on);
            None
        }
        Ok(answer) => Some(format!("{} {}", answer.status, answer.text().trim())),
        Err(error) => Some(error.to_string()),
    }
}

/// Tells a worker how to behave from now on, on a connection past the proxy.
async fn tell(worker: &NodeWorker, control: &str) {
    let told =
        client::send(worker.address, request("POST", "/control", &[], control)).await.expect("an answer");
    assert_eq!(told.status, 200, "{}", told.text());
}

impl Fault {
    async fn begin(self, worker: &mut NodeWorker) {
        match self {
            Self::Kill | Self::Restart => worker.kill(),
            Self::Hang => worker.signal("STOP"),
            Self::Slow => tell(worker, r#"{"delayMs":120}"#).await,
            Self::Fail => tell(worker, r#"{"failRate":1,"status":503}"#).await,
            Self::BreakOff => tell(worker, r#"{"resetRate":1}"#).await,
        }
        if self == Self::Restart {
            worker.restart();
        }
    }

    async fn end(self, worker: &mut NodeWorker) {
        match self {
            Self::Kill => worker.restart(),
            Self::Restart => {}
            Self::Hang => worker.signal("CONT"),
            Self::Slow | Self::Fail | Self::BreakOff => tell(worker, "{}").await,
        }
    }

    /// From the fault on, requests that have begun so much later are none of its victims: the worker is known by then.
    fn strikes_for(self) -> Duration {
        match self {
            // Only what was in flight when it died, or began while the kernel still took its connections for open.
            Self::Kill | Self::Restart => SLACK,
            // Until the first five tries are given up and the breaker opens.
            Self::Hang => PER_TRY + SLACK,
            // Until five have failed.
            Self::Slow | Self::Fail | Self::BreakOff => 2 * SLACK,
        }
    }
}

/// What was sent to each worker so far, whatever came of it.
fn counts(proxy: &RunningProxy) -> Vec<u64> {
    proxy.control.snapshot().workers.iter().map(|worker| worker.requests()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_rounds_of_faults_cost_no_idempotent_request() {
    let mut workers = ["a", "b", "c"].map(NodeWorker::start);
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    let proxy = start_proxy(&addresses, POLICY);
    for (round, fault) in ROUNDS.into_iter().enumerate() {
        let victim = round % 3;
        let traffic = Traffic::start(proxy.data);
        sleep(Duration::from_millis(400)).await;
        let struck = Instant::now();
        fault.begin(&mut workers[victim]).await;
        sleep(Duration::from_millis(1000)).await;
        let before = counts(&proxy);
        sleep(Duration::from_millis(600)).await;
        let after = counts(&proxy);
        fault.end(&mut workers[victim]).await;
        sleep(Duration::from_millis(400)).await;
        let sent = traffic.stop().await;
        judge(&proxy, (round, fault), &sent, struck);
        if fault == Fault::Kill {
            let since: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            let (dead, all) = (since[victim], since.iter().sum::<u64>());
            // Probes come by time: where the machine is slow they are measured by the traffic that was meant.
            let meant = all.max(600); // of 1,000 a second
            assert!(dead * 100 < meant, "{dead} of {all} went to a worker that is dead for a second");
        }
        recovered(&proxy).await;
    }
}

#[expect(clippy::print_stdout, reason = "a line per round, for people")]
fn judge(proxy: &RunningProxy, (round, fault): (usize, Fault), sent: &[Sent], struck: Instant) {
    let failed: Vec<_> = sent.iter().filter(|sent| sent.failed.is_some()).collect();
    let safe: Vec<_> = failed.iter().filter(|sent| sent.safe).collect();
    let meanwhile = |sent: &&Sent| struck <= sent.ended && sent.began <= struck + fault.strikes_for();
    let (in_flight, others): (Vec<&Sent>, Vec<&Sent>) =
        failed.iter().copied().filter(|sent| !sent.safe).partition(meanwhile);
    println!(
        "round {:2} {fault:?}: {} requests, failed: {} idempotent, {} others; {} retried since the start",
        round + 1,
        sent.len(),
        safe.len(),
        in_flight.len() + others.len(),
        retries(proxy),
    );
    assert!(safe.is_empty(), "idempotent requests failed: {safe:#?}");
    // A half-open breaker probes with what comes: with three requests at a time, twice in what is left of the round.
    let probes = if matches!(fault, Fault::Kill | Fault::Restart) { 0 } else { 6 };
    assert!(others.len() <= probes, "requests failed that were not in flight on the victim: {others:#?}");
    // In flight on one of three workers: what its clients had open, or sent until it was known.
    let sent_meanwhile = sent.iter().filter(|sent| !sent.safe && struck <= sent.ended);
    let possible = sent_meanwhile.filter(|sent| sent.began <= struck + fault.strikes_for()).count();
    assert!(in_flight.len() <= possible / 3 + 5, "{} of {possible} failed", in_flight.len());
}

fn retries(proxy: &RunningProxy) -> u64 {
    proxy.control.snapshot().workers.iter().map(|worker| worker.failures()).sum()
}

/// Waits until every worker is in service again: a breaker that is open takes its time.
async fn recovered(proxy: &RunningProxy) {
    let started = Instant::now();
    loop {
        let mut connection = Connection::open(proxy.data).await.expect("connects");
        for _ in 0..12 {
            let _ = connection.send(get("/", &[])).await;
        }
        let now = Instant::now();
        let closed = |worker: &outrigger_proxy::worker::Worker| worker.breaker.view(now).state == "closed";
        if proxy.control.snapshot().workers.iter().all(|worker| closed(worker)) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "a worker does not recover");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_worker_is_down_clients_are_told_at_once() {
    let mut workers = ["a", "b"].map(NodeWorker::start);
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    let proxy = start_proxy(&addresses, POLICY);
    assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, 200);
    workers.iter_mut().for_each(NodeWorker::kill);
    for _ in 0..20 {
        let started = Instant::now();
        let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 503);
        assert!(answer.header("proxy-status").is_some_and(|status| status.starts_with("outrigger; error=")));
        assert!(answer.header("retry-after").is_some());
        assert!(started.elapsed() < Duration::from_secs(2), "after its three retries at most");
    }
    let started = Instant::now();
    let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.header("proxy-status"), Some("outrigger; error=destination_unavailable"));
    assert!(started.elapsed() < Duration::from_millis(200), "at once: nobody is asked any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_all_fail_get_no_storm() {
    let workers = ["a", "b"].map(NodeWorker::start);
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    let without_breaker: Vec<_> = POLICY.lines().filter(|line| !line.starts_with("circuitBreaker")).collect();
    let share_only =
        without_breaker.join("\n").replace("numRetries: 3", "numRetries: 3\n  budget: {minRetryRate: 0}");
    let proxy = start_proxy(&addresses, &share_only);
    for worker in &workers {
        tell(worker, r#"{"failRate":1,"status":503}"#).await;
    }
    let traffic = Traffic::start(proxy.data);
    sleep(Duration::from_secs(3)).await;
    let sent = traffic.stop().await.len() as u64;
    let upstream: u64 = counts(&proxy).iter().sum();
    assert!(200 < sent, "{sent} requests");
    assert!(upstream * 10 <= sent * 12, "{upstream} requests upstream for {sent} of clients");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_seen_as_broken_and_its_connection_is_not_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let worker = tokio::spawn(async move {
        for connections in 1.. {
            let Ok((mut stream, _)) = listener.accept().await else { return connections };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let part = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly the beginning";
            let _ = stream.write_all(part).await;
            sleep(Duration::from_millis(50)).await; // the client has seen the beginning
        }
        0
    });
    let proxy = start_proxy(&[address], "{}");
    for _ in 0..5 {
        assert!(client::send(proxy.data, get("/", &[])).await.is_err(), "nobody takes a part for the whole");
    }
    assert_eq!(counts(&proxy), [5], "an answer began: it is not asked for again");
    worker.abort();
}

/// What a worker answers to `/late/N`, before it sends something more 50 ms later: by what its head says nothing follows, and by
/// what a careless worker does something may.
const LATE: [(&str, &str); 8] = [
    ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 44\r\n\r\n"),
    ("GET", "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n"),
    ("POST", "HTTP/1.1 204 No Content\r\ncontent-length: 44\r\n\r\n"),
    ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 44\r\n\r\n"),
    ("GET", "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n"),
    ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 44\r\n\r\n"),
    ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
    ("GET", "HTTP/1.1 103 Early Hints\r\ncontent-length: 44\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
];

async fn sends_more_late() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut head).await {
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let place =
                        head.split("/late/").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
                    let answer = place
                        .map_or("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood", |place: usize| {
                            LATE[place].1
                        });
                    let _ = stream.write_all(answer.as_bytes()).await; // the proxy may be gone
                    if place.is_some() {
                        sleep(Duration::from_millis(50)).await;
                        let poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
                        let _ = stream.write_all(poison).await;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_comes_late_where_none_may_come_is_nobodys_answer() {
    let proxy = start_proxy(
        &[sends_more_late().await],
        "retry: {numRetries: 0}\nworkers: [{name: worker-1, protocol: HTTP1}]",
    );
    for (place, (method, head)) in LATE.into_iter().enumerate() {
        let mut connection = Connection::open(proxy.data).await.expect("connects"); // so it is one thread
        let late = request(method, &format!("/late/{place}"), &[], "");
        connection.send(late).await.expect("an answer");
        let answer = connection.send(get("/", &[])).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "good"), "{method} {head}");
    }
}
