//! HTTP/1.1 to a worker: one request at a time on a connection.
//!
//! A connection that rests is its socket and a few words. What a request needs besides, it borrows from its thread
//! (`buffers`) or keeps itself, so hundreds of connections touch no more memory than the requests in flight do.
//! `request` writes, `head` and `chunked` read: those three know bytes and nothing of sockets. `upload` sends a request,
//! `body` is what follows the head of an answer.

mod body;
pub(super) mod head;
mod request;
mod upload;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use self::upload::Upload;
use super::buffers::joined;
use super::message::Failed;
use super::{BLOCK, Buffers, MAX_HEAD_BYTES};
use crate::body::{Broken, RequestBody};
use crate::interim::Interim;
use crate::outbox::Socket;
use crate::protocol;

pub use self::body::Body;

/// What ended an exchange before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket's.
    #[error("the connection broke: {0}")]
    Socket(io::Error),
    /// Before the answer was whole.
    #[error("the worker closed the connection before the end of its answer")]
    Closed,
    /// The proxy closed it.
    #[error("the connection was cut")]
    Cut,
    /// The client's body.
    #[error("the request's body broke off: {0}")]
    Body(Broken),
    /// The answer's.
    #[error("{0}")]
    Head(&'static str),
    /// Instead of an answer comes what a server of HTTP/2 begins with: nothing was done for the request.
    #[error("the worker speaks HTTP/2")]
    SpeaksHttp2,
    /// The answer's.
    #[error("the answer's chunks are malformed: {0}")]
    Chunk(&'static str),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing of the request left, its body was not touched.
    #[error("nothing was sent: {0}")]
    Unsent(io::Error),
    /// It left, at least in part, and the connection ended before a byte came back.
    #[error("nothing came back: {0}")]
    Unanswered(Error),
    /// It left, at least in part.
    #[error(transparent)]
    Lost(Error),
}

/// For how long a connection rests whose worker does not say: Node's servers close theirs after five seconds.
const UNTOLD: Duration = Duration::from_secs(4);

/// A connection to a worker.
pub struct Connection(Rc<Line>);

/// What those share who use a connection: whoever sends the request, and whoever reads the answer.
struct Line {
    socket: Socket,
    buffers: Rc<Buffers>,
    /// What is read of an answer at once.
    part: Cell<usize>,
    /// The last answer was read to its end, and neither it nor its request said that it is the last.
    reusable: Cell<bool>,
    cut: Cell<bool>,
    rests_since: Cell<Instant>,
    /// For how long nobody may use it and it is used again.
    rests_for: Cell<Duration>,
    /// Sends the rest of a request whose answer has begun.
    uploading: Cell<Option<AbortHandle>>,
}

/// Closes a connection whoever has it.
pub struct Closer(Weak<Line>);

impl Closer {
    /// Ends the connection and what runs on it.
    pub fn close(&self) {
        if let Some(line) = self.0.upgrade() {
            line.close();
        }
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl AsRef<Socket> for Line {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

impl Connection {
    /// A connection that nothing was sent on yet.
    pub fn new(stream: TcpStream, buffers: Rc<Buffers>) -> Self {
        Self(Rc::new(Line {
            socket: Socket::new(stream),
            buffers,
            part: Cell::new(BLOCK),
            reusable: Cell::new(true),
            cut: Cell::new(false),
            rests_since: Cell::new(Instant::now()),
            rests_for: Cell::new(UNTOLD),
            uploading: Cell::default(),
        }))
    }

    /// What closes it.
    pub fn closer(&self) -> Closer {
        Closer(Rc::downgrade(&self.0))
    }

    /// Whether it may be sent another request once what is still being sent has left.
    pub fn is_reusable(&self) -> bool {
        self.0.reusable.get() && self.0.socket.unsent() == 0
    }

    /// Nobody uses it from now on.
    pub fn rest(&self, now: Instant) {
        self.0.rests_since.set(now);
    }

    /// Since when nobody uses it.
    pub fn rests_since(&self) -> Instant {
        self.0.rests_since.get()
    }

    /// For how long nobody may use it and it is used again. The worker says so (`Keep-Alive: timeout=…`), or it is short: a
    /// request that is sent into a connection that is being closed is lost.
    pub fn rests_for(&self) -> Duration {
        self.0.rests_for.get()
    }

    /// Whether the worker left it open, as far as is known without asking the kernel. Nothing may come unasked.
    pub fn is_open(&self) -> bool {
        self.0.socket.is_quiet()
    }

    /// The same as of now. What came a moment ago would be taken for the answer to whatever is sent next.
    pub fn is_open_now(&self) -> bool {
        self.0.socket.is_quiet_now()
    }

    /// From the next answer so many bytes are read at once, and no more.
    pub fn take_at_most(&self, bytes: usize) {
        self.0.part.set(bytes);
    }

    /// Sends a request and waits for the head of its answer. The request's head stays where it is, its body is taken when
    /// it is read for the first time. What of it was not sent by then is sent while the answer is read.
    ///
    /// Dropped before its end, it leaves a connection that must not be used again.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        &self,
        request: &mut Request<RequestBody>,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        self.0.reusable.set(false);
        let mut exchange = Exchange {
            line: &self.0,
            is_head: request.method() == Method::HEAD,
            waiting: None,
            upload: Some(Upload::new(request, &self.0.buffers)),
            keeps_alive: true,
            received: Bytes::new(),
            heard: false,
            interim,
        };
        poll_fn(|cx| exchange.poll(cx)).await
    }
}

impl Line {
    /// What came; nothing at the end.
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Error>> {
        let read = ready!(self.buffers.poll_read(&mut &self.socket, self.part.get(), cx));
        Poll::Ready(if self.cut.get() { Err(Error::Cut) } else { read.map_err(Error::Socket) })
    }

    /// Whether a request that was answered early is still being sent.
    fn is_uploading(&self) -> bool {
        let uploading = self.uploading.take();
        let is_uploading = uploading.is_some();
        self.uploading.set(uploading);
        is_uploading
    }

    fn close(&self) {
        self.reusable.set(false);
        self.cut.set(true);
        if let Some(upload) = self.uploading.take() {
            upload.abort();
        }
        self.socket.shut_down();
    }

    /// Sends the rest of a request that was answered before its end.
    fn upload(self: &Rc<Self>, mut upload: Upload) {
        let line = self.clone();
        let task = tokio::task::spawn_local(async move {
            let still = upload.stands_still();
            let sent = tokio::select! {
                biased;
                sent = poll_fn(|cx| upload.poll(&line, cx)) => sent,
                () = still => Err(Failed::Content(Broken::Stalled)), // the worker takes no more of it
            };
            line.uploading.take();
            match sent {
                Ok(()) => {}
                Err(Failed::Socket(_)) => line.reusable.set(false), // the answer may be on its way still
                Err(Failed::Content(_)) => line.close(),
            }
        });
        self.uploading.set(Some(task.abort_handle()));
    }
}

/// A request on its way, until the head of its answer has come.
struct Exchange<'a> {
    line: &'a Rc<Line>,
    /// Whether the method is HEAD.
    is_head: bool,
    /// Until it is sent, or cannot be.
    upload: Option<Upload>,
    /// How many bytes of a request without a body wait for the end of the turn: all that it has.
    waiting: Option<usize>,
    keeps_alive: bool,
    /// What came of the answer.
    received: Bytes,
    /// Whether anything came.
    heard: bool,
    /// Where the answers before it go.
    interim: &'a Interim,
}

impl Exchange<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Body>, SendError>> {
        if let Some(upload) = &mut self.upload {
            match upload.poll(self.line, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.waiting = upload.head_alone();
                    self.line.buffers.give_back(self.upload.take().map(Upload::into_buffer))
                }
                Poll::Ready(Err(Failed::Content(broken))) => {
                    return Poll::Ready(Err(SendError::Lost(Error::Body(broken))));
                }
                Poll::Ready(Err(Failed::Socket(error))) if upload.is_untouched() => {
                    return Poll::Ready(Err(SendError::Unsent(error)));
                }
                Poll::Ready(Err(Failed::Socket(_))) => {
                    // A worker that has heard enough answers and closes: the answer may be there.
                    (self.upload, self.keeps_alive) = (None, false);
                }
            }
        }
        self.poll_head(cx).map_err(|error| match error {
            Error::Socket(error) if self.take_back() => SendError::Unsent(error),
            Error::Closed if self.take_back() => SendError::Unsent(io::ErrorKind::UnexpectedEof.into()),
            error @ (Error::Socket(_) | Error::Closed) if !self.heard => SendError::Unanswered(error),
            error => SendError::Lost(error),
        })
    }

    /// Whether nothing of the request has left: it waited still, or could not be sent. Now it never will.
    fn take_back(&self) -> bool {
        self.waiting.is_some_and(|bytes| self.line.socket.take_back(bytes))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Body>, Error>> {
        loop {
            let read = ready!(self.line.poll_read(cx))?;
            if read.is_empty() {
                return Poll::Ready(Err(Error::Closed));
            }
            self.heard = true;
            self.received = joined(std::mem::take(&mut self.received), read);
            if self.received[0] == 0 {
                match self.received.first_chunk() {
                    Some(header) if protocol::is_settings(*header) => {
                        return Poll::Ready(Err(Error::SpeaksHttp2));
                    }
                    Some(_) => {}
                    None => continue,
                }
            }
            while !self.received.is_empty() {
                let fields = || self.line.buffers.fields();
                let Some(head) = head::parse(&self.received, self.is_head, fields)? else { break };
                self.received = self.received.slice(head.bytes..);
                if let Some(response) = self.answer(head) {
                    return Poll::Ready(Ok(response));
                }
            }
            if MAX_HEAD_BYTES < self.received.len() {
                return Poll::Ready(Err(Error::Head("the head of the worker's answer has more than 64 KiB")));
            }
        }
    }

    /// The answer, where this is the head of a final one.
    fn answer(&mut self, head: head::Head) -> Option<Response<Body>> {
        self.keeps_alive &= head.keeps_alive;
        if let Some(timeout) = head.timeout {
            self.line.rests_for.set(timeout);
        }
        let Some(framing) = head.framing else {
            self.interim.pass(head.parts.status, head.parts.headers);
            return None;
        };
        if let Some(upload) = self.upload.take() {
            self.line.upload(upload);
        }
        let received = std::mem::take(&mut self.received);
        let body = Body::new(self.line.clone(), framing, received, self.keeps_alive);
        Some(Response::from_parts(head.parts, body))
    }
}

#[cfg(test)]
mod tests;
