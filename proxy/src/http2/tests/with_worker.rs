//! What goes through to a worker and comes from it.

use socket2::SockRef;

use super::*;
use crate::outbox::tests::{says, until};
use crate::protocol::Speaks;

/// A worker that is this test.
struct Port {
    listener: TcpListener,
    worker: Arc<Worker>,
}

impl Port {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let worker = Worker::new("of-http2-tests", listener.local_addr().expect("an address"));
        worker.speaks.set(Speaks::Http1); // it is not to be asked
        Self { listener, worker }
    }

    /// The next connection, and the head that came on it.
    async fn hears(&self) -> (TcpStream, String) {
        let (mut stream, _) = self.listener.accept().await.expect("a connection");
        let head = until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }
}

async fn settled(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn interim_answers_come_before_the_final_one() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        conversation.asks(1, &[&POST[..], &[("expect", "100-continue")]].concat(), false).await;
        let (mut worker, head) = port.hears().await;
        assert!(head.contains("expect: 100-continue\r\n"), "{head}");
        says(&mut worker, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            .await;
        let mut statuses = Vec::new();
        while statuses.len() < 2 {
            let (kind, flags, _, payload) = conversation.frame().await.expect("open");
            if kind == HEADERS {
                assert_eq!(flags & END_STREAM, 0);
                statuses.push(conversation.decoder.fields(&payload));
            }
        }
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(statuses[0], [field(":status", "103"), field("link", "</a>")]);
        assert_eq!(statuses[1], [field(":status", "100")]);
        conversation.sends(&[frame(DATA, END_STREAM, 1, b"hello")]).await;
        until(&mut worker, "hello\r\n0\r\n\r\n").await;
        says(&mut worker, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let answer = conversation.answer(1).await;
        assert_eq!((answer.status(), &*answer.content), ("200", &b"ok"[..]));
    });
}

#[test]
fn a_query_passes_as_the_client_wrote_it() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        let path = "/a?b=\"<c>&d=100%&e=%u20AC";
        for stream in [1, 3] {
            conversation.asks(stream, &[GET[0], GET[1], (":path", path), GET[3]], true).await;
            let (mut worker, head) = port.hears().await;
            assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
            says(&mut worker, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            assert_eq!(conversation.answer(stream).await.status(), "204");
        }
    });
}

#[test]
fn trailers_that_break_a_rule_break_the_request() {
    run(async {
        for (trailers, goes_through) in [
            (&[("x-sum", "1")][..], true),
            (&[(":path", "/"), ("x-sum", "1")], false),
            (&[(":status", "200")], false),
            (&[("x-sum", " 1")], false),
        ] {
            let port = Port::open().await;
            let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
            conversation.asks(1, &POST, false).await;
            conversation.sends(&[frame(DATA, 0, 1, b"hello")]).await;
            let (mut worker, _) = port.hears().await;
            until(&mut worker, "hello\r\n").await;
            conversation.asks(1, trailers, true).await;
            let mut rest = Vec::new();
            if goes_through {
                assert_eq!(until(&mut worker, "\r\n\r\n").await, "0\r\nx-sum: 1\r\n\r\n");
                says(&mut worker, "HTTP/1.1 204 No Content\r\n\r\n").await;
                assert_eq!(conversation.answer(1).await.status(), "204");
                continue;
            }
            worker.read_to_end(&mut rest).await.expect("the proxy closes");
            assert_eq!(rest, b"", "the request has no end: {trailers:?}");
            assert_eq!(conversation.answer(1).await.status(), "400", "{trailers:?}");
            assert_eq!(conversation.rejected("client_body"), 1);
        }
    });
}

#[test]
fn a_client_that_resets_its_request_ends_it() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        conversation.asks(1, &GET, true).await;
        let (mut worker, _) = port.hears().await;
        assert_eq!(conversation.thread.shard.active.get(), 1);
        conversation.sends(&[frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())]).await;
        assert_eq!(worker.read(&mut [0; 8]).await.expect("closed"), 0, "the worker learns of it");
        settled(|| conversation.thread.shard.active.get() == 0).await;
    });
}

#[test]
fn an_answer_that_breaks_off_resets_its_stream() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        conversation.asks(1, &GET, true).await;
        let (mut worker, _) = port.hears().await;
        says(&mut worker, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello").await;
        loop {
            let (kind, _, _, payload) = conversation.frame().await.expect("open");
            if kind == DATA {
                break assert_eq!(payload, b"hello");
            }
        }
        drop(worker);
        assert_eq!(conversation.answer(1).await.reset, Some(u32::from(Reason::INTERNAL_ERROR)));
    });
}

/// A client that wants its answers slowly, or not at all, is given little more than it takes.
#[test]
fn answers_wait_at_their_workers() {
    run(async {
        const STREAMS: u32 = 40;
        const KERNEL: usize = 64 << 10;
        let port = Port::open().await;
        SockRef::from(&port.listener).set_send_buffer_size(KERNEL / 4).expect("a size");
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        let wide = [&[0, 4][..], &0x7fff_ffff_u32.to_be_bytes()].concat(); // the window of every stream
        conversation.sends(&[frame(SETTINGS, 0, 0, &wide)]).await;
        conversation.sends(&[frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes())]).await; // and of the connection
        let mut sent = Vec::new();
        for stream in 0..STREAMS {
            conversation.asks(2 * stream + 1, &GET, true).await;
            let (mut worker, _) = port.hears().await;
            let counted = Rc::new(Cell::new(0));
            sent.push(counted.clone());
            tokio::task::spawn_local(async move {
                says(&mut worker, "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
                while let Ok(bytes) = worker.write(&[b'x'; 16 << 10]).await {
                    counted.set(counted.get() + bytes);
                }
            });
        }
        let total = || sent.iter().map(|sent| sent.get()).sum::<usize>();
        let mut before = 1;
        while before != total() {
            before = total();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        // What is neither with the proxy nor on its way to it is with the client's socket.
        let client = 6 << 20;
        let most = client + STREAMS as usize * (2 * KERNEL + (130 << 10));
        assert!(before < most, "{before} bytes went to the proxy, of {most}");
        let mut answered = BTreeMap::<u32, usize>::new();
        while answered.len() < STREAMS as usize || answered.values().any(|bytes| *bytes < 1 << 20) {
            let (kind, _, stream, payload) = conversation.frame().await.expect("open");
            if kind == DATA {
                *answered.entry(stream).or_default() += payload.len();
            }
        }
    });
}

/// Windows of a few bytes, and others' that are shut: an answer goes on as its client reads.
#[test]
fn answers_go_by_the_windows_of_their_clients() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        let narrow = [&[0, 4][..], &0_u32.to_be_bytes()].concat();
        conversation.sends(&[frame(SETTINGS, 0, 0, &narrow)]).await;
        let long = "x".repeat(300 << 10);
        let mut workers = Vec::new();
        for stream in [1, 3] {
            conversation.asks(stream, &GET, true).await;
            let (mut worker, _) = port.hears().await;
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}", long.len());
            workers.push(tokio::task::spawn_local(async move { worker.write_all(text.as_bytes()).await }));
        }
        conversation.sends(&[frame(8, 0, 0, &(1_u32 << 20).to_be_bytes())]).await;
        let mut received = 0;
        conversation.sends(&[frame(8, 0, 3, &1000_u32.to_be_bytes())]).await;
        while received < long.len() {
            let (kind, flags, stream, payload) = conversation.frame().await.expect("open");
            if kind == DATA {
                assert_eq!(stream, 3, "the other has no window");
                received += payload.len();
                assert_eq!(flags & END_STREAM != 0, received == long.len());
                let more = u32::try_from(payload.len()).expect("small").to_be_bytes();
                conversation.sends(&[frame(8, 0, 3, &more)]).await;
            }
        }
    });
}

#[test]
fn heads_that_wait_for_their_answers_are_bounded() {
    run(async {
        let port = Port::open().await;
        let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
        let long = "x".repeat(60 << 10);
        let fields = [&GET[..], &[("x-a", &long)]].concat();
        let streams: Vec<u32> = (0..20).map(|n| 2 * n + 1).collect();
        for stream in &streams {
            conversation.asks(*stream, &fields, true).await;
        }
        let port = Rc::new(port);
        let (heads, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let listening = port.clone();
        let listener = tokio::task::spawn_local(async move {
            loop {
                heads.send(listening.hears().await.0).expect("somebody waits");
            }
        });
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        while served.len() + refused.len() < streams.len() {
            tokio::select! {
                worker = heard.recv() => served.push(worker.expect("a listener")),
                frame = conversation.frame() => {
                    let (kind, _, stream, payload) = frame.expect("open");
                    if kind == RST_STREAM {
                        assert_eq!(payload, u32::from(Reason::REFUSED_STREAM).to_be_bytes());
                        refused.push(stream);
                    }
                }
            }
        }
        listener.abort();
        assert!((10..20).contains(&served.len()), "{} served", served.len());
        for worker in &mut served {
            says(worker, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        }
        let served: Vec<u32> = streams.into_iter().filter(|stream| !refused.contains(stream)).collect();
        assert!(conversation.hears(&served).await.values().all(|answer| answer.status() == "204"));
        conversation.asks(101, &fields, true).await;
        let (mut worker, _) = port.hears().await;
        says(&mut worker, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(conversation.answer(101).await.status(), "204", "there is room again");
    });
}

/// A worker that has as much as the length says has the whole request, whatever comes behind it.
#[test]
fn the_end_of_a_known_length_waits_for_the_end_of_the_stream() {
    run(async {
        let fields = [&POST[..], &[("content-length", "10")]].concat();
        for (end, goes_through) in [
            (frame(DATA, END_STREAM, 1, b""), true),
            (frame(DATA, END_STREAM, 1, b"x"), false),
            (frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x84"), false),
            (frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()), false),
        ] {
            let port = Port::open().await;
            let mut conversation = Conversation::over(vec![port.worker.clone()]).await;
            conversation.asks(1, &fields, false).await;
            conversation.sends(&[frame(DATA, 0, 1, b"hello"), frame(DATA, 0, 1, b"again")]).await;
            let (mut worker, _) = port.hears().await;
            until(&mut worker, "hello").await;
            conversation.sends(&[end]).await;
            let mut rest = Vec::new();
            if goes_through {
                until(&mut worker, "again").await;
                says(&mut worker, "HTTP/1.1 204 No Content\r\n\r\n").await;
                assert_eq!(conversation.answer(1).await.status(), "204");
            } else {
                let _ = worker.read_to_end(&mut rest).await; // or it is reset
                assert_eq!(rest, b"");
            }
        }
    });
}
