//! The rows of `docs/timeouts.md` that are about a request and its answer, in a time of their own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use crate::client::{Peer, Trust};
use crate::connection::{Bounds, Limits, Transport, Watched};
use crate::control::Control;
use crate::metrics::Metrics;
use crate::outbox::Stream;
use crate::outbox::tests::{says, sockets, until};
use crate::protocol::Speaks;
use crate::siblings::Arrival;
use crate::snapshot::Source;
use crate::thread::DataThread;
use crate::worker::Worker;
use crate::{http1, http2};

const LIMITS: Limits =
    Limits { head: Duration::from_secs(10), idle: Duration::from_secs(75), stall: Duration::from_secs(60) };
const SECOND: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);
/// So exact are the times: a byte on its way takes a tick or two.
const TICK: Duration = Duration::from_millis(5);
/// The real time of a tick.
const ARRIVES: Duration = Duration::from_micros(50);
const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const STREAMED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// A proxy of one thread over one worker, which is this test.
struct Setup {
    thread: Rc<DataThread>,
    listener: TcpListener,
    worker: Arc<Worker>,
}

impl Setup {
    async fn new(spec: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let worker = Worker::new("of-timeouts", listener.local_addr().expect("an address"));
        worker.speaks.set(Speaks::Http1); // it is not to be asked
        let control = Control::new(vec![worker.clone()]);
        let spec = serde_yaml::from_str(spec).expect("a spec");
        let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
        control.apply(&update, Source::File).expect("valid");
        let shard = Metrics::default().shard();
        let thread = DataThread::new(control, shard, Trust::default(), Bounds::of_one_thread(LIMITS));
        let ringing = thread.clone();
        spawn_local(async move { ringing.alarms.run().await });
        spawn_local(async {
            loop {
                sleep(TICK).await; // time makes no longer steps, and what was sent arrives meanwhile,
                std::thread::sleep(ARRIVES); // for which a busy kernel needs time of its own
            }
        });
        Self { thread, listener, worker }
    }

    /// A client's connection.
    async fn client(&self, over_http2: bool) -> TcpStream {
        let (stream, other) = sockets().await;
        let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
        self.thread.connections.spawn(peer, Arrival::Client, None, |client| {
            let thread = self.thread.clone();
            async move {
                let transport = Transport::Plain(Stream::new(other, thread.outbox.clone()));
                let stream = Watched::new(transport, client.activity.clone(), Bytes::new());
                if over_http2 {
                    let _ = http2::serve(&thread, &client, stream).await;
                } else {
                    let _ = http1::server::serve(&thread, &client, stream, Bytes::new()).await;
                }
            }
        });
        stream
    }

    /// The next connection to the worker, with the head of a request read.
    async fn hears(&self) -> TcpStream {
        let (mut stream, _) = self.listener.accept().await.expect("a connection");
        until(&mut stream, "\r\n\r\n").await;
        stream
    }

    fn rejected(&self, label: &str) -> u64 {
        self.thread.shard.rejected_as(label)
    }
}

/// Sends a part, again and again, with a pause before each.
async fn trickles(stream: &mut TcpStream, part: &str, times: usize) {
    for _ in 0..times {
        sleep(PAUSE).await;
        says(stream, part).await;
    }
}

/// Whether so much time has passed, and no more.
fn took(began: Instant, time: Duration) -> bool {
    let took = began.elapsed();
    println!("{took:?} of {time:?}");
    time <= took + 4 * TICK && took <= time + 10 * TICK
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test);
}

fn part() -> String {
    format!("400\r\n{}\r\n", "x".repeat(1024))
}

mod uploads;

/// gRPC's client streams are such uploads.
#[test]
fn the_answer_has_its_time_from_the_end_of_the_request() {
    run(async {
        for (spec, time) in [
            ("timeout: {request: 2s}", 2 * SECOND),
            ("timeout: {request: 9s}\nretry: {numRetries: 0, perRetry: {timeout: 3s}}", 3 * SECOND),
        ] {
            let setup = Setup::new(spec).await;
            let mut client = setup.client(false).await;
            says(&mut client, CHUNKED).await;
            let _worker = setup.hears().await;
            trickles(&mut client, &part(), 40).await;
            says(&mut client, "0\r\n\r\n").await;
            let began = Instant::now();
            let answer = until(&mut client, "in time\n").await;
            assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
            assert!(took(began, time), "{spec}");
            assert_eq!((setup.rejected("worker_timeout"), setup.worker.failures()), (1, 1), "once");
        }
        let setup = Setup::new("timeout: {request: 2s}").await;
        let mut client = setup.client(false).await;
        let began = Instant::now();
        says(&mut client, "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 0\r\n\r\n").await;
        let _worker = setup.hears().await;
        until(&mut client, "in time\n").await;
        assert!(took(began, 2 * SECOND), "without a body, from the end of the head");
    });
}

#[test]
fn a_clients_own_deadline_counts_from_its_head() {
    run(async {
        let setup = Setup::new("timeout: {request: 2s, requestHeader: x-deadline}").await;
        let mut client = setup.client(false).await;
        let began = Instant::now();
        says(&mut client, &CHUNKED.replace("\r\n\r\n", "\r\nx-deadline: 5000\r\n\r\n")).await;
        let _worker = setup.hears().await;
        let answer = tokio::select! {
            answer = async {
                let (mut read, mut write) = client.split();
                let sends = async {
                    loop {
                        sleep(PAUSE).await;
                        write.write_all(part().as_bytes()).await.expect("open");
                    }
                };
                let mut head = vec![0; 12];
                tokio::select! {
                    read = read.read_exact(&mut head) => read.expect("an answer"),
                    () = sends => unreachable!(),
                };
                head
            } => answer,
            () = sleep(60 * SECOND) => panic!("no answer"),
        };
        assert_eq!(answer, b"HTTP/1.1 504");
        assert!(took(began, 5 * SECOND));
        assert_eq!((setup.rejected("deadline_exceeded"), setup.worker.failures()), (1, 0));
    });
}

#[test]
fn a_worker_has_its_time_to_accept_a_connection() {
    run(async {
        let setup = Setup::new("timeout: {connect: 3s}\nretry: {numRetries: 0}").await;
        let listener = socket2::SockRef::from(&setup.listener);
        listener.listen(0).expect("a shorter queue");
        let (to, mut waiting) = (setup.worker.address, Vec::new());
        for _ in 0..8 {
            waiting.push(spawn_local(async move { TcpStream::connect(to).await })); // they fill it
        }
        sleep(20 * TICK).await;
        let mut client = setup.client(false).await;
        let began = Instant::now();
        says(&mut client, GET).await;
        let answer = until(&mut client, "in time\n").await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(took(began, 3 * SECOND));
        assert_eq!((setup.rejected("connect_timeout"), setup.worker.failures()), (1, 1));
    });
}

#[test]
fn a_worker_that_does_not_ask_for_the_content_is_not_waited_for() {
    run(async {
        let setup = Setup::new("{}").await;
        let mut client = setup.client(false).await;
        let began = Instant::now();
        says(&mut client, &CHUNKED.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n")).await;
        let _worker = setup.hears().await;
        assert_eq!(until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(took(began, SECOND));
    });
}

#[test]
fn a_client_that_goes_on_sending_after_its_answer_is_read_for_a_while() {
    run(async {
        for (pause, time) in [(SECOND, 30 * SECOND), (60 * SECOND, 5 * SECOND)] {
            let setup = Setup::new("{}").await;
            let mut client = setup.client(false).await;
            says(&mut client, "GET / HTTP/1.1\nhost: a.test\r\n\r\n").await; // where it ends is not known
            let began = Instant::now();
            assert!(until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 400"));
            let sends = async {
                loop {
                    sleep(pause).await;
                    if client.write_all(b"x").await.is_err() {
                        std::future::pending::<()>().await; // it is closed already
                    }
                }
            };
            let ends = async {
                while !setup.thread.connections.is_empty() {
                    sleep(TICK).await;
                }
            };
            tokio::select! { () = ends => {}, () = sends => {} }
            assert!(took(began, time));
        }
    });
}

#[test]
fn a_connection_to_a_worker_rests_for_as_long_as_the_worker_says() {
    run(async {
        for (timeout, rested, kept) in [(10, 8, true), (10, 10, false), (2, 2, false)] {
            let setup = Setup::new("{}").await;
            let mut client = setup.client(false).await;
            says(&mut client, GET).await;
            let mut worker = setup.hears().await;
            let fields = format!("connection: keep-alive\r\nkeep-alive: timeout={timeout}\r\n");
            says(&mut worker, &OK.replacen("\r\n", &format!("\r\n{fields}"), 1)).await;
            until(&mut client, "\r\n\r\nok").await;
            setup.thread.upstreams.close_idle(std::time::Instant::now() + rested * SECOND);
            says(&mut client, GET).await;
            match kept {
                true => drop(until(&mut worker, "\r\n\r\n").await),
                false => assert_eq!(worker.read(&mut [0; 8]).await.expect("closed"), 0, "{timeout}"),
            }
        }
    });
}

#[test]
fn a_connection_to_a_worker_rests_for_four_seconds() {
    run(async {
        let setup = Setup::new("{}").await;
        let mut client = setup.client(false).await;
        says(&mut client, GET).await;
        let mut worker = setup.hears().await;
        for rested in [Duration::ZERO, 3 * SECOND] {
            setup.thread.upstreams.close_idle(std::time::Instant::now() + rested);
            says(&mut worker, OK).await;
            until(&mut client, "\r\n\r\nok").await;
            says(&mut client, GET).await;
            until(&mut worker, "\r\n\r\n").await;
        }
        says(&mut worker, OK).await;
        until(&mut client, "\r\n\r\nok").await;
        setup.thread.upstreams.close_idle(std::time::Instant::now() + 5 * SECOND);
        assert_eq!(worker.read(&mut [0; 8]).await.expect("closed"), 0);
    });
}
