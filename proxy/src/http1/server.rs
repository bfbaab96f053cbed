//! HTTP/1.1 to a client: one request at a time on a connection, each answered whole before the next is read.
//!
//! A connection that rests is its stream and a few words; what a request needs besides lives as long as the request, so
//! thousands of resting connections take little. `head` reads a request's head, `content` what follows it, `answer` writes;
//! `reader` finds where a head ends; `line` is what they share. Whatever breaks a rule is answered by a `Rejection`, and its connection lingers: it is closed
//! only after the client had time to read the answer (RFC 9112 §9.6).

mod answer;
mod content;
mod head;
mod line;
mod reader;
pub mod transcript;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header, response};
use http_body::Body;
use tokio::time::{Instant, timeout_at};

use self::answer::{Asked, Besides, Connection};
use self::head::Head;
use self::line::Content;
use self::reader::Reader;
use super::message::{Failed, Framing, Message};
use crate::body::{ClientBody, ResponseBody};
use crate::connection::{Client, Watched};
use crate::interim::Interim;
use crate::rejection::Rejection;
use crate::request;
use crate::thread::DataThread;

pub use self::content::Incoming;
pub use self::line::Line;

/// A client that still sends has so long to read its answer, and to end.
const LINGER: Duration = Duration::from_secs(30);
/// It may stand still for so long meanwhile, and for so long while the process stops.
const LINGER_STILL: Duration = Duration::from_secs(5);
const LINGER_CLOSING: Duration = Duration::from_millis(500);

/// What is read of a worker's answer at once while memory is tight.
const LITTLE: usize = 16 << 10;

/// Serves a connection, of which `received` was read already, until it ends.
///
/// # Errors
/// What broke it off.
pub async fn serve(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Watched,
    received: Bytes,
) -> io::Result<()> {
    let line = Line::new(stream, received, thread.upstreams.shared_buffers());
    loop {
        let Some(head) = next(&line, client).await? else {
            return poll_fn(|cx| line.poll_shutdown(cx)).await;
        };
        // Many requests may have come at once, and none of them may have to wait for a socket.
        tokio::task::coop::consume_budget().await;
        // In a box that ends with the request: a connection that rests needs no room for it.
        match boxed(|| exchange(thread, client, &line, head)).await? {
            Ending::Next => {}
            Ending::Close => return Ok(()),
            Ending::Linger => return linger(&line, client).await,
            Ending::Upgrade => {
                let (taker, stream) = (client.upgrade.take(), line.into_stream());
                if let (Some(taker), Some(stream)) = (taker, stream) {
                    let _ = taker.send(stream); // its tunnel may have been given up
                }
                return Ok(());
            }
        }
    }
}

/// A future in a box, made where it lies: it is large, and would be copied there.
fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

/// Refuses whatever the client may have sent, and ends its connection.
///
/// # Errors
/// What broke it off.
pub async fn refuse(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Watched,
    rejection: Rejection,
) -> io::Result<()> {
    let line = Line::new(stream, Bytes::new(), thread.upstreams.shared_buffers());
    exchange(thread, client, &line, Err(rejection)).await?;
    linger(&line, client).await
}

/// What becomes of a connection after an answer.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// It may carry another request.
    Next,
    /// It is closed: the client has sent what it had to send.
    Close,
    /// It is closed when the client has stopped sending.
    Linger,
    /// It speaks another protocol now.
    Upgrade,
}

/// The head of the next request, or why it is refused; `None` when there will be none.
async fn next(line: &Line, client: &Client) -> io::Result<Option<Result<Head, Rejection>>> {
    let mut reader = Reader::default();
    poll_fn(|cx| {
        loop {
            if let Some(mut head) = reader.head(line) {
                if let Ok(head) = &mut head {
                    head.holding = reader.holding(head.bytes);
                }
                return Poll::Ready(Ok(Some(head)));
            }
            if !reader.has_room(line, client) {
                return Poll::Ready(Ok(Some(Err(Rejection::MemoryLimit))));
            }
            let begun = line.has_received();
            if begun {
                client.activity.head_began();
            }
            client.activity.listen(cx);
            let refused = match begun {
                true if client.activity.is_shed() => client.activity.tell_why_shed(),
                true if client.activity.is_late() => Some(Rejection::HeadTimeout),
                true if line.has_ended() => Some(Rejection::BadRequest("the request's head broke off")),
                true => None,
                false if client.activity.is_closing() || line.has_ended() => return Poll::Ready(Ok(None)),
                false => None,
            };
            if let Some(rejection) = refused {
                return Poll::Ready(Ok(Some(Err(rejection))));
            }
            ready!(line.poll_more(cx))?;
        }
    })
    .await
}

/// Serves one request.
async fn exchange(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    line: &Rc<Line>,
    head: Result<Head, Rejection>,
) -> io::Result<Ending> {
    let head = match head {
        Ok(head) => head,
        Err(rejection) => {
            let response = request::refuse(thread.clone(), client.clone(), rejection);
            let received = line.received();
            let is_head = received.starts_with(b"HEAD ");
            line.put_back(received);
            let asked = Asked { version: Version::HTTP_11, is_head, trailers: false };
            let ending = Answer { thread, client, line, asked, keep_alive: false }.send(response).await?;
            // Where the request would have ended is not known, so neither is whether the client still sends.
            let must_end = rejection == Rejection::HeadTimeout || client.activity.is_shed();
            let waits = ending == Ending::Close && !must_end;
            return Ok(if waits { Ending::Linger } else { ending });
        }
    };
    let asked = Asked {
        version: head.parts.version,
        is_head: head.parts.method == Method::HEAD,
        trailers: head.trailers,
    };
    let _holding = head.holding;
    let interim = match asked.version {
        Version::HTTP_11 => Interim::over_http1(line.clone()),
        _ => Interim::to_nobody(),
    };
    let body = ClientBody::Http1(Incoming::new(line, head.framing));
    let request = Request::from_parts(head.parts, body);
    let response = {
        let mut serving = pin!(request::serve(thread.clone(), client.clone(), request, interim));
        poll_fn(|cx| {
            if let Poll::Ready(response) = serving.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            if let Poll::Ready(Err(error)) = line.poll_interim(cx) {
                return Poll::Ready(Err(error));
            }
            line.poll_broken(cx).map(Err)
        })
        .await?
    };
    Answer { thread, client, line, asked, keep_alive: head.keep_alive }.send(response).await
}

/// What an answer goes by.
struct Answer<'a> {
    thread: &'a DataThread,
    client: &'a Client,
    line: &'a Line,
    asked: Asked,
    /// Whether the client means to send another request.
    keep_alive: bool,
}

impl Answer<'_> {
    /// Writes an answer, and says what becomes of the connection.
    async fn send(self, response: Response<ResponseBody>) -> io::Result<Ending> {
        let line = self.line;
        let (head, body) = response.into_parts();
        let connection = self.connection(&head);
        let framing = answer::framing(&head, &body, self.asked);
        let mut bytes = line.buffers.head();
        let (version, date) = (self.asked.version, self.thread.date());
        answer::write_head(&mut bytes, &head, &Besides { framing, connection, version, date: &date });
        line.buffers.take_over(head.headers);
        let mut body = (!body.is_end_stream()).then_some(body);
        if self.client.activity.is_tight() {
            body.iter_mut().for_each(|body| body.take_at_most(LITTLE));
        }
        let mut message = Message::new(bytes, body, framing, self.asked.trailers);
        let sent = poll_fn(|cx| {
            ready!(line.poll_interim(cx)).map_err(Failed::Socket)?;
            if let Poll::Ready(sent) = message.poll(cx, |cx, slices| line.poll_write(cx, slices)) {
                return Poll::Ready(sent);
            }
            line.poll_broken(cx).map(|error| Err(Failed::Socket(error)))
        });
        if let Err(failed) = sent.await {
            if framing == Framing::Close {
                line.reset();
            }
            return Err(failed.into());
        }
        line.buffers.give_back(Some(message.into_buffer()));
        poll_fn(|cx| line.poll_flush(cx)).await?;
        match connection {
            Connection::Upgrade => return Ok(Ending::Upgrade),
            Connection::Close => poll_fn(|cx| line.poll_shutdown(cx)).await?, // it may be what ends the content
            Connection::KeepAlive | Connection::Usual => {}
        }
        // An early answer does not end the upload.
        poll_fn(|cx| line.poll_unwanted(cx)).await;
        Ok(match connection {
            _ if line.content() == Content::Unwanted => Ending::Linger,
            Connection::Close if line.has_received() => Ending::Linger,
            Connection::Close => Ending::Close,
            _ => Ending::Next,
        })
    }

    /// What becomes of the connection after this answer.
    fn connection(&self, head: &response::Parts) -> Connection {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Connection::Upgrade;
        }
        let refused = head.headers.get(header::CONNECTION).is_some_and(|option| option == "close");
        // A client that has not been asked for its content sends it or does not, and only it knows (RFC 9110 §10.1.1).
        let unknown = self.line.content() == Content::Unwanted || self.line.is_awaited();
        if unknown {
            self.line.give_up();
        }
        let closing = self.thread.closing.get() || self.client.activity.is_closing();
        match self.asked.version {
            _ if !self.keep_alive || refused || unknown || closing || self.line.has_ended() => {
                Connection::Close
            }
            Version::HTTP_10 => Connection::KeepAlive,
            _ => Connection::Usual,
        }
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Socket(error) => error,
            Failed::Content(broken) => Self::other(broken),
        }
    }
}

/// Reads what the client still sends, and forgets it: closed with bytes unread, the connection would be reset, and the
/// answer lost with it (RFC 9112 §9.6).
async fn linger(line: &Line, client: &Client) -> io::Result<()> {
    client.activity.lingers();
    poll_fn(|cx| line.poll_shutdown(cx)).await?;
    let until = Instant::now() + LINGER;
    let told = client.activity.unless_closing(discard(line, until, LINGER_STILL)).await;
    if told.is_none() && !client.activity.is_shed() {
        discard(line, Instant::now() + LINGER_CLOSING, LINGER_CLOSING).await;
    }
    Ok(())
}

/// Reads and forgets, until the client ends, or stands still for so long.
async fn discard(line: &Line, until: Instant, still: Duration) {
    loop {
        drop(line.received());
        let patience = until.min(Instant::now() + still);
        match timeout_at(patience, poll_fn(|cx| line.poll_read(cx))).await {
            Ok(Ok(bytes)) if !bytes.is_empty() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests;
