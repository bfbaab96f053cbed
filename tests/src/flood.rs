//! The proxy's program under limits of its own, good clients that measure it, and clients that hold on to what they
//! get.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::group::Group;
use crate::tools::{self, Started, free_address, program};

/// The proxy's program, until the test ends.
pub struct Bounded {
    process: Started,
    group: Option<Group>,
    /// Where it serves clients.
    pub data: SocketAddr,
    /// Where it serves health and metrics.
    pub admin: SocketAddr,
}

impl Bounded {
    /// Starts it over these workers, with a soft and a hard limit of open files.
    pub fn start(workers: &[SocketAddr], open_files: [u64; 2], flags: &[&str]) -> Self {
        let workers = named(workers);
        let arguments = [&["serve", "--workers", &workers], flags].concat();
        Self::command(open_files, &arguments)
    }

    /// Starts it with these arguments and limits, and waits until it is ready.
    pub fn command([soft, hard]: [u64; 2], arguments: &[&str]) -> Self {
        let mut command = Command::new(program("prlimit"));
        command.arg(format!("--nofile={soft}:{hard}"));
        Self::run(command, arguments, None)
    }

    /// Starts it over these workers with so many bytes of memory: in a control group of its own, where one can be made.
    pub fn with_memory(workers: &[SocketAddr], bytes: u64, flags: &[&str]) -> Self {
        let group = Group::with_limit(bytes);
        let mut command = Command::new("sh");
        let members = group.as_ref().map_or("/dev/null".into(), Group::members);
        command.args(["-c", "echo $$ > \"$0\" && shift && exec \"$@\""]).arg(members);
        let workers = named(workers);
        let limit = bytes.to_string();
        let arguments = [&["serve", "--workers", &workers, "--memory-limit", &limit], flags].concat();
        Self::run(command, &arguments, group)
    }

    fn run(mut command: Command, arguments: &[&str], group: Option<Group>) -> Self {
        let (data, admin) = (free_address(), free_address());
        command.arg("--").arg(tools::outrigger_proxy());
        command.env("OUTRIGGER_LISTEN", data.to_string()).env("OUTRIGGER_ADMIN_LISTEN", admin.to_string());
        command.env("OUTRIGGER_LOG", "warn").args(arguments);
        let process = Started::new(command.stdout(Stdio::null()));
        tools::until_it_accepts(admin);
        let started = Instant::now();
        while !is_ready(admin) {
            assert!(started.elapsed() < Duration::from_secs(30), "it is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, group, data, admin }
    }

    /// Changes the limits of open files of the running program.
    pub fn limit_open_files(&self, [soft, hard]: [u64; 2]) {
        let mut command = Command::new(program("prlimit"));
        command.arg(format!("--pid={}", self.process.0.id())).arg(format!("--nofile={soft}:{hard}"));
        assert!(command.status().expect("it runs").success(), "the limits are changed");
    }

    /// The soft limit of open files.
    pub fn open_files(&self) -> u64 {
        open_files(self.process.0.id()).expect("it runs")
    }

    /// The workers that it started: its wardens' children.
    pub fn workers(&self) -> Vec<u32> {
        children(self.process.0.id()).into_iter().flat_map(children).collect()
    }

    /// The descriptors that are open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).expect("it runs").count()
    }

    /// The number of the descriptor that it opens next.
    pub fn next_descriptor(&self) -> u64 {
        let open = || std::fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).expect("it runs");
        let number =
            |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let next = || {
            let open: HashSet<u64> = open().filter_map(number).collect();
            (0..).find(|number| !open.contains(number)).expect("there is one")
        };
        // A connection that only tries its worker may be open for a moment.
        let looks = (0..20).map(|_| (next(), std::thread::sleep(Duration::from_millis(5))).0);
        looks.min().expect("there are some")
    }

    /// The time that it has computed.
    pub fn computed(&self) -> Duration {
        let stat = self.read("stat");
        let after = stat.rsplit(") ").next().expect("fields after the name"); // from the third field on
        let ticks: u64 =
            after.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.process.0.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// The most memory that its control group had, in bytes, where it has one.
    pub fn peak_of_group(&self) -> Option<u64> {
        self.group.as_ref()?.peak()
    }

    /// The most memory that it had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = self.read("status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel says it");
        let kibibytes = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        kibibytes.expect("a number") << 10
    }

    /// One sample of what a scrape shows, by its name and labels; 0 where it is not there.
    pub fn metric(&self, series: &str) -> u64 {
        let mut page = String::new();
        let mut stream = std::net::TcpStream::connect(self.admin).expect("the admin port accepts");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .expect("it is written");
        stream.read_to_string(&mut page).expect("it answers");
        let sample = page.lines().find_map(|line| line.strip_prefix(series));
        sample.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.process.0.id())).expect("it runs")
    }
}

impl Drop for Bounded {
    /// Ends it; its wardens end what it started.
    fn drop(&mut self) {
        let _ = self.process.0.kill(); // it may have ended
    }
}

/// The processes that a process started.
fn children(of: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten();
    let of_each =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: Vec<_> = of_each.collect();
    all.iter().flat_map(|of_one| of_one.split(' ')).filter_map(|child| child.parse().ok()).collect()
}

/// The workers as `--workers` has them.
fn named(workers: &[SocketAddr]) -> String {
    let named = workers.iter().enumerate().map(|(i, address)| format!("worker-{}={address}", i + 1));
    named.collect::<Vec<_>>().join(",")
}

fn is_ready(admin: SocketAddr) -> bool {
    let mut answer = [0; 12];
    let asked = std::net::TcpStream::connect(admin).and_then(|mut stream| {
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")?;
        stream.read_exact(&mut answer)
    });
    asked.is_ok() && answer == *b"HTTP/1.1 200"
}

/// The soft limit of open files of a process, while it runs.
pub fn open_files(process: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Good clients: each asks every so often, and notes how long its answer took.
pub struct Good {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Measured>>,
}

/// What good clients saw.
#[derive(Debug, Default)]
pub struct Measured {
    /// How long each answer took, the shortest first.
    pub took: Vec<Duration>,
    /// Requests that got no 200, and why.
    pub failures: Vec<String>,
}

impl Good {
    /// Starts `kept` clients with a connection each, which they have when this returns, and `anew` that connect for
    /// every request.
    pub async fn start(to: SocketAddr, [kept, anew]: [usize; 2], every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for i in 0..kept + anew {
            let mut kept = match i < kept {
                true => Some(connect(to).await.expect("the proxy accepts")),
                false => None,
            };
            if let Some(stream) = &mut kept {
                ask(stream).await.expect("the proxy answers"); // it is in the proxy's hands
            }
            clients.push(tokio::spawn(good(to, kept, every, stop.clone())));
        }
        Self { stop, clients }
    }

    /// Stops them, and adds up.
    pub async fn stop(self) -> Measured {
        self.stop.store(true, Relaxed);
        let mut sum = Measured::default();
        for client in self.clients {
            let measured = client.await.expect("a client does not panic");
            sum.took.extend(measured.took);
            sum.failures.extend(measured.failures);
        }
        sum.took.sort();
        sum
    }
}

impl Measured {
    /// The time within which this share of the answers came.
    pub fn quantile(&self, share: f64) -> Duration {
        let place = (self.took.len() as f64 * share).ceil() as usize;
        self.took.get(place.max(1) - 1).copied().unwrap_or_default()
    }
}

async fn good(
    to: SocketAddr,
    mut kept: Option<TcpStream>,
    every: Duration,
    stop: Arc<AtomicBool>,
) -> Measured {
    let mut measured = Measured::default();
    tokio::time::sleep(every.mul_f64(fastrand::f64())).await; // they do not come all at once
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Relaxed) {
        tick.tick().await;
        let started = Instant::now();
        let answered = async {
            match &mut kept {
                Some(stream) => ask(stream).await,
                None => ask(&mut connect(to).await?).await,
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), answered).await {
            Ok(Ok(())) => measured.took.push(started.elapsed()),
            Ok(Err(error)) => measured.failures.push(error.to_string()),
            Err(_) => measured.failures.push("no answer in ten seconds".to_owned()),
        }
        if measured.failures.len() == 20 {
            break; // it is known well enough
        }
    }
    measured
}

/// A connection.
///
/// # Errors
/// That there is none.
pub async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks for `/`, and reads the answer, which must have a length.
///
/// # Errors
/// That it is no 200.
pub async fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: good\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(1024);
    let (head, length) = loop {
        ensure!(stream.read_buf(&mut answer).await? != 0, "the connection was closed");
        if let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            break (head + 4, length.and_then(|length| length.parse::<usize>().ok()));
        }
    };
    let Some(length) = length else { bail!("the answer has no length") };
    while answer.len() < head + length {
        ensure!(stream.read_buf(&mut answer).await? != 0, "the answer broke off");
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    ensure!(line.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// So many connections on which nothing is sent.
pub async fn silent(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(connect(to).await.expect("the kernel accepts"));
    }
    streams
}

/// Clients that begin and do not end: each sends `begins`, then one byte every four seconds, and comes again when it is cut off.
pub struct Slow(Vec<JoinHandle<()>>);

impl Slow {
    /// Starts so many, from addresses of their own, and waits until each has connected or was refused.
    pub async fn start(to: SocketAddr, count: usize, begins: &'static str) -> Self {
        let mut clients = Vec::new();
        let come = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for i in 0..count {
            let from = std::net::Ipv4Addr::new(127, 0, 1, 1 + (i % 200) as u8);
            let come = come.clone();
            clients.push(tokio::spawn(async move {
                for turn in 0.. {
                    let _ = slow(to, from, begins, || {
                        if turn == 0 {
                            come.fetch_add(1, Relaxed);
                        }
                    })
                    .await; // it was cut off
                    tokio::time::sleep(Duration::from_secs(3).mul_f64(1.0 + fastrand::f64())).await;
                }
            }));
            if i % 64 == 63 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let started = Instant::now();
        while come.load(Relaxed) < count && started.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self(clients)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn slow(to: SocketAddr, from: std::net::Ipv4Addr, begins: &str, begun: impl FnOnce()) -> Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(begins.as_bytes()).await?;
    begun();
    loop {
        let mut rest = [0; 512];
        let closed = tokio::time::timeout(Duration::from_secs(4), stream.read(&mut rest)).await;
        ensure!(!matches!(closed, Ok(Ok(0) | Err(_))), "it was closed");
        stream.write_all(b"x").await?;
    }
}
