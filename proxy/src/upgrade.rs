//! WebSockets: a connection of its own to a worker, and bytes both ways once the worker has answered 101.
//! Such a connection is never pooled: what comes after an upgrade must not meet another client's request.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::{Proxied, RequestBody, ResponseBody};
use crate::forward::{self, Forward};
use crate::guard::{self, MAX_RESPONSE_HEADERS};
use crate::record::{Exchange, Record};
use crate::rejection::Rejection;
use crate::worker::{Permit, Worker};

/// A worker's answer to an upgrade.
pub struct Tunnel {
    response: Response<Incoming>,
    permit: Permit,
    client: OnUpgrade,
    idle: Duration,
}

/// Asks a worker to upgrade.
///
/// # Errors
/// Why there is no answer.
pub async fn connect(forward: &Forward<'_>, mut head: Parts, body: Incoming) -> Result<Tunnel, Rejection> {
    let idle = forward.route.policy.timeout.idle;
    let client = head.extensions.remove::<OnUpgrade>().ok_or(Rejection::Internal)?;
    let (stream, mut permit) = forward.dedicated().await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(MAX_RESPONSE_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Rejection::WorkerReset)?;
    tokio::task::spawn_local(async move {
        let _ = connection.with_upgrades().await; // whoever used it learns of the error by its request
    });
    forward::as_http1(&mut head);
    let request = Request::from_parts(head, RequestBody::new(body, idle));
    let answered = forward.in_time(sender.send_request(request)).await;
    let failed = |permit: &mut Permit, rejection| {
        permit.refused(rejection, Instant::now());
        rejection
    };
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Err(failed(&mut permit, Rejection::WorkerReset)),
        Err(rejection) => return Err(failed(&mut permit, rejection)),
    };
    let (mut head, body) = response.into_parts();
    guard::response(&mut head, true).map_err(|rejection| failed(&mut permit, rejection))?;
    Ok(Tunnel { response: Response::from_parts(head, body), permit, client, idle })
}

impl Tunnel {
    /// The worker that answered.
    pub fn worker(&self) -> &Worker {
        self.permit.worker()
    }

    /// The answer to the client. After a 101 the bytes flow both ways; after any other it is an answer like others.
    pub fn open(self, exchange: Exchange) -> Response<ResponseBody> {
        let Self { mut response, permit, client, idle } = self;
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let worker = hyper::upgrade::on(&mut response);
        let (head, body) = response.into_parts();
        let mut record = Record::answered(exchange, permit, &head);
        if !upgraded {
            return Response::from_parts(head, ResponseBody::Proxied(Proxied::new(body, idle, None, record)));
        }
        record.ended(); // a tunnel may go on for hours, and how it ends is for its two sides to say
        tokio::task::spawn_local(async move {
            if let Err(error) = tunnel(client, worker, idle, &record).await {
                tracing::debug!(%error, "tunnel ended");
            }
        });
        Response::from_parts(head, ResponseBody::Own(None))
    }
}

/// Carries bytes both ways until both sides have ended, or nothing has moved for `idle`.
async fn tunnel(client: OnUpgrade, worker: OnUpgrade, idle: Duration, record: &Record) -> io::Result<()> {
    let (client, worker) = tokio::try_join!(client, worker).map_err(io::Error::other)?;
    let moved = Rc::new(Cell::new(0));
    let mut client = Counted { stream: TokioIo::new(client), moved: moved.clone() };
    let mut worker = Counted { stream: TokioIo::new(worker), moved: moved.clone() };
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut worker) => copied?,
        () = standstill(&moved, idle) => return Err(io::ErrorKind::TimedOut.into()),
    };
    record.sent(usize::try_from(copied.1).unwrap_or(usize::MAX));
    Ok(())
}

async fn standstill(moved: &Cell<u64>, idle: Duration) {
    loop {
        let before = moved.get();
        tokio::time::sleep(idle).await;
        if moved.get() == before {
            return;
        }
    }
}

/// A stream that counts what was read from it.
struct Counted<S> {
    stream: S,
    moved: Rc<Cell<u64>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.moved.set(self.moved.get() + 1);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
