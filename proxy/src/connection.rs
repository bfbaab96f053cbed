//! A client's connection: which protocol it speaks, and how long it may take for what.
//!
//! No request arms a timer for its connection. Every connection notes in which phase it is and since which
//! tick; once a tick the thread looks at all of them and ends those that overstay.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use crate::client::Peer;
use crate::siblings::Arrival;
use crate::thread::TICK;

/// How long a client may take, whatever the policy says.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a head to its end, and for the TLS handshake.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// How long a client may leave what was sent to it unread.
    pub stall: Duration,
    /// Connections open at once, in this thread.
    pub connections: usize,
}

/// The connection a request came on.
pub struct Client {
    /// Who is at its other end.
    pub peer: Peer,
    /// What it is doing.
    pub activity: Arc<Activity>,
    /// Which port it came to.
    pub arrival: Arrival,
}

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// What a connection is doing, and since which tick.
pub struct Activity {
    clock: Arc<AtomicU32>,
    phase: AtomicU8,
    since: AtomicU32,
    /// The tick after which nothing could be written; 0: nothing waits to be written.
    blocked: AtomicU32,
    requests: AtomicU32,
    /// HTTP/2 frames between requests are no head.
    http2: AtomicBool,
    closing: AtomicBool,
    waker: AtomicWaker,
}

impl Activity {
    fn new(clock: Arc<AtomicU32>) -> Self {
        Self {
            phase: AtomicU8::new(HEAD),
            since: AtomicU32::new(clock.load(Relaxed)),
            clock,
            blocked: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// A request's head has been read.
    pub fn request_began(&self) {
        self.requests.store(self.requests.load(Relaxed) + 1, Relaxed);
        self.phase.store(REQUEST, Relaxed);
    }

    /// A request's answer has ended.
    pub fn request_ended(&self) {
        let left = self.requests.load(Relaxed).saturating_sub(1);
        self.requests.store(left, Relaxed);
        if left == 0 {
            self.enter(IDLE);
        }
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Relaxed);
        self.since.store(self.clock.load(Relaxed), Relaxed);
    }

    fn read(&self) {
        if self.phase.load(Relaxed) == IDLE && !self.http2.load(Relaxed) {
            self.enter(HEAD);
        }
    }

    fn wrote(&self, pending: bool) {
        if !pending {
            self.blocked.store(0, Relaxed);
        } else if self.blocked.load(Relaxed) == 0 {
            self.blocked.store(self.clock.load(Relaxed).max(1), Relaxed);
        }
    }

    /// It speaks HTTP/2, and its first request may take its time.
    pub fn speaks_http2(&self) {
        self.http2.store(true, Relaxed);
        self.enter(IDLE);
    }

    /// No further requests: the next answer, or GOAWAY, tells the client.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.waker.wake();
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.clock.load(Relaxed);
        let over = |since: u32, limit: Duration| limit < TICK * now.saturating_sub(since);
        let since = self.since.load(Relaxed);
        let blocked = self.blocked.load(Relaxed);
        if blocked != 0 && over(blocked, limits.stall) {
            return Verdict::Cut;
        }
        match self.phase.load(Relaxed) {
            HEAD if over(since, limits.head) => Verdict::Cut,
            IDLE if over(since, limits.idle + limits.head) => Verdict::Cut,
            IDLE if over(since, limits.idle) => Verdict::Close,
            _ => Verdict::Stay,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    /// Gracefully.
    Close,
    /// At once.
    Cut,
}

/// The connections of one data thread.
pub struct Connections {
    clock: Arc<AtomicU32>,
    started: Instant,
    limits: Limits,
    open: RefCell<HashMap<u64, Open, foldhash::fast::FixedState>>,
    next: Cell<u64>,
}

struct Open {
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            clock: Arc::new(AtomicU32::new(1)),
            started: Instant::now(),
            limits,
            open: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// Whether one more may be accepted.
    pub fn room(&self) -> bool {
        self.open.borrow().len() < self.limits.connections
    }

    /// Runs a connection until it ends or is ended.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        arrival: Arrival,
        serve: impl FnOnce(Rc<Client>) -> F,
    ) {
        let activity = Arc::new(Activity::new(self.clock.clone()));
        let client = Rc::new(Client { peer, activity: activity.clone(), arrival });
        let id = self.next.replace(self.next.get() + 1);
        let task = tokio::task::spawn_local(serve(client)).abort_handle();
        self.open.borrow_mut().insert(id, Open { activity, task });
    }

    /// Tells every connection to take no further requests.
    pub fn close_all(&self) {
        for open in self.open.borrow().values() {
            open.activity.close();
        }
    }

    /// Moves the clock and ends what overstays.
    pub fn tick(&self, now: Instant) {
        let ticks = now.duration_since(self.started).as_millis() / TICK.as_millis();
        self.clock.store(u32::try_from(ticks).unwrap_or(u32::MAX).max(1), Relaxed);
        self.open.borrow_mut().retain(|_, open| {
            match open.activity.verdict(&self.limits) {
                Verdict::Stay => {}
                Verdict::Close => open.activity.close(),
                Verdict::Cut => open.task.abort(),
            }
            !open.task.is_finished()
        });
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.borrow().values().all(|open| open.task.is_finished())
    }
}

/// A hyper connection that can be asked to end after what is in flight.
pub trait Graceful: Future<Output = hyper::Result<()>> {
    /// Asks.
    fn shut_down(self: Pin<&mut Self>);
}

/// Runs a hyper connection and passes on the wish to close it.
pub struct Drive {
    connection: Pin<Box<dyn Graceful>>,
    activity: Arc<Activity>,
    told: bool,
}

impl Drive {
    /// Runs `connection`.
    pub fn new(connection: impl Graceful + 'static, activity: Arc<Activity>) -> Self {
        Self { connection: Box::pin(connection), activity, told: false }
    }
}

impl Future for Drive {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.activity.waker.register(cx.waker());
        if self.activity.closing.load(Relaxed) && !self.told {
            self.told = true;
            self.connection.as_mut().shut_down();
        }
        self.connection.as_mut().poll(cx)
    }
}

/// A client's stream that notes what it does, with the bytes that were read to learn its protocol put back.
pub struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    peeked: Peeked,
}

/// The first bytes of a connection.
#[derive(Default)]
pub struct Peeked {
    bytes: [u8; PREFACE.len()],
    start: usize,
    end: usize,
}

/// What every HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Peeked {
    /// Reads until it is clear whether the client speaks HTTP/2.
    ///
    /// # Errors
    /// The stream's.
    pub async fn is_http2(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        use tokio::io::AsyncReadExt;
        while self.end < PREFACE.len() {
            let n = stream.read(&mut self.bytes[self.end..]).await?;
            self.end += n;
            if n == 0 || self.bytes[..self.end] != PREFACE[..self.end] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<S> Watched<S> {
    /// Watches `stream`.
    pub fn new(stream: S, activity: Arc<Activity>, peeked: Peeked) -> Self {
        Self { stream, activity, peeked }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let peeked = &mut this.peeked;
        if peeked.start < peeked.end {
            let n = buf.remaining().min(peeked.end - peeked.start);
            buf.put_slice(&peeked.bytes[peeked.start..peeked.start + n]);
            peeked.start += n;
            this.activity.read();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if before < buf.filled().len() {
            this.activity.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.activity.wrote(wrote.is_pending());
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.activity.wrote(wrote.is_pending());
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_pending() {
            self.activity.wrote(true);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(30),
        connections: 1,
    };

    fn after(activity: &Activity, time: Duration) -> Verdict {
        let ticks = u32::try_from(time.as_millis() / TICK.as_millis()).expect("small");
        activity.clock.fetch_add(ticks + 1, Relaxed);
        activity.verdict(&LIMITS)
    }

    fn activity() -> Activity {
        Activity::new(Arc::new(AtomicU32::new(1)))
    }

    #[test]
    fn a_head_that_does_not_end_is_cut() {
        assert_eq!(after(&activity(), LIMITS.head), Verdict::Cut);
        let slow = activity();
        slow.request_began();
        slow.request_ended();
        assert_eq!(after(&slow, LIMITS.head), Verdict::Stay);
        slow.read();
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Stay);
        slow.read(); // one more byte buys no more time
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Cut);
    }

    #[test]
    fn a_request_may_take_what_the_policy_says() {
        let busy = activity();
        busy.request_began();
        assert_eq!(after(&busy, LIMITS.idle * 10), Verdict::Stay);
        busy.request_ended();
        assert_eq!(after(&busy, LIMITS.idle), Verdict::Close);
        assert_eq!(after(&busy, LIMITS.head), Verdict::Cut);
    }

    #[test]
    fn a_client_that_does_not_read_is_cut() {
        let full = activity();
        full.request_began();
        full.wrote(true);
        assert_eq!(after(&full, LIMITS.stall / 2), Verdict::Stay);
        full.wrote(true);
        assert_eq!(after(&full, LIMITS.stall / 2), Verdict::Cut);
        full.wrote(false);
        assert_eq!(full.verdict(&LIMITS), Verdict::Stay);
    }

    #[tokio::test]
    async fn the_preface_is_told_from_a_request() {
        let mut peeked = Peeked::default();
        assert!(peeked.is_http2(&mut &PREFACE[..]).await.expect("reads"));
        let mut peeked = Peeked::default();
        assert!(!peeked.is_http2(&mut &b"PRI * HTTP/1.1\r\n"[..]).await.expect("reads"));
        assert_eq!(&peeked.bytes[..peeked.end], b"PRI * HTTP/1.1\r\n");
    }
}
