//! The head of a request as it went to a worker: what it takes to send the request once more. To keep a copy of every
//! head would cost each request a tenth of its time; the bytes that hyper writes cost next to nothing.

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Wire;

/// The head of one request, once it went out over HTTP/1.1. It belongs to the request: memory that a few requests use in
/// turn stays in the cache, and hundreds of connections that each keep theirs do not.
#[derive(Default)]
pub struct SentHead(OnceCell<Box<[u8]>>);

impl SentHead {
    /// The head: `None` where it has not gone out yet.
    pub fn read(&self) -> Option<(Method, Uri, HeaderMap)> {
        read(self.0.get()?)
    }
}

/// Who wants the head that one HTTP/1.1 connection sends next.
#[derive(Default)]
pub struct NextHead(Cell<Option<Rc<SentHead>>>);

impl NextHead {
    /// Where the head of the request that is sent next will be.
    pub fn keep(&self) -> Rc<SentHead> {
        let head = Rc::<SentHead>::default();
        self.0.set(Some(head.clone()));
        head
    }

    /// hyper begins with the whole head in one piece, whatever the connection takes of it at once.
    fn note(&self, first: &[u8]) {
        if let Some(head) = self.0.take() {
            let _ = head.0.set(first.into());
        }
    }
}

/// Reads what hyper wrote: `name: value` lines.
fn read(bytes: &[u8]) -> Option<(Method, Uri, HeaderMap)> {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n")?;
    let mut lines =
        bytes[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut first = lines.next()?.splitn(3, |byte| *byte == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let uri = Uri::try_from(first.next()?).ok()?;
    let mut headers = HeaderMap::with_capacity(16);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon..].strip_prefix(b": ")?);
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    Some((method, uri, headers))
}

/// A connection to a worker that notes the heads it sends.
pub(super) struct Noting {
    wire: Wire,
    next: Rc<NextHead>,
}

impl Noting {
    pub(super) fn new(wire: Wire) -> (Self, Rc<NextHead>) {
        let next = Rc::<NextHead>::default();
        (Self { wire, next: next.clone() }, next)
    }
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.next.note(buf);
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.first() {
            self.next.note(first);
        }
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back() {
        let bytes =
            b"GET /a?b=c%20d HTTP/1.1\r\nhost: web\r\nx-a: 1: 2\r\nempty: \r\nx-a: \xff3\r\n\r\nbody\r\n";
        let (method, uri, headers) = read(bytes).expect("a head");
        assert_eq!((method, uri.to_string().as_str()), (Method::GET, "/a?b=c%20d"));
        let values: Vec<_> = headers.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!((values.as_slice(), headers.len()), (&[&b"1: 2"[..], b"\xff3"][..], 4));
        assert_eq!((&headers["host"], headers["empty"].len()), (&HeaderValue::from_static("web"), 0));
        for end in 0..bytes.len() - b"body\r\n".len() {
            assert!(read(&bytes[..end]).is_none(), "{end}: it is not whole");
        }
    }

    #[test]
    fn only_the_head_that_is_wanted_is_kept() {
        let next = NextHead::default();
        next.note(b"GET /1 HTTP/1.1\r\n\r\n");
        let second = next.keep();
        assert!(second.read().is_none(), "it has not gone out");
        for bytes in [&b"GET /2 HTTP/1.1\r\n\r\n"[..], b"T /2 HTTP/1.1\r\n\r\n"] {
            next.note(bytes); // the second time from where the connection took no more
        }
        let third = next.keep();
        next.note(b"GET /3 HTTP/1.1\r\n\r\n");
        let paths = [second, third].map(|head| head.read().expect("it has").1);
        assert_eq!(paths.map(|path| path.to_string()), ["/2", "/3"]);
    }
}
