//! HTTP/2 to a client, over the `h2` crate: many requests at a time on a connection (RFC 9113).
//!
//! `h2` keeps frames, streams and windows in order. `strict` reads a client's bytes before it does (`frames`, `hpack`,
//! `huffman`, `block`), for what `h2` and `http` would pass over without a word. `content` is what follows a request's head,
//! `answer` serves one request, `refusal` reads how a worker ends a stream, `room` bounds what answers hold that nobody reads. A connection is one task, whose parts
//! (`wakes`) are looked at when they have something to do; `alive` asks a silent client whether it is there.

mod alive;
mod answer;
mod block;
mod content;
mod frames;
mod hpack;
mod huffman;
mod refusal;
mod room;
mod strict;
mod wakes;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;

use self::alive::{Alive, Over};
use self::answer::{Shared, Taken, exchange};
use self::block::{Fault, MOST_BYTES};
use self::room::{Part, Room};
use self::strict::{Findings, Head, Strict};
use crate::connection::{Client, Holding, Watched};
use crate::record::Exchange;
use crate::rejection::Rejection;
use crate::thread::DataThread;

pub use self::answer::Respond;
pub use self::content::Incoming;
pub use self::refusal::{Refusal, is_of_a_stream, refusal};
pub use self::room::LITTLE;

/// Requests one connection may have in flight.
const MAX_STREAMS: u32 = 100;
/// What a client may send of one request, and of all, before somebody takes it.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// What the heads of the requests of one connection may take of memory until they are answered. A client that sends more
/// is asked to send the request again later.
const MAX_HEADS: usize = 1 << 20;
/// What a request takes of memory besides its head, until it has its answer.
const EXCHANGE: usize = 12 << 10;
/// What a connection takes besides what every connection does: tables of fields and buffers of frames.
const BASE: usize = 24 << 10;
/// A connection whose parts keep each other busy goes on after the others had their turn.
const ROUNDS: usize = 4;

/// Serves a connection until it ends.
///
/// # Errors
/// What broke it off.
pub async fn serve(thread: &Rc<DataThread>, client: &Rc<Client>, stream: Watched) -> Result<(), h2::Error> {
    let findings = Rc::<Findings>::default();
    let stream = Strict::new(stream, findings.clone());
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MOST_BYTES).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let handshake = builder.handshake(stream);
    let Some(connection) = client.activity.unless_closing(handshake).await else { return Ok(()) };
    client.activity.speaks_http2();
    let _holding = Holding::of_protocol(client.activity.clone(), BASE);
    let shared = Shared {
        thread: thread.clone(),
        client: client.clone(),
        findings,
        room: Rc::new(Room::new(client.activity.clone())),
        heads: Cell::new(0),
    };
    let mut server = Server::new(connection?, shared);
    poll_fn(|cx| server.poll(cx)).await
}

type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// A connection whose client has said what it speaks.
struct Server {
    connection: Connection<Strict<Watched>, Part>,
    exchanges: FuturesUnordered<Serving>,
    alive: Alive,
    shared: Rc<Shared>,
    parts: Parts,
    /// Whether the client was told to send no further requests.
    told: bool,
    /// Whether none that it sent before that can be on its way.
    farewell: bool,
    /// Whether the connection ends without regard to what is in flight.
    cut: bool,
}

/// What of a connection's task may have something to do.
struct Parts {
    task: Arc<wakes::Task>,
    frames: wakes::Part,
    exchanges: wakes::Part,
    alive: wakes::Part,
}

impl Server {
    fn new(mut connection: Connection<Strict<Watched>, Part>, shared: Shared) -> Self {
        let task = Arc::<wakes::Task>::default();
        let parts = Parts { frames: task.part(), exchanges: task.part(), alive: task.part(), task };
        shared.client.activity.listen(&Context::from_waker(parts.frames.waker()));
        Self {
            alive: Alive::new(connection.ping_pong()),
            connection,
            exchanges: FuturesUnordered::new(),
            shared: Rc::new(shared),
            parts,
            told: false,
            farewell: false,
            cut: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.parts.task.runs(cx);
        let ended = self.poll_parts(cx);
        self.parts.task.waits();
        ended
    }

    fn poll_parts(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        for _ in 0..ROUNDS {
            let answered = self.parts.exchanges.begin();
            if answered {
                self.poll_exchanges();
            }
            let asked = self.parts.alive.begin();
            if asked {
                self.poll_alive();
            }
            if self.parts.frames.begin() {
                if let Poll::Ready(ended) = self.poll_frames() {
                    return Poll::Ready(ended);
                }
            } else if !answered && !asked {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_exchanges(&mut self) {
        let waker = self.parts.exchanges.waker().clone();
        while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(&mut Context::from_waker(&waker)) {}
    }

    fn poll_alive(&mut self) {
        let waker = self.parts.alive.waker().clone();
        let mut cx = Context::from_waker(&waker);
        while let Poll::Ready(over) = self.alive.poll(&mut cx, || self.shared.findings.was_heard()) {
            match over {
                Over::Gone => self.cut(Reason::NO_ERROR),
                Over::Farewell => self.farewell = true,
            }
            self.parts.frames.waker().wake_by_ref();
        }
    }

    /// Ends the connection at once.
    fn cut(&mut self, reason: Reason) {
        self.cut = true;
        self.connection.abrupt_shutdown(reason);
        self.parts.frames.waker().wake_by_ref();
    }

    /// Reads, takes requests, and writes.
    fn poll_frames(&mut self) -> Poll<Result<(), h2::Error>> {
        let waker = self.parts.frames.waker().clone();
        let mut cx = Context::from_waker(&waker);
        if self.shared.client.activity.is_closing() && !std::mem::replace(&mut self.told, true) {
            self.connection.graceful_shutdown();
            self.alive.farewell();
            self.parts.alive.waker().wake_by_ref();
            if self.shared.client.activity.is_shed() {
                self.cut(Reason::NO_ERROR); // the client sends what was on its way elsewhere
            }
        }
        loop {
            match self.connection.poll_accept(&mut cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.take(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    if error.is_library() {
                        self.refused(Rejection::BadRequest("the client broke a rule of HTTP/2"));
                    }
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
            if !self.shared.findings.has_heads() {
                break;
            }
        }
        self.note_refused();
        match self.shared.findings.violation() {
            Some(reason) if !self.cut => {
                self.refused(Rejection::BadRequest("the client broke a rule of HTTP/2"));
                self.cut(reason);
            }
            // A client that reads nothing does not say that it has read the farewell.
            None if self.farewell && !self.cut && !self.connection.has_streams() => {
                self.cut(Reason::NO_ERROR)
            }
            _ => {}
        }
        self.shared.client.activity.reads_fields(self.shared.findings.unfinished());
        if self.shared.findings.next_turn() {
            waker.wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes a request on.
    fn take(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Part>) {
        let stream = respond.stream_id().as_u32();
        let Some(found) = self.shared.findings.head(stream) else {
            respond.send_reset(Reason::INTERNAL_ERROR); // what was not read by our rules goes nowhere
            return self.refused(Rejection::Internal);
        };
        if MAX_HEADS < self.shared.heads.get() + found.memory {
            respond.send_reset(Reason::REFUSED_STREAM); // the client may send it again
            return self.refused(Rejection::HeadersTooLarge);
        }
        let mut holding = Holding::of_head(self.shared.client.activity.clone());
        let refused = match found.fault {
            Some(fault) => Some(fault.rejection()),
            None if !holding.may_become(EXCHANGE + found.memory / 2 * 3) => Some(Rejection::MemoryLimit),
            None => None,
        };
        let taken = Taken { found, refused, holding };
        let exchange = exchange(self.shared.clone(), request, respond, taken);
        self.exchanges.push(Box::pin(exchange));
        self.parts.exchanges.waker().wake_by_ref();
    }

    /// What `h2` refuses by a reset has no answer, but is counted and told like all that is refused.
    fn note_refused(&mut self) {
        if !self.shared.findings.has_heads() {
            return;
        }
        for Head { fault, .. } in self.shared.findings.refused() {
            if self.told {
                continue; // the client may send it again elsewhere
            }
            let malformed = Rejection::BadRequest("the request is malformed");
            self.refused(fault.map_or(malformed, Fault::rejection));
        }
    }

    fn refused(&self, rejection: Rejection) {
        Exchange::begin(self.shared.thread.clone(), self.shared.client.clone()).rejected(rejection);
    }
}

#[cfg(test)]
mod tests;
