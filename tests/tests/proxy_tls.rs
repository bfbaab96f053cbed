//! The certificate of the listener is replaced while it serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use system_tests::certificate::Certificate;
use system_tests::client::{Connection, connect_tls, get};
use system_tests::proxy::start_with;
use system_tests::workers::{self, Manner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(20);

/// Waits until a handshake succeeds that trusts this certificate alone.
async fn served(proxy: SocketAddr, certificate: &str) {
    let started = Instant::now();
    while let Err(error) = connect_tls(proxy, certificate).await {
        assert!(started.elapsed() < SOON, "the new certificate is not served: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn answers(connection: &mut Connection) {
    let answer = connection.send(get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_handshakes_see_the_new_certificate_and_old_connections_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = || {
        let certificate = Certificate::write(folder.path());
        std::fs::read_to_string(&certificate.certificate).expect("PEM")
    };
    let first = make();
    let files = [folder.path().join("tls.crt"), folder.path().join("tls.key")];
    let flags = ["--tls-cert", &files[0].display().to_string(), "--tls-key", &files[1].display().to_string()]
        .map(str::to_owned);
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_with(&[worker.address], "{}", &flags.each_ref().map(String::as_str));
    let mut old = Connection::open_tls(proxy.data, &first).await.expect("connects");
    answers(&mut old).await;

    let second = make();
    served(proxy.data, &second).await;
    assert!(connect_tls(proxy.data, &first).await.is_err(), "the old one is not served any more");
    let mut newer = Connection::open_tls(proxy.data, &second).await.expect("connects");

    std::fs::write(&files[0], "-----BEGIN CERTIFICATE-----\nbroken\n").expect("writable");
    let until = Instant::now() + Duration::from_secs(5); // the files are looked at every two seconds
    while Instant::now() < until {
        connect_tls(proxy.data, &second).await.expect("a broken file changes nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let third = make();
    served(proxy.data, &third).await;
    answers(&mut old).await;
    answers(&mut newer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_handshake_fails_while_certificates_are_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = Certificate::write(folder.path());
    let flags = written.flags();
    let read = || std::fs::read_to_string(&written.certificate).expect("PEM");
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_with(&[worker.address], "{}", &flags.each_ref().map(String::as_str));
    let known = Arc::new(Mutex::new(read()));
    let (stop, handshakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let client = tokio::spawn({
        let (data, known, stop, handshakes) = (proxy.data, known.clone(), stop.clone(), handshakes.clone());
        async move {
            while !stop.load(Relaxed) {
                let trusted = known.lock().clone();
                match Connection::open_tls(data, &trusted).await {
                    Ok(mut connection) => answers(&mut connection).await,
                    Err(_) if *known.lock() != trusted => continue, // one was written meanwhile
                    Err(error) => panic!("a handshake failed: {error}"),
                }
                handshakes.fetch_add(1, Relaxed);
            }
        }
    });
    for _ in 0..3 {
        // Made elsewhere and renamed over the old ones, as a certificate manager does.
        let elsewhere = tempfile::tempdir_in(folder.path()).expect("a folder");
        let new = Certificate::write(elsewhere.path());
        let pem = std::fs::read_to_string(&new.certificate).expect("PEM");
        known.lock().push_str(&pem);
        std::fs::rename(&new.key, &written.key).expect("renamed");
        std::fs::rename(&new.certificate, &written.certificate).expect("renamed");
        served(proxy.data, &pem).await;
    }
    stop.store(true, Relaxed);
    client.await.expect("no handshake failed");
    assert!(10 < handshakes.load(Relaxed), "there were handshakes all the while");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_told_to_use_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = Certificate::write(folder.path()).flags();
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_with(&[worker.address], "{}", &flags.each_ref().map(String::as_str));
    let mut stream = TcpStream::connect(proxy.data).await.expect("connects");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await.expect("taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("no reset");
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https"), "{answer}");
    assert!(answer.contains("proxy-status: outrigger; error="), "{answer}");
}
