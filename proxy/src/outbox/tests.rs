use std::io::Read;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, yield_now};

use super::*;

/// Runs a test on one thread, as a data thread runs, beside an outbox that sends.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Outbox>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let main = async {
        let outbox = Rc::<Outbox>::default();
        let sending = outbox.clone();
        tokio::task::spawn_local(async move { sending.run().await });
        let resuming = outbox.clone();
        tokio::task::spawn_local(async move { resuming.resume().await });
        yield_now().await;
        tokio::time::timeout(Duration::from_secs(20), test(outbox)).await.expect("in time");
    };
    LocalSet::new().block_on(&runtime, main);
}

/// Reads up to this text, which must come.
pub(crate) async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(end.as_bytes()) {
        heard.push(stream.read_u8().await.expect("more"));
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// Sends this text.
pub(crate) async fn says(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("open");
}

/// The two ends of a connection.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
    (near, listener.accept().await.expect("accepts").0)
}

/// A stream and its other end.
async fn pair(outbox: &Rc<Outbox>) -> (Stream, TcpStream) {
    let (near, far) = sockets().await;
    far.writable().await.expect("open"); // the driver knows it
    (Stream::new(near, outbox.clone()), far)
}

/// What comes until the other end is closed.
async fn to_the_end(mut far: TcpStream) -> String {
    let mut heard = String::new();
    far.read_to_string(&mut heard).await.expect("to the end");
    heard
}

/// Much to do in one turn: what is written in the next one waits.
async fn busy(outbox: &Rc<Outbox>) {
    let (mut stream, _far) = pair(outbox).await;
    for _ in 0..MANY {
        stream.write_all(b"x").await.expect("taken");
    }
    yield_now().await;
    assert!(outbox.waits.get());
}

/// What has come; loopback brings it before `send` returns.
fn there(far: &TcpStream) -> String {
    let mut bytes = vec![0; 100_000];
    let n = (&*SockRef::from(far)).read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

#[test]
fn a_turn_sends_at_its_end_in_one_piece() {
    run(async |outbox| {
        let (mut stream, far) = pair(&outbox).await;
        busy(&outbox).await;
        stream.write_all(b"one ").await.expect("taken");
        stream.flush().await.expect("as good as sent");
        stream.write_all(b"two").await.expect("taken");
        assert_eq!(there(&far), "", "the turn goes on");
        yield_now().await;
        assert_eq!(there(&far), "one two");
        assert_eq!((outbox.waiting.borrow().len(), outbox.spare.borrow().len()), (0, 1));
        busy(&outbox).await;
        stream.write_all(b"three").await.expect("taken");
        assert_eq!((there(&far).as_str(), outbox.spare.borrow().len()), ("", 0), "the buffer is used again");
        yield_now().await;
        assert_eq!(there(&far), "three");
    });
}

#[test]
fn many_bytes_go_at_once_behind_what_waits() {
    run(async |outbox| {
        let (mut stream, far) = pair(&outbox).await;
        busy(&outbox).await;
        stream.write_all(b"head ").await.expect("taken");
        stream.write_all(&[b'x'; FEW + 1]).await.expect("sent");
        assert_eq!(there(&far), format!("head {}", "x".repeat(FEW + 1)));
        let slices = [&[b'a'; FEW][..], b"b"].map(IoSlice::new);
        let sent = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await.expect("sent");
        assert_eq!((sent, there(&far).len()), (FEW + 1, FEW + 1));
        for _ in 0..2 * MOST / FEW {
            stream.write_all(&[b'y'; FEW]).await.expect("taken");
        }
        assert_eq!(there(&far).len(), MOST, "no socket keeps more");
        assert_eq!(stream.socket.unsent(), MOST);
    });
}

#[test]
fn without_a_sender_nothing_waits() {
    run(async |_| {
        let outbox = Rc::<Outbox>::default();
        let (mut stream, far) = pair(&outbox).await;
        stream.write_all(b"now").await.expect("sent");
        assert_eq!(there(&far), "now");
        let sending = outbox.clone();
        let sender = tokio::task::spawn_local(async move { sending.run().await });
        busy(&outbox).await;
        stream.write_all(b"later").await.expect("taken");
        sender.abort();
        assert_eq!(there(&far), "");
        sender.await.expect_err("it was ended");
        assert_eq!(there(&far), "later");
        stream.write_all(b"now").await.expect("sent");
        assert_eq!(there(&far), "now");
    });
}

#[test]
fn nothing_waits_while_there_is_little_to_do() {
    run(async |outbox| {
        let (mut stream, far) = pair(&outbox).await;
        for _ in 0..3 {
            let slices = [&b"now"[..], b"", b" "].map(IoSlice::new);
            let sent = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await;
            assert_eq!((sent.expect("sent"), there(&far).as_str()), (4, "now "));
            yield_now().await;
        }
        busy(&outbox).await;
        stream.write_all(b"later").await.expect("taken");
        assert_eq!(there(&far), "");
        yield_now().await;
        stream.write_all(b" now").await.expect("sent");
        assert_eq!(there(&far), "later now");
    });
}

#[test]
fn a_long_turn_is_cut() {
    run(async |outbox| {
        let mut pairs = Vec::new();
        for _ in 0..SOCKETS + 3 {
            pairs.push(pair(&outbox).await);
        }
        busy(&outbox).await;
        for (stream, _) in &mut pairs {
            stream.write_all(b"hello").await.expect("taken");
        }
        let sent = pairs.iter().filter(|(_, far)| there(far) == "hello").count();
        assert_eq!(sent, SOCKETS);
        yield_now().await;
        assert_eq!(pairs.iter().filter(|(_, far)| there(far) == "hello").count(), 3);
    });
}

#[test]
fn what_the_kernel_does_not_take_is_sent_when_it_does() {
    run(async |outbox| {
        let (mut stream, mut far) = pair(&outbox).await;
        SockRef::from(&stream.socket.0.borrow().stream).set_send_buffer_size(1).expect("the least there is");
        let mut sent = 0;
        while outbox.blocked.borrow().is_empty() {
            busy(&outbox).await;
            stream.write_all(&[b'x'; FEW]).await.expect("taken");
            sent += FEW;
            yield_now().await;
        }
        busy(&outbox).await;
        assert_eq!(outbox.blocked.borrow().len(), 1, "the client does not read");
        let mut heard = vec![0; sent];
        far.read_exact(&mut heard).await.expect("all of it, though nobody writes or flushes");
        assert_eq!((stream.socket.unsent(), outbox.blocked.borrow().len()), (0, 0));

        while outbox.blocked.borrow().is_empty() {
            busy(&outbox).await;
            stream.write_all(&[b'x'; FEW]).await.expect("taken");
            yield_now().await;
        }
        let flushes = async {
            stream.flush().await.expect("sent");
            stream.shutdown().await.expect("ends");
        };
        let reads = async { far.read_to_end(&mut heard).await.expect("all of it") };
        tokio::join!(flushes, reads);
    });
}

/// Whoever waits to write is woken, whoever else is blocked meanwhile.
#[test]
fn a_writer_that_waits_is_woken() {
    run(async |outbox| {
        let (mut writer, mut far) = pair(&outbox).await;
        let (mut other, _far) = pair(&outbox).await;
        for stream in [&writer, &other] {
            SockRef::from(&stream.socket.0.borrow().stream)
                .set_send_buffer_size(1)
                .expect("the least there is");
        }
        while outbox.blocked.borrow().is_empty() {
            busy(&outbox).await;
            writer.write_all(&[b'x'; FEW]).await.expect("taken");
            yield_now().await;
        }
        let writing = tokio::task::spawn_local(async move {
            writer.write_all(&[b'y'; 10 * FEW]).await.expect("sent");
            writer.shutdown().await.expect("ends");
        });
        yield_now().await;
        while outbox.blocked.borrow().len() < 2 && !other.socket.0.borrow().blocked {
            busy(&outbox).await;
            other.write_all(&[b'z'; FEW]).await.expect("taken");
            yield_now().await;
        }
        yield_now().await;
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.expect("to the end");
        assert!(heard.ends_with(&[b'y'; 10 * FEW]));
        writing.await.expect("it was woken");
    });
}

#[test]
fn what_waits_is_sent_before_the_end() {
    run(async |outbox| {
        let (mut stream, far) = pair(&outbox).await;
        busy(&outbox).await;
        stream.write_all(b"bye").await.expect("taken");
        stream.shutdown().await.expect("ends");
        assert_eq!(to_the_end(far).await, "bye");
        let (mut stream, far) = pair(&outbox).await;
        busy(&outbox).await;
        stream.write_all(b"dropped").await.expect("taken");
        drop(stream);
        assert_eq!(to_the_end(far).await, "dropped");
        yield_now().await;
        assert!(outbox.waiting.borrow().is_empty());
    });
}

#[test]
fn what_nobody_holds_is_not_sent_and_not_kept() {
    run(async |outbox| {
        let (near, far) = sockets().await;
        let socket = Rc::new(Socket::new(near));
        busy(&outbox).await;
        poll_fn(|cx| outbox.poll_write(&socket, cx, &[IoSlice::new(b"hello")])).await.expect("taken");
        assert_eq!(socket.unsent(), 5);
        drop(socket);
        assert_eq!(to_the_end(far).await, "");
        yield_now().await;
        assert!(outbox.waiting.borrow().is_empty());
    });
}

#[test]
fn what_cannot_be_sent_is_said() {
    run(async |outbox| {
        let (mut stream, far) = pair(&outbox).await;
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("linger");
        busy(&outbox).await;
        stream.write_all(b"hello").await.expect("taken");
        drop(far); // a reset
        yield_now().await;
        assert_eq!(stream.socket.unsent(), 5);
        stream.flush().await.expect_err("it was not sent");
        stream.write_all(b"more").await.expect_err("nor will this be");
        assert!(outbox.waiting.borrow().is_empty());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// Whatever is written, and however slowly it is read, arrives whole and in order, and nothing stays behind.
    #[test]
    fn all_of_it_arrives_in_order(
        writes in prop::collection::vec((1..40_000_usize, any::<bool>()), 1..60),
        reads in prop::collection::vec(1..50_000_usize, 1..10),
    ) {
        run(async |outbox| {
            let (mut stream, mut far) = pair(&outbox).await;
            SockRef::from(&stream.socket.0.borrow().stream).set_send_buffer_size(1).expect("the least there is");
            let all: usize = writes.iter().map(|(size, _)| size).sum();
            let written = async {
                let mut at = 0;
                for (size, few) in &writes {
                    let size = if *few { size % FEW + 1 } else { *size };
                    let bytes: Vec<_> = (at..at + size).map(|i| (i % 251) as u8).collect();
                    stream.write_all(&bytes).await.expect("taken");
                    at += size;
                    match at % 3 {
                        0 => yield_now().await,
                        1 => busy(&outbox).await,
                        _ => {}
                    }
                }
                stream.shutdown().await.expect("ends");
                at
            };
            let read = async {
                let mut read = Vec::with_capacity(all);
                for size in reads.iter().cycle() {
                    let mut bytes = vec![0; *size];
                    match far.read(&mut bytes).await.expect("reads") {
                        0 => return read,
                        n => read.extend_from_slice(&bytes[..n]),
                    }
                    yield_now().await;
                }
                read
            };
            let (written, read) = tokio::join!(written, read);
            assert_eq!(written, read.len());
            assert!(read.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8), "in order");
            drop(stream);
            let (waiting, blocked) = (outbox.waiting.borrow(), outbox.blocked.borrow());
            let mut holders = waiting.iter().chain(&*blocked);
            assert!(holders.all(|socket| socket.upgrade().is_none()), "nothing is held");
        });
    }
}
