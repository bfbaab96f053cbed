//! A body that is on its way, and what ends it.

use std::future::pending;

use super::*;
use crate::breaker::{Action, Command};

#[test]
fn an_upload_takes_as_long_as_it_moves() {
    run(async {
        let length = 301 * 1024;
        let whole = "x".repeat(1024);
        let with_length = format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: {length}\r\n\r\n");
        for (head, part, end) in [(CHUNKED, &*part(), "0\r\n\r\n"), (&with_length, &whole, &whole)] {
            let setup = Setup::new("timeout: {request: 2s}\nretry: {perRetry: {timeout: 1s}}").await;
            let mut client = setup.client(false).await;
            says(&mut client, head).await;
            let began = Instant::now();
            let works = async {
                let mut worker = setup.hears().await;
                match head {
                    CHUNKED => drop(until(&mut worker, end).await),
                    _ => drop(worker.read_exact(&mut vec![0; length]).await.expect("all of it")),
                }
                sleep(SECOND / 2).await;
                says(&mut worker, OK).await;
                worker
            };
            let sends = async {
                trickles(&mut client, part, 300).await;
                says(&mut client, end).await;
                until(&mut client, "\r\n\r\nok").await
            };
            let (_worker, answer) = tokio::join!(works, sends);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(75 * SECOND <= began.elapsed());
            assert_eq!(setup.worker.failures(), 0);
        }
    });
}

#[test]
fn an_upload_over_http2_takes_as_long_as_it_moves() {
    run(async {
        for content_type in ["text/plain", "application/grpc"] {
            let setup =
                Setup::new("timeout: {request: 2s}\nworkers: [{name: of-timeouts, protocol: H2C}]").await;
            let stream = setup.client(true).await;
            let works = async {
                let (stream, _) = setup.listener.accept().await.expect("a connection");
                let mut worker = h2::server::handshake(stream).await.expect("HTTP/2");
                let (request, mut respond) = worker.accept().await.expect("open").expect("a request");
                let reads = async move {
                    let (mut body, mut read) = (request.into_body(), 0);
                    while let Some(data) = body.data().await {
                        let data = data.expect("whole");
                        read += data.len();
                        body.flow_control().release_capacity(data.len()).expect("taken");
                    }
                    let response = http::Response::builder().header("content-type", content_type);
                    let response = response.header("grpc-status", "0").body(()).expect("valid");
                    respond.send_response(response, true).expect("open");
                    read
                };
                let drives = async {
                    while let Some(next) = worker.accept().await {
                        assert!(next.is_err(), "one request only");
                    }
                    pending::<()>().await;
                };
                let mut reads = std::pin::pin!(reads);
                let mut drives = std::pin::pin!(drives);
                let read = tokio::select! { read = &mut reads => read, () = &mut drives => 0 };
                tokio::select! { () = drives => {}, () = sleep(SECOND) => {} }
                read
            };
            let asks = async {
                let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
                spawn_local(async move { drop(connection.await) });
                let mut sender = sender.ready().await.expect("open");
                let request = http::Request::post("http://a.test/").header("content-type", content_type);
                let (answer, mut body) =
                    sender.send_request(request.body(()).expect("valid"), false).expect("open");
                for _ in 0..300 {
                    sleep(PAUSE).await;
                    body.send_data(Bytes::from(vec![b'x'; 1024]), false).expect("open");
                }
                body.send_data(Bytes::new(), true).expect("open");
                answer.await.expect("an answer")
            };
            let (read, answer) = tokio::join!(works, asks);
            assert_eq!((read, answer.status().as_u16()), (300 * 1024, 200), "{content_type}");
            assert_eq!(answer.headers()["grpc-status"], "0");
        }
    });
}

#[test]
fn a_client_that_stands_still_is_told_so() {
    run(async {
        let setup = Setup::new("timeout: {request: 2s, idle: 7s}").await;
        let mut client = setup.client(false).await;
        says(&mut client, CHUNKED).await;
        let _worker = setup.hears().await;
        trickles(&mut client, &part(), 40).await;
        let began = Instant::now();
        let answer = until(&mut client, "too long\n").await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("the client sent nothing more of the request's body"), "{answer}");
        assert!(took(began, 7 * SECOND));
        assert_eq!((setup.rejected("client_body_timeout"), setup.worker.failures()), (1, 0));
    });
}

#[test]
fn a_worker_that_takes_no_more_is_told_of() {
    run(async {
        let setup = Setup::new("timeout: {request: 2s, idle: 7s}").await;
        let client = setup.client(false).await;
        let (mut read, mut write) = client.into_split();
        let _client = spawn_local(async move {
            write.write_all(CHUNKED.as_bytes()).await.expect("open");
            while write.write_all(part().as_bytes()).await.is_ok() {}
        });
        let _worker = setup.hears().await;
        let mut answer = Vec::new();
        let began = Instant::now();
        while !answer.ends_with(b"did not answer\n") {
            answer.push(read.read_u8().await.expect("more"));
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(
            7 * SECOND <= began.elapsed() + TICK && began.elapsed() < 9 * SECOND,
            "{:?}",
            began.elapsed()
        );
        assert_eq!((setup.rejected("worker_stalled"), setup.worker.failures()), (1, 1), "once");
    });
}

#[test]
fn an_upload_that_moves_keeps_its_answer_waiting_and_the_other_way_round() {
    run(async {
        for client_sends in [true, false] {
            let setup = Setup::new("timeout: {request: 2s, idle: 5s}").await;
            let mut client = setup.client(false).await;
            says(&mut client, CHUNKED).await;
            let mut worker = setup.hears().await;
            says(&mut client, &part()).await;
            says(&mut worker, STREAMED).await;
            says(&mut worker, "2\r\nok\r\n").await;
            until(&mut client, "2\r\nok\r\n").await;
            let (moves, still) = match client_sends {
                true => (&mut client, &mut worker),
                false => (&mut worker, &mut client),
            };
            let reads = async {
                let mut read = 0;
                while read < 80 * 1024 {
                    let more = still.read(&mut vec![0; 64 << 10]).await.expect("open");
                    assert_ne!(more, 0, "{client_sends}: it is closed after {read}");
                    read += more;
                }
            };
            let part = part();
            tokio::join!(trickles(moves, &part, 80), reads); // 20 s
            let began = Instant::now();
            let rest = moves.read_to_end(&mut Vec::new()).await;
            drop(rest); // it is cut, and may be reset
            assert!(took(began, 5 * SECOND), "then both stand still");
        }
    });
}

#[test]
fn an_upload_behind_an_early_answer_ends_when_its_worker_takes_no_more() {
    run(async {
        let setup = Setup::new("timeout: {idle: 5s}").await;
        let client = setup.client(false).await;
        let (_read, mut write) = client.into_split();
        spawn_local(async move {
            write.write_all(CHUNKED.as_bytes()).await.expect("open");
            while write.write_all(part().repeat(64).as_bytes()).await.is_ok() {
                sleep(TICK).await; // or no time would pass for as long as it is read
            }
        });
        let mut worker = setup.hears().await;
        let began = Instant::now();
        says(&mut worker, OK).await;
        sleep(8 * SECOND).await;
        let mut rest = 0;
        let mut bytes = vec![0; 64 << 10];
        while let Ok(1..) = worker.read(&mut bytes).await {
            rest += 1;
            assert!(rest < 10_000, "the connection to the worker is closed");
        }
        assert!(began.elapsed() < 10 * SECOND);
    });
}

#[test]
fn an_upload_behind_an_early_answer_takes_as_long_as_it_moves() {
    run(async {
        let setup = Setup::new("timeout: {idle: 5s}").await;
        let thread = setup.thread.clone();
        spawn_local(async move {
            loop {
                sleep(PAUSE).await;
                thread.connections.tick(crate::clock::now());
            }
        });
        let mut client = setup.client(false).await;
        says(&mut client, CHUNKED).await;
        let mut worker = setup.hears().await;
        says(&mut worker, OK).await;
        until(&mut client, "\r\n\r\nok").await;
        let uploads = async {
            trickles(&mut client, &part(), 480).await; // two minutes
            says(&mut client, "0\r\n\r\n").await;
        };
        tokio::join!(uploads, until(&mut worker, "x\r\n0\r\n\r\n"));
        says(&mut client, GET).await;
        let mut worker = setup.hears().await; // where an answer came early is no further request sent
        says(&mut worker, OK).await;
        until(&mut client, "\r\n\r\nok").await;
    });
}

#[test]
fn a_client_that_dawdles_does_not_hold_a_trial() {
    run(async {
        let breaker = "{consecutiveFailures: 1, permittedNumberOfCallsInHalfOpenState: 1, \
                        waitDurationInOpenState: 1h}";
        let setup = Setup::new(&format!(
            "circuitBreaker: {{worker: {breaker}, service: {breaker}}}\ntimeout: {{idle: 60s}}"
        ))
        .await;
        let now = crate::clock::now();
        let half_open = || Command {
            action: Action::HalfOpen,
            reason: String::from("a test"),
            until_unix_millis: i64::MAX,
        };
        setup.worker.breaker.command(half_open(), now, 0).expect("there is one");
        setup.thread.snapshot().service.command(half_open(), now, 0).expect("there is one");
        let mut dawdles = setup.client(false).await;
        says(&mut dawdles, CHUNKED).await;
        let _first = setup.hears().await;
        let mut other = setup.client(false).await;
        says(&mut other, GET).await;
        assert!(until(&mut other, "open\n").await.starts_with("HTTP/1.1 503"), "one trial at a time");
        sleep(SECOND + 10 * TICK).await;
        says(&mut other, GET).await;
        let mut second = setup.hears().await;
        says(&mut second, OK).await;
        until(&mut other, "\r\n\r\nok").await;
        let views = [setup.worker.breaker.view(now), setup.thread.snapshot().service.view(now)];
        assert_eq!(views.map(|view| view.state), ["closed"; 2]);
    });
}
