use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;

use tokio::io::{DuplexStream, duplex};

use super::*;

const FRAME: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x0a";

/// What a server sends on each connection, once it was sent something; `None` when it is silent.
type Server<'a> = &'a [Option<&'a [u8]>];

/// Asks a server, and says what it was sent.
async fn asked(server: Server<'_>) -> (Speaks, Vec<Vec<u8>>) {
    let (next, sent) = (Cell::new(0), RefCell::new(Vec::new()));
    let speaks = ask(|| async {
        let (ours, mut theirs) = duplex(1 << 10);
        let says = server[next.replace(next.get() + 1)].map(<[u8]>::to_vec);
        let heard = tokio::spawn(async move {
            let mut heard = vec![0; 200];
            let read = theirs.read(&mut heard).await.expect("bytes");
            heard.truncate(read);
            match says {
                Some(says) => theirs.write_all(&says).await.expect("taken"),
                None => tokio::time::sleep(SILENCE * 2).await,
            }
            heard
        });
        sent.borrow_mut().push(heard);
        Ok::<_, Infallible>(ours)
    })
    .await
    .unwrap_or_else(|never| match never {});
    let mut heard = Vec::new();
    for one in sent.into_inner() {
        heard.push(one.await.expect("no panic"));
    }
    (speaks, heard)
}

#[tokio::test(start_paused = true)]
async fn what_a_server_says_decides() {
    let refuses = |status| Some(status);
    for (name, server, speaks) in [
        ("node", &[refuses(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..])][..], Speaks::Http1),
        ("python", &[refuses(b"HTTP/1.0 505 no\r\n\r\n")], Speaks::Http1),
        ("closes", &[refuses(b"")], Speaks::Http1),
        ("silent", &[None], Speaks::Http1),
        ("short", &[refuses(&FRAME[..5])], Speaks::Http1),
        ("an acknowledgement is no first frame", &[refuses(b"\0\0\0\x04\x01\0\0\0\0")], Speaks::Http1),
        ("grpc", &[Some(FRAME), refuses(FRAME)], Speaks::Http2),
        ("closes on HTTP/1.1", &[Some(FRAME), refuses(b"")], Speaks::Http2),
        ("silent on HTTP/1.1", &[Some(FRAME), None], Speaks::Http2),
        ("says so in HTTP/1.1", &[Some(FRAME), refuses(b"HTTP/1.1 400 HTTP/2 only\r\n\r\n")], Speaks::Http2),
        ("go", &[Some(FRAME), Some(b"HTTP/1.1 200 OK\r\n\r\n")], Speaks::Both),
        ("axum", &[Some(FRAME), Some(b"HTTP/1.1 404 Not Found\r\n\r\n")], Speaks::Both),
    ] {
        let (found, sent) = asked(server).await;
        assert_eq!(found, speaks, "{name}");
        assert!(sent[0] == HELLO && sent.len() == server.len(), "{name}");
        assert!(sent[1..].iter().all(|sent| sent.starts_with(b"OPTIONS * HTTP/1.1\r\n")), "{name}");
    }
}

#[test]
fn a_request_goes_over_what_the_worker_speaks_or_not_at_all() {
    use Needs::{Any, Http1 as Websocket, Http2 as Grpc};
    for (speaks, [any, websocket, grpc]) in [
        (Speaks::Http1, [Some(false), Some(false), None]),
        (Speaks::Http2, [Some(true), None, Some(true)]),
        (Speaks::Both, [Some(false), Some(false), Some(true)]),
    ] {
        assert_eq!(speaks.over_http2(Any), any, "{speaks:?}");
        assert_eq!(speaks.over_http2(Websocket), websocket, "{speaks:?}");
        assert_eq!(speaks.over_http2(Grpc), grpc, "{speaks:?}");
    }
}

#[tokio::test]
async fn a_worker_is_asked_once_and_again_when_it_was_away() {
    let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
    let dials = Cell::new(0);
    let learn = async |needs| {
        let closes = || async {
            dials.set(dials.get() + 1);
            Ok::<_, Infallible>(duplex(1).0)
        };
        super::learn(&worker, needs, closes).await.unwrap_or_else(|never| match never {})
    };
    let both = tokio::join!(learn(Needs::Any), learn(Needs::Http2));
    assert_eq!((both, dials.get()), ((Speaks::Http1, Speaks::Http1), 1));
    worker.speaks.forget();
    assert_eq!((learn(Needs::Any).await, dials.get()), (Speaks::Http1, 2));
    worker.speaks.forget();
    let refused = super::learn(&worker, Needs::Any, || async { Err::<DuplexStream, _>("refused") }).await;
    assert_eq!(
        (refused, worker.speaks.known()),
        (Err("refused"), None),
        "who cannot be reached says nothing"
    );
}

#[tokio::test]
async fn a_request_is_refused_by_what_the_worker_said_just_now() {
    let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
    let now = Instant::now();
    assert!(!refuses(&worker, Needs::Http2, now), "nothing is known");
    let closes = || async { Ok::<_, Infallible>(duplex(1).0) };
    learn(&worker, Needs::Any, closes).await.expect("asked");
    let now = Instant::now();
    assert!(refuses(&worker, Needs::Http2, now));
    assert!(!refuses(&worker, Needs::Http1, now) && !refuses(&worker, Needs::Any, now));
    assert!(!refuses(&worker, Needs::Http2, now + FRESH), "it is asked again first");
    worker.asking.at.store(0, Relaxed); // long ago
    let answers = || async {
        let (ours, mut theirs) = duplex(1 << 10);
        theirs.write_all(FRAME).await.expect("room");
        tokio::spawn(async move { while theirs.read(&mut [0; 99]).await.is_ok_and(|read| read != 0) {} });
        Ok::<_, Infallible>(ours)
    };
    assert_eq!(learn(&worker, Needs::Any, answers).await, Ok(Speaks::Http1), "it does");
    assert_eq!(
        learn(&worker, Needs::Http2, answers).await,
        Ok(Speaks::Http2),
        "another program listens there"
    );
}
