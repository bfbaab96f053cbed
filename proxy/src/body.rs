//! Bodies on their way through: what a client sends and what a worker answers. Each frame is handed on when the other
//! side asks for it. Nothing is buffered, but what a policy wants kept for retries (`kept`).

mod answer;
mod client;
mod kept;
mod patient;
mod progress;

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

pub use self::answer::AnswerBody;
pub use self::client::ClientBody;
use self::patient::Patient;
use self::progress::HELD_UP;
pub use self::progress::Progress;
use crate::connection::{Client, Uploading};
use crate::pool::Lease;
use crate::record::Record;
use crate::rejection::Rejection;

/// Why a body ended before its end.
#[derive(Debug)]
pub enum Broken {
    /// The peer that sends it broke off, or broke the framing.
    Off(Box<dyn std::error::Error + Send + Sync>),
    /// It stood still for too long.
    Stalled,
    /// The try that sent it was given up; another sends it now.
    GivenUp,
    /// A worker would not go on, in a way that says nothing of it.
    Refused,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off(error) => write!(f, "the body broke off: {error}"),
            Self::Stalled => f.write_str("the body stood still for too long"),
            Self::GivenUp => f.write_str("another try sends the body"),
            Self::Refused => f.write_str("the worker refused to go on"),
        }
    }
}

impl std::error::Error for Broken {}

impl From<hyper::Error> for Broken {
    fn from(error: hyper::Error) -> Self {
        Self::Off(error.into())
    }
}

/// What a body hands on next.
pub type NextFrame = Poll<Option<Result<Frame<Bytes>, Broken>>>;

/// A client's body on its way to a worker.
pub struct RequestBody {
    source: Source,
    progress: Option<Rc<Progress>>,
}

enum Source {
    Empty,
    /// Handed on and forgotten. It is large, and most requests have none.
    Streamed(Box<Patient<ClientBody>>),
    /// Handed on and kept.
    Kept(kept::Reader),
}

impl RequestBody {
    /// A body that may stand still for `limit` at most, while its answer does.
    pub fn new(inner: ClientBody, limit: Duration, client: Option<&Rc<Client>>) -> Self {
        if inner.is_end_stream() {
            return Self::empty();
        }
        let uploading = client.map(|client| Uploading::by(client.clone()));
        let progress = Rc::new(Progress::new(limit, uploading));
        let body = Patient::new(inner, limit, Some(progress.clone()));
        Self { source: Source::Streamed(Box::new(body)), progress: Some(progress) }
    }

    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Empty, progress: None }
    }

    /// Keeps the body from here on, so that it can be sent once more; a body that is known to be longer than `limit`
    /// stays as it is.
    pub fn keep(&mut self, limit: usize) -> Again {
        if let Source::Empty = self.source {
            return Again::Empty;
        }
        match std::mem::replace(&mut self.source, Source::Empty) {
            Source::Streamed(body) if 0 < limit && body.size_hint().lower() <= limit as u64 => {
                let kept = kept::Kept::new(*body, limit);
                if let Some(reader) = kept.reader() {
                    self.source = Source::Kept(reader);
                    return Again::Kept(kept, self.progress.clone());
                }
            }
            source => self.source = source,
        }
        Again::Never
    }

    /// How it gets on; `None` for a request without a body.
    pub fn progress(&self) -> Option<Rc<Progress>> {
        self.progress.clone()
    }
}

/// What it takes to send a body once more.
pub enum Again {
    /// It cannot be.
    Never,
    /// There is none.
    Empty,
    /// It was kept.
    Kept(kept::Kept, Option<Rc<Progress>>),
}

impl Again {
    /// Whether the body can be sent once more, as things stand.
    pub fn is_possible(&self) -> bool {
        match self {
            Self::Never => false,
            Self::Empty => true,
            Self::Kept(kept, _) => kept.is_whole(),
        }
    }

    /// The body once more, in place of the one that was handed out before.
    pub fn body(&self) -> Option<RequestBody> {
        match self {
            Self::Never => None,
            Self::Empty => Some(RequestBody::empty()),
            Self::Kept(kept, progress) => {
                let reader = kept.reader()?;
                progress.iter().for_each(|progress| progress.begins_again());
                Some(RequestBody { source: Source::Kept(reader), progress: progress.clone() })
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        if let Some(progress) = &self.progress {
            progress.left(); // whoever asks for more has sent what came before
        }
        let frame = match &mut self.source {
            Source::Empty => return Poll::Ready(None),
            Source::Streamed(body) => body.poll(cx),
            Source::Kept(reader) => reader.poll(cx),
        };
        let given_up = matches!(frame, Poll::Ready(Some(Err(Broken::GivenUp))));
        if let Some(progress) = self.progress.as_ref().filter(|_| !given_up) {
            progress.waits(frame.is_pending());
            match &frame {
                Poll::Pending => {}
                Poll::Ready(Some(Err(broken))) => progress.broke_off(broken),
                Poll::Ready(next) => {
                    progress.moved();
                    let data = next.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                    progress.handed_on(data.map_or(0, Bytes::len));
                    if next.is_none() || self.is_end_stream() {
                        progress.ended();
                    }
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Streamed(body) => body.is_end_stream(),
            Source::Kept(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Streamed(body) => body.size_hint(),
            Source::Kept(reader) => reader.size_hint(),
        }
    }
}

/// Reads what is left of an answer that nobody wants, if that is little and comes soon: its connection can then be used
/// again.
pub async fn read_to_end(body: AnswerBody) -> bool {
    const LONGEST: usize = 64 << 10;
    const LATEST: Duration = Duration::from_secs(1);
    let rest = http_body_util::BodyExt::collect(http_body_util::Limited::new(body, LONGEST));
    tokio::time::timeout(LATEST, rest).await.is_ok_and(|rest| rest.is_ok())
}

/// A body on its way to a client.
pub enum ResponseBody {
    /// A worker's. It is large, and handed on several times.
    Proxied(Box<Proxied>),
    /// The proxy's own, until it is sent.
    Own(Option<Bytes>),
}

/// A worker's body, and what must happen when it ends: the connection goes back to its pool, and the request
/// is recorded. Dropped before its end, the client went away.
pub struct Proxied {
    body: Patient<AnswerBody>,
    /// Goes back to the pool at the end of the body.
    lease: Option<Lease>,
    record: Record,
    /// Whether the body has ended or broken off.
    over: bool,
    /// When a part was handed on, until the next is asked for; and how long that took for all before.
    handed_on: Option<Instant>,
    held_up: Duration,
}

impl Proxied {
    /// The body of a worker's answer.
    pub fn new(inner: AnswerBody, limit: Duration, lease: Option<Lease>, record: Record) -> Self {
        let body = Patient::new(inner, limit, record.client.clone());
        let (handed_on, held_up) = (None, Duration::ZERO);
        let mut proxied = Self { body, lease, record, over: false, handed_on, held_up };
        if proxied.body.is_end_stream() {
            proxied.ended();
        }
        proxied
    }

    /// What the proxy answers in the worker's place, where that broke off before the first byte of its body.
    pub fn broken_at_once(&mut self) -> Option<Rejection> {
        let broken = self.lease.as_ref().and_then(|_| self.body.broken_at_once());
        if self.body.is_end_stream() {
            self.ended();
        }
        let broken = broken?;
        (self.lease, self.over) = (None, true);
        Some(self.record.broke_off_at_once(&broken))
    }

    fn ended(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let now = Instant::now();
        self.record.ended(now);
        if let Some(upload) = &self.record.client {
            upload.left_alone();
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back(now);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> NextFrame {
        self.held_up += self.handed_on.take().map_or(Duration::ZERO, |at| at.elapsed());
        let frame = ready!(self.body.poll(cx));
        if let Some(upload) = &self.record.client {
            upload.moved();
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record.sent(data.remaining());
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.record.trailers(trailers);
                }
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.ended();
                } else {
                    self.handed_on = Some(Instant::now());
                }
            }
            Some(Err(broken)) => {
                (self.lease, self.over) = (None, true); // never pooled: what is left on it is not known
                self.record.broke_off(broken, HELD_UP <= self.held_up);
            }
            None => self.ended(),
        }
        Poll::Ready(frame)
    }
}

impl ResponseBody {
    /// So many bytes are read from the worker at once from now on, and no more.
    pub fn take_at_most(&mut self, bytes: usize) {
        match self {
            Self::Proxied(proxied) => proxied.body.take_at_most(bytes),
            Self::Own(_) => {}
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        match &mut *self {
            Self::Proxied(proxied) => proxied.poll(cx),
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Proxied(proxied) => proxied.body.is_end_stream(),
            Self::Own(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Proxied(proxied) => proxied.body.size_hint(),
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
