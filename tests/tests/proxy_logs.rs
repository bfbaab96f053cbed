//! The proxy's log, over stdout and stderr that nobody reads, or that nobody holds.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::client::{self, get};
use system_tests::tools::{self, Started};
use system_tests::workers::{self, Manner, Worker};

/// How long what does not wait for a reader may take on a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// The binary over one worker, with its stdout and stderr in one pipe.
struct Logging {
    data: SocketAddr,
    admin: SocketAddr,
    process: Started,
    _worker: Worker,
}

impl Logging {
    async fn start(log: &str, pipe: PipeWriter) -> Self {
        let worker = workers::start("a", Manner::default()).await;
        let (data, admin) = (tools::free_address(), tools::free_address());
        let mut command = command(data, admin, worker.address);
        command.args(["--log", log]).stderr(pipe.try_clone().expect("another")).stdout(pipe);
        let process = Started::new(&mut command);
        drop(command); // with its ends of the pipe
        tools::until_it_accepts(data);
        tools::until_it_accepts(admin);
        Self { data, admin, process, _worker: worker }
    }

    /// Asks for health, which must come soon.
    async fn lives(&self) {
        let asked = client::send(self.admin, get("/livez", &[]));
        let answer = tokio::time::timeout(SOON, asked).await.expect("/livez in time").expect("an answer");
        assert_eq!(answer.status, 200);
    }

    /// Sends requests over HTTP/2: with the log of `h2=debug` some ten lines each.
    async fn serves(&self, requests: usize) {
        let paths = vec!["/"; requests];
        let sent = client::send_http2(self.data, &paths);
        let answers = tokio::time::timeout(Duration::from_secs(30), sent).await.expect("in time");
        assert!(answers.expect("answers").iter().all(|answer| answer.status == 200));
    }

    async fn metric(&self, name: &str) -> u64 {
        let page = client::send(self.admin, get("/metrics", &[])).await.expect("a page").text();
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
    }

    /// Ends it as Kubernetes does.
    fn terminate(mut self) -> ExitStatus {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        self.process.0.wait().expect("it ends")
    }
}

fn command(data: SocketAddr, admin: SocketAddr, worker: SocketAddr) -> Command {
    let mut command = Command::new(tools::outrigger_proxy());
    command.args([
        "serve",
        "--threads",
        "2",
        "--listen",
        &data.to_string(),
        "--admin-listen",
        &admin.to_string(),
    ]);
    command.arg("--workers").arg(format!("a={worker}"));
    command
}

/// The lines that are left in a pipe once nobody writes to it any more.
fn lines(mut pipe: PipeReader) -> Vec<Value> {
    let mut text = String::new();
    pipe.read_to_string(&mut text).expect("text");
    let json = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(json).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_stops_nothing_and_hears_what_was_lost() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let proxy = Logging::start("info,h2=debug", writer).await;
    let started = Instant::now();
    while proxy.metric("outrigger_log_lines_lost_total").await == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "the pipe does not fill");
        proxy.serves(500).await;
        proxy.lives().await;
    }
    proxy.serves(100).await;
    proxy.lives().await;
    let lost = proxy.metric("outrigger_log_lines_lost_total").await;
    let reading = std::thread::spawn(move || lines(reader));
    let said = |lines: &[Value]| -> u64 { lines.iter().filter_map(|line| line["lost"].as_u64()).sum() };
    assert!(proxy.terminate().success());
    let lines = reading.join().expect("it reads to the end");
    assert!(lost <= said(&lines), "{lost} lines were lost, and {} are said", said(&lines));
    let message = |line: &Value| line["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(message(&lines[lines.len() - 1]), "drained", "the last line before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_gone_stops_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let proxy = Logging::start("info,h2=debug", writer).await;
    proxy.serves(300).await;
    proxy.lives().await;
    assert!(proxy.metric("outrigger_log_lines_lost_total").await > 300, "each line is counted");
    assert!(proxy.terminate().success());
}

#[test]
fn the_error_that_ends_the_process_is_said_and_nobody_need_read_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = listener.local_addr().expect("bound");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let status = command(tools::free_address(), taken, taken).stderr(writer).status().expect("it ends");
    assert!(!status.success());
    let mut said = String::new();
    reader.read_to_string(&mut said).expect("text");
    assert!(said.starts_with("error: ") && said.contains(&taken.to_string()), "{said}");

    // A pipe that is full does not keep it from ending.
    let (_reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&vec![b'\n'; 1 << 16]).expect("as much as it holds");
    let mut command = command(tools::free_address(), taken, taken);
    command.stderr(writer.try_clone().expect("another")).stdout(writer);
    let started = Instant::now();
    let status = command.status().expect("it ends");
    assert!(!status.success() && started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// An HTTP/2 connection that sends what makes the library warn: answers to pings that nobody sent (RFC 9113 §6.7).
fn flood(to: SocketAddr, frames: usize) {
    let mut stream = TcpStream::connect(to).expect("connects");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
    let answer = [b"\0\0\x08\x06\x01\0\0\0\0".as_slice(), b"unasked!"].concat();
    for _ in 0..frames / 100 {
        if stream.write_all(&answer.repeat(100)).is_err() {
            return; // the proxy had enough of it
        }
    }
    stream.shutdown(Shutdown::Write).expect("open");
    let _ = stream.read_to_end(&mut Vec::new()); // until the proxy has read all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_makes_many_lines() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let proxy = Logging::start("info", writer).await;
    let reading = std::thread::spawn(move || lines(reader));
    let started = Instant::now();
    let data = proxy.data;
    tokio::task::spawn_blocking(move || flood(data, 20_000)).await.expect("sent");
    while proxy.metric("outrigger_log_lines_suppressed_total").await < 15_000 {
        assert!(started.elapsed() < Duration::from_secs(30), "the flood is not suppressed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await; // once a second it is said
    let longest = started.elapsed().as_secs() + 1;
    assert!(proxy.terminate().success());
    let lines = reading.join().expect("it reads to the end");
    let most = 300 + 10 * longest + longest + 10; // of h2, on what was suppressed, and of the proxy
    assert!(lines.len() as u64 <= most, "{} lines in {longest} s", lines.len());
    let suppressed: u64 = lines.iter().filter_map(|line| line["suppressed"].as_u64()).sum();
    assert!(15_000 <= suppressed, "{suppressed} are said");
}

/// A worker that answers `/whole`, breaks off its answer to `/broken`, and closes the connection after anything else.
fn faulty_worker() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or_default();
                let answer: &[u8] = match &head[..read] {
                    asked if asked.starts_with(b"GET /whole") => {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                    }
                    asked if asked.starts_with(b"GET /broken") => {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbr"
                    }
                    _ => b"",
                };
                let _ = stream.write_all(answer); // the proxy may be gone
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_broken_leaves_a_line_and_what_succeeds_none() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (data, admin) = (tools::free_address(), tools::free_address());
    let mut command = command(data, admin, faulty_worker());
    let process = Started::new(command.stdout(writer));
    drop(command);
    tools::until_it_accepts(data);
    let status =
        async |path| client::send(data, get(path, &[])).await.map(|answer| answer.status.as_u16()).ok();
    for _ in 0..50 {
        assert_eq!(status("/whole").await, Some(200));
    }
    assert_eq!(status("/reset?token=secret").await, Some(502));
    assert_eq!(status("/broken?token=secret").await, None, "its client sees that it broke off");
    for _ in 0..500 {
        assert_eq!(status("/a%00?token=secret").await, Some(400));
    }
    let pid = process.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let lines = tokio::task::spawn_blocking(move || lines(reader)).await.expect("no panic");
    drop(process);
    assert!(lines.iter().all(|line| !line.to_string().contains("secret")), "a query is not logged");
    let of = |message: &str| -> Vec<_> { lines.iter().filter(|line| line["message"] == message).collect() };
    let refused = of("refused");
    let reset = refused.iter().find(|line| line["reason"] == "worker_reset").expect("a line");
    for (field, value) in [
        ("client", Value::from("127.0.0.1")),
        ("method", "GET".into()),
        ("path", "/reset".into()),
        ("route", "default".into()),
        ("worker", "a".into()),
        ("status", 502.into()),
        ("level", "INFO".into()),
    ] {
        assert_eq!(reset[field], value, "{field} of {reset}");
    }
    let broken = of("an answer broke off");
    assert_eq!((broken.len(), &broken[0]["path"], &broken[0]["worker"]), (1, &"/broken".into(), &"a".into()));
    assert!(!of("an attempt failed").is_empty());
    let bad = refused.iter().filter(|line| line["reason"] == "bad_request").count() as u64;
    let more: u64 = of("more of these").iter().filter_map(|line| line["suppressed"].as_u64()).sum();
    assert!((10..=400).contains(&bad) && bad + more == 500, "{bad} lines, and {more} more are said");
    let all = lines.len();
    assert!(all < 500, "{all} lines: none for each answer of a worker");
}
