use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use super::*;
use crate::body::ClientBody;
use crate::connection::{Activity, Transport, Watched};
use crate::http1::chunked::Chunked;
use crate::http1::framing::Framing;
use crate::http1::{Incoming, Line as ClientLine};
use crate::outbox::tests::sockets;
use crate::outbox::{Outbox, Stream};

/// Runs a test on one thread, as a data thread runs.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let in_time = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("in time") };
    LocalSet::new().block_on(&runtime, in_time);
}

/// A connection and the worker's end of it.
async fn pair() -> (Connection, TcpStream) {
    let outbox = Rc::<Outbox>::default();
    let (stream, worker) = sockets().await;
    let buffers = Rc::new(Buffers::new(outbox.clone()));
    tokio::task::spawn_local(async move { outbox.run().await });
    (Connection::new(stream, buffers), worker)
}

async fn send(
    connection: &Connection,
    request: &mut Request<RequestBody>,
) -> Result<Response<Body>, SendError> {
    connection.send(request, &Interim::to_nobody()).await
}

fn get() -> Request<RequestBody> {
    Request::get("/a").header("host", "web").body(RequestBody::empty()).expect("valid")
}

const GET: &str = "GET /a HTTP/1.1\r\nhost: web\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// Reads exactly this.
async fn hears(worker: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    worker.read_exact(&mut bytes).await.expect("as many bytes");
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

async fn says(worker: &mut TcpStream, text: &str) {
    worker.write_all(text.as_bytes()).await.expect("takes it");
}

/// The answer to a request, of which the worker hears `heard`.
async fn asked(
    connection: &Connection,
    worker: &mut TcpStream,
    (mut request, heard): (Request<RequestBody>, &str),
    answer: &str,
) -> Response<Body> {
    let works = async {
        hears(worker, heard).await;
        says(worker, answer).await;
    };
    tokio::join!(works, send(connection, &mut request)).1.expect("an answer")
}

/// What a worker that answers with these bytes, and then closes if it is to, is understood to say.
async fn answered(pieces: &[&str], closes: bool) -> Result<(StatusCode, Vec<u8>, bool), Error> {
    let (connection, mut worker) = pair().await;
    let works = async {
        hears(&mut worker, GET).await;
        for piece in pieces {
            says(&mut worker, piece).await;
            tokio::task::yield_now().await;
        }
        if closes {
            worker.shutdown().await.expect("closes");
        }
    };
    let asks = async {
        let response = send(&connection, &mut get()).await.map_err(|error| match error {
            SendError::Lost(error) => error,
            SendError::Unanswered(error) => error,
            SendError::Unsent(error) => panic!("{error}"),
        })?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        Ok((head.status, body, connection.is_reusable()))
    };
    tokio::join!(works, asks).1
}

#[test]
fn a_connection_is_used_again_and_again() {
    run(async {
        let (connection, mut worker) = pair().await;
        for _ in 0..3 {
            let works = async {
                hears(&mut worker, GET).await;
                says(&mut worker, OK).await;
            };
            let mut request = get();
            let (_, response) = tokio::join!(works, send(&connection, &mut request));
            assert!(!connection.is_reusable(), "the answer was not read");
            let body = response.expect("an answer").collect().await.expect("whole").to_bytes();
            assert_eq!(body, "hello");
            assert!(connection.is_reusable() && connection.is_open());
            assert_eq!(request.headers()["host"], "web", "its head stays where it was");
        }
    });
}

#[test]
fn answers_end_where_they_say() {
    run(async {
        let long = "x".repeat(300_000);
        let (length, chunk) = (
            format!("content-length: {}\r\n\r\n{long}", long.len()),
            format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()),
        );
        for (answer, closes, body, reusable) in [
            (OK, false, "hello", true),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\na: b\r\n\r\n",
                false,
                "hello",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhello", true, "hello", false),
            ("HTTP/1.0 200 OK\r\n\r\n", true, "", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, "", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello", false, "hello", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP", false, "hello", false),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                false,
                "hello",
                true,
            ),
            (
                "HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                false,
                "hello",
                false,
            ),
            (&format!("HTTP/1.1 200 OK\r\n{length}"), false, &long, true),
            (&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"), false, &long, true),
            (&format!("HTTP/1.1 200 OK\r\n\r\n{long}"), true, &long, false),
        ] {
            let read = answered(&[answer], closes).await.unwrap_or_else(|error| panic!("{answer}: {error}"));
            assert_eq!(read, (StatusCode::OK, body.as_bytes().to_vec(), reusable));
        }
    });
}

#[test]
fn it_does_not_matter_how_an_answer_is_cut() {
    run(async {
        let answer = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        for cut in 1..answer.len() {
            let read = answered(&[&answer[..cut], &answer[cut..]], false).await.expect("an answer");
            assert_eq!(read, (StatusCode::OK, b"hello".to_vec(), true), "{cut}");
        }
    });
}

#[test]
fn answers_that_break_off_are_errors() {
    run(async {
        for (answer, says) in [
            ("", "closed the connection"),
            ("HTTP/1.1 200 OK\r\n", "closed the connection"),
            ("HTTP/1.1 100 Continue\r\n\r\n", "closed the connection"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", "closed the connection"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "closed the connection"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello", "chunks are malformed"),
            ("nonsense", "does not speak"),
            (&format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD_BYTES)), "64 KiB"),
        ] {
            let error = answered(&[answer], true).await.expect_err(answer);
            assert!(error.to_string().contains(says), "{answer:.40}: {error}");
        }
    });
}

#[test]
fn a_resting_connection_is_open_until_the_worker_closes_or_speaks() {
    run(async {
        let (connection, mut worker) = pair().await;
        assert!(connection.is_open());
        says(&mut worker, "HTTP/1.1 408 Request Timeout\r\n\r\n").await;
        until(|| !connection.is_open()).await;
        let (connection, worker) = pair().await;
        drop(worker);
        until(|| !connection.is_open()).await;
    });
}

#[test]
fn what_came_a_moment_ago_is_seen_before_the_connection_is_used() {
    run(async {
        for closes in [false, true] {
            let (connection, worker) = pair().await;
            assert!(connection.is_open() && connection.is_open_now());
            match closes {
                false => assert_eq!(worker.try_write(b"HTTP/1.1 200 OK\r\n\r\n").expect("room"), 19),
                true => drop(worker),
            }
            // This thread has not looked at its sockets since.
            assert!(!connection.is_open_now());
        }
    });
}

#[test]
fn only_a_connection_that_ends_before_a_byte_comes_back_leaves_a_request_unanswered() {
    run(async {
        for (answer, resets, unanswered) in [
            ("", false, true),
            ("", true, true),
            ("H", false, false),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, false),
            ("HTTP/1.1 100 Continue\r\n\r\n", true, false),
        ] {
            let (connection, mut worker) = pair().await;
            let works = async move {
                hears(&mut worker, GET).await;
                says(&mut worker, answer).await;
                if resets {
                    tokio::time::sleep(Duration::from_millis(20)).await; // what was said is heard first
                    SockRef::from(&worker).set_linger(Some(Duration::ZERO)).expect("linger");
                }
            };
            let mut request = get();
            let (_, sent) = tokio::join!(works, send(&connection, &mut request));
            let error = sent.err().expect("no answer");
            assert_eq!(matches!(error, SendError::Unanswered(_)), unanswered, "{answer} {resets}: {error}");
            assert_eq!(request.uri(), "/a", "its head stays where it was");
        }
    });
}

#[test]
fn an_answer_that_breaks_off_behind_its_head_is_seen_at_once() {
    run(async {
        for (rest, resets, broken) in
            [("", false, false), ("", true, true), ("hello", true, false), ("0", true, true)]
        {
            let (connection, mut worker) = pair().await;
            let framing = if rest == "0" { "content-length: 5\r\n" } else { "" };
            let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n");
            let mut body = asked(&connection, &mut worker, (get(), GET), &head).await.into_body();
            says(&mut worker, rest.trim_end_matches('0')).await;
            if resets {
                SockRef::from(&worker).set_linger(Some(Duration::ZERO)).expect("linger");
            }
            drop(worker);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(body.broken_at_once().is_some(), broken, "{rest} {resets}");
            if !resets {
                assert_eq!(body.collect().await.expect("whole").to_bytes(), "", "that is its end");
            }
        }
    });
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn what_could_not_leave_is_unsent_and_whole() {
    for (resets, waits) in [(true, false), (true, true), (false, true)] {
        run(async {
            let (connection, mut worker) = pair().await;
            let (other, _far) = sockets().await;
            let mut other = Stream::new(other, connection.0.buffers.outbox.clone());
            let mut listening = None;
            if resets {
                SockRef::from(&worker).set_linger(Some(Duration::ZERO)).expect("linger");
                drop(worker);
            } else {
                worker.shutdown().await.expect("it says nothing more");
                listening = Some(worker);
            }
            until(|| !connection.is_open()).await;
            for _ in 0..if waits { 100 } else { 0 } {
                other.write_all(b"much to do in this turn").await.expect("taken");
            }
            tokio::task::yield_now().await; // and what is written in the next one waits
            let mut request = get();
            let error = send(&connection, &mut request).await.map(|_| ()).expect_err("nobody is there");
            assert!(matches!(error, SendError::Unsent(_)), "{error}");
            assert_eq!(request.uri(), "/a");
            if let Some(mut worker) = listening {
                tokio::task::yield_now().await;
                drop(connection);
                let mut heard = String::new();
                worker.read_to_string(&mut heard).await.expect("to the end");
                assert_eq!(heard, "", "it may go to another worker");
            }
        });
    }
}

#[test]
fn a_cut_connection_ends_no_answer_well() {
    run(async {
        let (connection, mut worker) = pair().await;
        let endless = "HTTP/1.1 200 OK\r\n\r\nhello";
        let mut body = asked(&connection, &mut worker, (get(), GET), endless).await.into_body();
        assert_eq!(body.frame().await.expect("a part").expect("whole").into_data().expect("data"), "hello");
        let closer = connection.closer();
        let (next, ()) = tokio::join!(body.frame(), async { closer.close() });
        assert!(matches!(next, Some(Err(Error::Cut))));
        assert!(!connection.is_reusable() && !closer.is_closed());
        drop((connection, body));
        assert!(closer.is_closed());
    });
}

/// A client's body: what is written to the stream is what the client sends of it, in chunks.
async fn upload() -> (RequestBody, TcpStream) {
    let (client, server) = sockets().await;
    let outbox = Rc::<Outbox>::default();
    let activity = Rc::new(Activity::new(Rc::new(Cell::new(1)), Rc::default()));
    let stream = Watched::new(Transport::Plain(Stream::new(server, outbox.clone())), activity, Bytes::new());
    let line = ClientLine::new(stream, Bytes::new(), Rc::new(Buffers::new(outbox)));
    let content = Incoming::new(&line, Framing::Chunked(Chunked::default()));
    // The connection outlives its content.
    tokio::task::spawn_local(async move {
        std::future::pending::<()>().await;
        drop(line);
    });
    (RequestBody::new(ClientBody::Http1(content), Duration::from_secs(5), None), client)
}

async fn sends(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).await.expect("room");
}

fn post(body: RequestBody) -> Request<RequestBody> {
    Request::post("/a").header("host", "web").body(body).expect("valid")
}

const POST: &str = "POST /a HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn a_body_is_sent_as_it_comes() {
    run(async {
        let (connection, mut worker) = pair().await;
        let (body, mut client) = upload().await;
        let works = async {
            hears(&mut worker, POST).await;
            sends(&mut client, "5\r\nhello\r\n").await;
            hears(&mut worker, "5\r\nhello\r\n").await;
            sends(&mut client, &format!("{:x}\r\n{}\r\n", 5000, "x".repeat(5000))).await;
            let mut heard = 0;
            while heard < 5000 {
                let mut bytes = vec![0; 8192];
                let read = worker.read(&mut bytes).await.expect("more");
                heard += bytes[..read].iter().filter(|byte| **byte == b'x').count();
            }
            sends(&mut client, "0\r\nx-sum: 1\r\ncontent-length: 7\r\n\r\n").await;
            let mut end = Vec::new();
            while !end.ends_with(b"\r\n\r\n") {
                worker.read_buf(&mut end).await.expect("more");
            }
            let end = String::from_utf8(end).expect("text");
            assert!(end.ends_with("0\r\nx-sum: 1\r\n\r\n"), "with what may stand there: {end:?}");
            says(&mut worker, OK).await;
        };
        let mut request = post(body);
        let (_, response) = tokio::join!(works, send(&connection, &mut request));
        response.expect("an answer").collect().await.expect("whole");
        assert!(connection.is_reusable() && !connection.0.is_uploading());
    });
}

#[test]
fn an_early_answer_does_not_end_the_upload() {
    run(async {
        let (connection, mut worker) = pair().await;
        let (body, mut client) = upload().await;
        let response = asked(&connection, &mut worker, (post(body), POST), OK).await;
        response.collect().await.expect("whole");
        assert!(!connection.is_reusable() && connection.0.is_uploading());
        sends(&mut client, "5\r\nhello\r\n0\r\n\r\n").await;
        hears(&mut worker, "5\r\nhello\r\n0\r\n\r\n").await;
        until(|| !connection.0.is_uploading()).await;
        assert!(!connection.is_reusable(), "the worker may take what came later for another request");
    });
}

#[test]
fn a_worker_that_has_heard_enough_is_heard() {
    run(async {
        let (connection, mut worker) = pair().await;
        let (body, mut client) = upload().await;
        sends(&mut client, "5\r\nhello\r\n").await;
        let works = async move {
            hears(&mut worker, POST).await;
            says(&mut worker, "HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
            SockRef::from(&worker).set_linger(Some(Duration::ZERO)).expect("linger");
            drop(worker); // with a part of the request unread: a reset
            for _ in 0..10 {
                sends(&mut client, "5\r\nhello\r\n").await;
                tokio::task::yield_now().await;
            }
            client
        };
        let mut request = post(body);
        let (_client, response) = tokio::join!(works, send(&connection, &mut request));
        let response = response.expect("an answer");
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.collect().await.expect("whole").to_bytes(), "no");
        until(|| !connection.0.is_uploading()).await;
        assert!(!connection.is_reusable() || !connection.is_open());
    });
}

#[test]
fn a_client_that_breaks_off_breaks_the_answer() {
    run(async {
        for answers in [false, true] {
            let (connection, mut worker) = pair().await;
            let (body, client) = upload().await;
            let works = async {
                hears(&mut worker, POST).await;
                if answers {
                    says(&mut worker, "HTTP/1.1 200 OK\r\n\r\nhello").await;
                    tokio::time::sleep(Duration::from_millis(20)).await; // the answer goes first
                }
                drop(client);
                assert_eq!(worker.read(&mut [0; 8]).await.expect("the end"), 0, "the worker learns of it");
            };
            let asks = async {
                let response = send(&connection, &mut post(body)).await;
                match response {
                    Err(SendError::Lost(Error::Body(_))) => assert!(!answers),
                    Ok(response) => assert!(response.collect().await.is_err() && answers),
                    Err(error) => panic!("{error}"),
                }
                drop(connection);
            };
            tokio::join!(works, asks);
        }
    });
}

#[test]
fn an_answer_that_nobody_reads_ends_the_upload() {
    run(async {
        let (connection, mut worker) = pair().await;
        let (body, _client) = upload().await;
        let endless = "HTTP/1.1 200 OK\r\n\r\nhello";
        let response = asked(&connection, &mut worker, (post(body), POST), endless).await;
        assert!(connection.0.is_uploading());
        drop(response);
        assert!(!connection.0.is_uploading() && !connection.is_reusable());
        assert_eq!(worker.read(&mut [0; 8]).await.expect("the end"), 0);
    });
}
