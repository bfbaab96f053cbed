//! One data thread's connections to workers: per worker a stack of idle HTTP/1.1 connections, the warmest on
//! top, and the HTTP/2 connections that its requests need (`http2`). A connection never leaves its thread.

mod http2;
mod wire;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hyper::client::conn;
use hyper_util::rt::{TokioIo, TokioTimer};
use smallvec::SmallVec;
use tokio::task::AbortHandle;

use self::http2::{CONNECTION_WINDOW, Connections, Opening, Room, STREAM_WINDOW, UNSAID};
pub use self::wire::Wire;
use self::wire::{dial, dial_worker};
use crate::body::RequestBody;
use crate::descriptors;
use crate::http1;
use crate::metrics::Shard;
use crate::outbox::{Outbox, Stream};
use crate::protocol::{self, Needs, Speaks};
use crate::worker::Worker;

/// A connection that rested for longer gets no request that cannot be repeated: it is not worth the risk.
pub const MAX_IDLE_ONCE: Duration = Duration::from_secs(1);
/// Idle connections kept per worker.
const MAX_IDLE_PER_WORKER: usize = 256;

/// The connections of one data thread.
pub struct Upstreams {
    pools: Pools,
    buffers: Rc<http1::Buffers>,
    outbox: Rc<Outbox>,
    shard: Arc<Shard>,
}

/// By the worker's id.
type Pools = Rc<RefCell<HashMap<u32, Pool, FixedState>>>;

/// The connections to one worker. Small: over hundreds of workers none is in the cache when it is asked.
#[derive(Default)]
struct Pool {
    /// HTTP/1.1 connections, those that rested longest first; taken from the end.
    idle: SmallVec<[http1::Connection; 1]>,
    more: Box<More>,
}

/// What not every request asks for.
#[derive(Default)]
struct More {
    http2: Rc<Connections>,
    /// Every connection to the worker, idle or in use.
    open: Vec<Open>,
}

enum Open {
    Http1(http1::Closer),
    Http2(AbortHandle),
}

/// A connection that one request uses.
pub enum Connection {
    /// HTTP/1.1: this request's alone.
    Http1(Lease),
    /// HTTP/2: one of its streams.
    Http2(conn::http2::SendRequest<RequestBody>, Lease),
}

/// The use of a connection by one request.
pub struct Lease {
    held: Held,
    worker: u32,
    pools: Pools,
    /// Whether the connection was used before.
    pub reused: bool,
    /// Whether the request waited for another to end on it.
    pub waited: bool,
}

enum Held {
    Http1(http1::Connection),
    /// Counts the stream until it is dropped.
    Stream(http2::Stream),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("cannot connect: {0}")]
    Refused(io::Error),
    /// This machine is out of descriptors, ports or memory, which says nothing of the worker.
    #[error("cannot connect: this machine is out of descriptors, ports or memory: {0}")]
    Exhausted(io::Error),
    /// It took too long.
    #[error("the connection was not accepted in time")]
    Timeout,
    /// The HTTP/2 preface failed.
    #[error("no HTTP/2 connection: {0}")]
    Handshake(hyper::Error),
}

impl Upstreams {
    /// No connections yet; those to come send by way of `outbox`.
    pub fn new(shard: Arc<Shard>, outbox: Rc<Outbox>) -> Self {
        let buffers = Rc::new(http1::Buffers::new(outbox.clone()));
        Self { pools: Rc::default(), buffers, outbox, shard }
    }

    /// What its HTTP/1.1 connections borrow.
    pub fn buffers(&self) -> &http1::Buffers {
        &self.buffers
    }

    /// The same, for connections of clients.
    pub fn shared_buffers(&self) -> Rc<http1::Buffers> {
        self.buffers.clone()
    }

    /// An idle HTTP/1.1 connection, the one used last, unless that was longer ago than `longest`.
    pub fn idle(&self, worker: &Worker, longest: Option<Duration>) -> Option<Lease> {
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.get_mut(&worker.id)?.idle;
        loop {
            let connection = idle.last()?;
            if longest.is_some_and(|longest| longest < connection.rests_since().elapsed()) {
                return None; // those below it stood idle for longer still
            }
            let connection = idle.pop()?;
            if connection.is_reusable() && connection.is_open_now() {
                return Some(self.lease(worker, Held::Http1(connection), true));
            }
        }
    }

    /// What the worker speaks, where the policy does not say: see `protocol::learn`.
    ///
    /// # Errors
    /// That the worker does not accept a connection, in time.
    pub async fn ask(&self, worker: &Worker, needs: Needs, limit: Duration) -> Result<Speaks, ConnectError> {
        protocol::learn(worker, needs, || self.within(limit, dial_worker(worker))).await
    }

    /// A new HTTP/1.1 connection.
    ///
    /// # Errors
    /// That the worker does not accept one, in time.
    pub async fn connect(&self, worker: &Worker, limit: Duration) -> Result<Lease, ConnectError> {
        Box::pin(self.new_http1(worker, limit)).await // rare and large: requests are moved without it
    }

    async fn new_http1(&self, worker: &Worker, limit: Duration) -> Result<Lease, ConnectError> {
        let stream = self.within(limit, dial_worker(worker)).await?;
        let connection = http1::Connection::new(stream, self.buffers.clone());
        self.note(worker, Open::Http1(connection.closer()));
        Ok(self.lease(worker, Held::Http1(connection), false))
    }

    /// A stream on an HTTP/2 connection, where there is one now.
    pub fn stream(&self, worker: &Worker) -> Option<Connection> {
        let (sender, stream) = self.pools.borrow().get(&worker.id)?.more.http2.stream()?;
        Some(Connection::Http2(sender, self.lease(worker, Held::Stream(stream), true)))
    }

    /// A stream on an HTTP/2 connection. Waits for one while all are taken, or for a connection that is accepted within
    /// `limit`.
    ///
    /// # Errors
    /// As `connect`, or that the worker does not speak HTTP/2.
    pub async fn http2(&self, worker: &Worker, limit: Duration) -> Result<Connection, ConnectError> {
        let connections = self.pools.borrow_mut().entry(worker.id).or_default().more.http2.clone();
        let mut waited = false;
        loop {
            let changed = connections.changed();
            match connections.room() {
                Room::Stream(sender, stream) => {
                    let held = Held::Stream(stream);
                    return Ok(Connection::Http2(sender, Lease { waited, ..self.lease(worker, held, true) }));
                }
                Room::Opening(opening) => return self.open_http2(worker, limit, opening).await,
                Room::Cut => return Err(ConnectError::Refused(io::ErrorKind::ConnectionAborted.into())),
                Room::Wait => {
                    waited |= connections.is_full();
                    changed.await;
                }
            }
        }
    }

    /// Whether a worker takes no more streams than it has.
    pub fn is_full(&self, worker: &Worker) -> bool {
        self.pools.borrow().get(&worker.id).is_some_and(|pool| pool.more.http2.is_full())
    }

    async fn open_http2(
        &self,
        worker: &Worker,
        limit: Duration,
        opening: Opening,
    ) -> Result<Connection, ConnectError> {
        let over = |stream| Stream::new(stream, self.outbox.clone());
        let stream = self.within(limit, dial(worker, true, over)).await?;
        let driver = opening.driver();
        let handshake = conn::http2::Builder::new(driver.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(UNSAID)
            .max_header_list_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .handshake(TokioIo::new(stream));
        let (sender, connection) = match tokio::time::timeout(limit, handshake).await {
            Ok(done) => done.map_err(ConnectError::Handshake)?,
            Err(_) => return Err(ConnectError::Timeout),
        };
        self.note(worker, Open::Http2(driver.drive(connection)));
        let stream = opening.opened(&driver, sender.clone()).await.map_err(ConnectError::Handshake)?;
        Ok(Connection::Http2(sender, self.lease(worker, Held::Stream(stream), false)))
    }

    /// A connection for one upgraded exchange; it is never pooled.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn dedicated(&self, worker: &Worker, limit: Duration) -> Result<Wire, ConnectError> {
        self.within(limit, dial(worker, false, |stream| stream)).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        dialled: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ConnectError> {
        self.shard.connects.add(1);
        match tokio::time::timeout(limit, dialled).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if descriptors::exhausted(&error) => {
                self.shard.connects_exhausted.add(1);
                Err(ConnectError::Exhausted(error))
            }
            Ok(Err(error)) => Err(ConnectError::Refused(error)),
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    fn lease(&self, worker: &Worker, held: Held, reused: bool) -> Lease {
        Lease { held, worker: worker.id, pools: self.pools.clone(), reused, waited: false }
    }

    fn note(&self, worker: &Worker, open: Open) {
        self.pools.borrow_mut().entry(worker.id).or_default().more.open.push(open);
    }

    /// Ends every connection to a worker, whatever runs on it.
    pub fn cut(&self, worker: u32) {
        if let Some(pool) = self.pools.borrow_mut().remove(&worker) {
            pool.more.open.iter().for_each(Open::close);
            pool.more.http2.cut();
        }
    }

    /// Closes what nobody used for a while, and what the worker closed.
    pub fn close_idle(&self, now: Instant) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.idle.retain(|connection| {
                connection.is_open() && now.duration_since(connection.rests_since()) < connection.rests_for()
            });
            let More { http2, open } = &mut *pool.more;
            http2.close_idle(now);
            open.retain(|open| !open.is_closed());
            !pool.idle.is_empty() || !http2.is_empty() || !open.is_empty()
        });
    }
}

impl Open {
    fn close(&self) {
        match self {
            Self::Http1(closer) => closer.close(),
            Self::Http2(task) => task.abort(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(closer) => closer.is_closed(),
            Self::Http2(task) => task.is_finished(),
        }
    }
}

impl Lease {
    /// The connection, where it is one of HTTP/1.1.
    pub fn http1(&self) -> Option<&http1::Connection> {
        match &self.held {
            Held::Http1(connection) => Some(connection),
            Held::Stream(_) => None,
        }
    }

    /// The worker takes no more requests on this connection.
    pub fn is_the_last(&self) {
        match &self.held {
            Held::Http1(_) => {}
            Held::Stream(stream) => stream.is_the_last(),
        }
    }

    /// The request is over and its answer was read whole: the connection may serve another.
    pub fn give_back(self, now: Instant) {
        let Held::Http1(connection) = self.held else { return };
        if !connection.is_reusable() {
            return;
        }
        connection.rest(now);
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.entry(self.worker).or_default().idle;
        if idle.len() < MAX_IDLE_PER_WORKER {
            idle.push(connection);
        }
    }
}
