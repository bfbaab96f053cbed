//! A client's stream, watched.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::Activity;
use crate::outbox;

/// The bytes to and from a client.
pub enum Transport {
    /// As they are.
    Plain(outbox::Stream),
    /// Over TLS.
    Tls(Box<TlsStream<outbox::Stream>>),
}

/// A client's stream that notes what it does, with the bytes put back that were read before their time.
pub struct Watched {
    transport: Transport,
    activity: Rc<Activity>,
    put_back: Bytes,
}

/// What every HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether the client speaks HTTP/2, and returns what was read.
///
/// # Errors
/// The stream's.
pub async fn is_http2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Bytes)> {
    let mut bytes = [0; PREFACE.len()];
    let mut end = 0;
    while end < PREFACE.len() {
        let n = stream.read(&mut bytes[end..]).await?;
        end += n;
        if n == 0 || bytes[..end] != PREFACE[..end] {
            return Ok((false, Bytes::copy_from_slice(&bytes[..end])));
        }
    }
    Ok((true, Bytes::from_static(PREFACE)))
}

impl Watched {
    /// Watches a stream, of which `put_back` has been read already.
    pub fn new(transport: Transport, activity: Rc<Activity>, put_back: Bytes) -> Self {
        Self { transport, activity, put_back }
    }

    /// When it is dropped the client is to see that something was missing. Over TLS it does by itself: nothing tells it that
    /// this is the end.
    pub fn reset(&self) {
        if let Transport::Plain(stream) = &self.transport {
            stream.reset();
        }
    }

    /// The stream again, with what was read of it and not used.
    pub fn put_back(mut self, unused: Bytes) -> Self {
        self.put_back =
            if self.put_back.is_empty() { unused } else { [&*unused, &*self.put_back].concat().into() };
        self
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let put_back = !this.put_back.is_empty();
        if put_back {
            let n = buf.remaining().min(this.put_back.len());
            buf.put_slice(&this.put_back.split_to(n));
            if this.put_back.is_empty() {
                this.put_back = Bytes::new();
            }
        }
        // What follows comes with what was put back: a reader that got so little first would want a second buffer.
        if buf.remaining() != 0 {
            match Pin::new(&mut this.transport).poll_read(cx, buf) {
                Poll::Ready(read) => read?,
                Poll::Pending if put_back => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        if before < buf.filled().len() {
            this.activity.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.activity.wrote(wrote.is_pending());
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.activity.wrote(wrote.is_pending());
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.activity.wrote(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_preface_is_told_from_a_request() {
        let read = is_http2(&mut &PREFACE[..]).await.expect("reads");
        assert_eq!(read, (true, Bytes::from_static(PREFACE)));
        let read = is_http2(&mut &b"PRI * HTTP/1.1\r\n"[..]).await.expect("reads");
        assert_eq!(read, (false, Bytes::from_static(b"PRI * HTTP/1.1\r\n")));
    }
}
