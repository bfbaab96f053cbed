//! hyper's reader: its server, over bytes in memory.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Read, Reading, comparable, sorted};

/// What hyper makes of these bytes.
pub async fn read(bytes: &[u8]) -> Reading {
    let requests = Rc::new(RefCell::new(Vec::new()));
    let noted = requests.clone();
    let service = service_fn(move |request| note(request, noted.clone()));
    let given = Given { bytes: Bytes::copy_from_slice(bytes) };
    let served = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(given), service).await;
    Reading { requests: requests.take(), refusal: served.err().map(|error| error.to_string()) }
}

async fn note(
    request: Request<Incoming>,
    requests: Rc<RefCell<Vec<Read>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    if let Ok(collected) = body.collect().await {
        let trailers = collected.trailers().map(|trailers| sorted(trailers.iter()));
        requests.borrow_mut().push(Read {
            method: head.method.to_string(),
            target: comparable(&head.uri.to_string()),
            fields: sorted(head.headers.iter()),
            trailers: trailers.unwrap_or_default(),
            body: collected.to_bytes().to_vec(),
        });
    }
    Ok(Response::new(Empty::new()))
}

/// Bytes to read, and a place to write to that keeps nothing.
struct Given {
    bytes: Bytes,
}

impl AsyncRead for Given {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = into.remaining().min(self.bytes.len());
        into.put_slice(&self.bytes.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Given {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
