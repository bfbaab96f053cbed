//! One thread's HTTP/2 connections to one worker: as many as its requests need, for a worker says how many streams a connection
//! may have at once (`SETTINGS_MAX_CONCURRENT_STREAMS`, RFC 9113 §5.1.2). No request is sent before the worker has said so.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::http2::{Connection, SendRequest};
use hyper::rt::{Read, Write};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::task::AbortHandle;

use crate::body::RequestBody;

/// As many streams share the window of a connection, whatever its worker allows. The window has room for what each of them
/// may leave unread: a client that does not read stands in no other's way.
const MOST_STREAMS: usize = 100;
/// What a worker may send on a stream before it is read.
pub(super) const STREAM_WINDOW: u32 = 64 << 10;
/// The same for a connection.
pub(super) const CONNECTION_WINDOW: u32 = MOST_STREAMS as u32 * STREAM_WINDOW;
/// As many connections a thread has to a worker at most. Each takes memory in both, and a client with many streams on one
/// connection could ask for as many.
const MOST_CONNECTIONS: usize = 64;
/// All connections to a worker but one end when they had no stream for this long.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// What hyper says of a connection whose worker has said nothing yet: more than any worker can say.
pub(super) const UNSAID: usize = usize::MAX - 1;

/// The connections to one worker.
#[derive(Default)]
pub(super) struct Connections {
    open: RefCell<Vec<Rc<Http2>>>,
    /// Whether one is on its way.
    opening: Cell<bool>,
    /// The worker is gone, and so are its connections.
    cut: Cell<bool>,
    /// There may be room.
    changed: Notify,
}

/// A connection.
struct Http2 {
    sender: SendRequest<RequestBody>,
    streams: Rc<Streams>,
    /// Its streams.
    active: Cell<usize>,
    /// When the last of its streams ended.
    rests_since: Cell<Instant>,
    /// The worker takes no more streams on it: it is leaving.
    leaving: Cell<bool>,
}

/// A stream: it counts until it is dropped.
pub(super) struct Stream {
    connection: Rc<Http2>,
    connections: Rc<Connections>,
}

/// The right to open one more connection.
pub(super) struct Opening(Rc<Connections>);

/// What there is for a request.
pub(super) enum Room {
    /// A stream.
    Stream(SendRequest<RequestBody>, Stream),
    /// Another connection is needed, and is the asker's to open.
    Opening(Opening),
    /// A connection is on its way, or all streams of all are taken: see `changed`.
    Wait,
    /// The worker is gone.
    Cut,
}

impl Connections {
    /// A stream where there is one now.
    pub(super) fn stream(self: &Rc<Self>) -> Option<(SendRequest<RequestBody>, Stream)> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.is_over());
        let connection = open.iter().find(|connection| connection.has_room())?;
        Some(connection.stream(self))
    }

    /// What there is for a request.
    pub(super) fn room(self: &Rc<Self>) -> Room {
        if let Some((sender, stream)) = self.stream() {
            return Room::Stream(sender, stream);
        }
        let open = self.open.borrow();
        let unsaid = open.iter().any(|connection| connection.streams() == UNSAID);
        match () {
            () if self.cut.get() => Room::Cut,
            () if self.opening.get() || unsaid || MOST_CONNECTIONS <= open.len() => Room::Wait,
            () => {
                self.opening.set(true);
                Room::Opening(Opening(self.clone()))
            }
        }
    }

    /// Whether every stream is taken and there may be no more connections.
    pub(super) fn is_full(&self) -> bool {
        let open = self.open.borrow();
        MOST_CONNECTIONS <= open.len() && open.iter().all(|connection| connection.streams() != UNSAID)
    }

    /// Ends when there may be room that was not there when this was called.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Somebody who waits is to look again: all of them, for a connection has room for many.
    fn look_again(&self) {
        self.changed.notify_waiters();
    }

    /// The worker is gone.
    pub(super) fn cut(&self) {
        self.cut.set(true);
        self.open.borrow_mut().clear();
        self.look_again();
    }

    /// Closes what had no stream for a while.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut kept = false;
        self.open.borrow_mut().retain(|connection| {
            let rests = connection.active.get() == 0
                && MAX_IDLE <= now.saturating_duration_since(connection.rests_since.get());
            let ends = connection.is_over() || rests && kept;
            kept |= !ends;
            !ends
        });
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty() && !self.opening.get()
    }
}

impl Http2 {
    /// How many streams it may have.
    fn streams(&self) -> usize {
        self.streams.0.get()
    }

    /// Whether no stream begins on it any more. Those that it has go on.
    fn is_over(&self) -> bool {
        self.leaving.get() || self.sender.is_closed()
    }

    fn has_room(&self) -> bool {
        let streams = self.streams();
        streams != UNSAID && self.active.get() < streams.min(MOST_STREAMS) && self.sender.is_ready()
    }

    fn stream(self: &Rc<Self>, connections: &Rc<Connections>) -> (SendRequest<RequestBody>, Stream) {
        self.active.set(self.active.get() + 1);
        (self.sender.clone(), Stream { connection: self.clone(), connections: connections.clone() })
    }
}

impl Stream {
    /// The worker takes no more streams on this connection.
    pub(super) fn is_the_last(&self) {
        self.connection.leaving.set(true);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let active = self.connection.active.get() - 1;
        self.connection.active.set(active);
        if active == 0 {
            self.connection.rests_since.set(Instant::now());
        }
        self.connections.changed.notify_one();
    }
}

impl Opening {
    /// What runs the connection.
    pub(super) fn driver(&self) -> Driver {
        Driver { connections: self.0.clone(), streams: Rc::default(), ask: Rc::default() }
    }

    /// The connection is there: its first stream.
    ///
    /// # Errors
    /// It ended before its worker said how many streams it may have.
    pub(super) async fn opened(
        self,
        driver: &Driver,
        mut sender: SendRequest<RequestBody>,
    ) -> Result<Stream, hyper::Error> {
        let connections = self.0.clone();
        let connection = Rc::new(Http2 {
            sender: sender.clone(),
            streams: driver.streams.clone(),
            active: Cell::new(0),
            rests_since: Cell::new(Instant::now()),
            leaving: Cell::new(false),
        });
        if !connections.cut.get() {
            connections.open.borrow_mut().push(connection.clone());
        }
        drop(self);
        let (_, stream) = connection.stream(&connections);
        loop {
            let changed = connections.changed();
            if connection.streams() != UNSAID {
                return Ok(stream);
            }
            if sender.is_closed() {
                sender.ready().await?;
            }
            changed.await;
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(false);
        self.0.look_again();
    }
}

/// How many streams a connection may have, as its worker said last.
struct Streams(Cell<usize>);

impl Default for Streams {
    fn default() -> Self {
        Self(Cell::new(UNSAID))
    }
}

/// Runs hyper's tasks of a connection on the thread they belong to. One of them hears how many streams the worker takes.
#[derive(Clone)]
pub(super) struct Driver {
    connections: Rc<Connections>,
    streams: Rc<Streams>,
    /// Asks the connection.
    ask: Rc<OnceCell<Ask>>,
}

/// Asks a connection how many streams it may have; `None`: it runs just now, or has ended.
type Ask = Box<dyn Fn() -> Option<usize>>;

impl Driver {
    /// Runs a connection until it ends or is cut. Whoever uses it learns of an error by the request.
    pub(super) fn drive<T>(&self, connection: Connection<T, RequestBody, Self>) -> AbortHandle
    where
        T: Read + Write + Unpin + 'static,
    {
        let connection = Rc::new(RefCell::new(connection));
        let asked = Rc::downgrade(&connection); // it has this driver
        let _ = self
            .ask
            .set(Box::new(move || Some(asked.upgrade()?.try_borrow().ok()?.current_max_send_streams())));
        let driver = self.clone();
        let runs = async move {
            let _ = poll_fn(|cx| Pin::new(&mut *connection.borrow_mut()).poll(cx)).await;
            driver.connections.look_again();
        };
        self.listen();
        tokio::task::spawn_local(runs).abort_handle()
    }

    fn listen(&self) {
        let Some(streams) = self.ask.get().and_then(|ask| ask()) else { return };
        if self.streams.0.replace(streams) != streams {
            self.connections.look_again();
        }
    }
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Driver {
    fn execute(&self, future: F) {
        let driver = self.clone();
        tokio::task::spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                driver.listen();
                polled
            })
            .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use h2::server;
    use tokio::net::TcpListener;
    use tokio::task::{LocalSet, spawn_local};

    use crate::metrics::Metrics;
    use crate::outbox::Outbox;
    use crate::pool::Upstreams;
    use crate::worker::Worker;

    use super::*;

    /// A worker that takes one stream at a time on a connection, and the connections to it that are open.
    async fn worker() -> (Arc<Worker>, Rc<Cell<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let worker = Worker::new("of-http2-pools", listener.local_addr().expect("an address"));
        let open = Rc::new(Cell::new(0));
        let count = open.clone();
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = count.clone();
                count.set(count.get() + 1);
                spawn_local(async move {
                    let builder = server::Builder::new().max_concurrent_streams(1).clone();
                    let mut connection = builder.handshake::<_, bytes::Bytes>(stream).await.expect("HTTP/2");
                    while connection.accept().await.is_some() {}
                    count.set(count.get() - 1);
                });
            }
        });
        (worker, open)
    }

    async fn becomes(open: &Cell<usize>, wanted: usize) {
        while open.get() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn all_connections_but_one_end_when_they_are_idle() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        LocalSet::new().block_on(&runtime.expect("a runtime"), async {
            let (worker, open) = worker().await;
            let upstreams = Upstreams::new(Metrics::default().shard(), Rc::new(Outbox::default()));
            let mut streams = Vec::new();
            for _ in 0..3 {
                assert!(upstreams.stream(&worker).is_none(), "each has one stream");
                let stream = upstreams.http2(&worker, Duration::from_secs(1)).await;
                streams.push(stream.unwrap_or_else(|error| panic!("a stream: {error}")));
            }
            becomes(&open, 3).await;
            streams.truncate(1);
            upstreams.close_idle(Instant::now() + MAX_IDLE / 2);
            assert!(upstreams.stream(&worker).is_some(), "they rest");
            upstreams.close_idle(Instant::now() + 2 * MAX_IDLE);
            becomes(&open, 1).await;
            assert!(upstreams.stream(&worker).is_none(), "the one that is left has its stream");
            streams.clear();
            upstreams.close_idle(Instant::now() + 2 * MAX_IDLE);
            assert!(upstreams.stream(&worker).is_some(), "and stays");
            upstreams.cut(worker.id);
            becomes(&open, 0).await;
        });
    }
}
