//! The bytes between a proxy and a worker of its pod, or a sibling.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::outbox::UNSENT;
use crate::worker::Worker;

/// As many bytes the kernel takes of a worker before they are read, with as much of its own besides. It would take megabytes of
/// an answer that no client reads.
const UNREAD: usize = 64 << 10;

/// Connects to a worker of the pod.
pub(super) async fn dial_worker(worker: &Worker) -> io::Result<TcpStream> {
    let stream = worker.connect().await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_recv_buffer_size(UNREAD)?;
    Ok(stream)
}

/// Connects to a worker or, over TLS in which both show who they are, to a sibling. `over` says what the socket is
/// read and written by.
pub(super) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Worker,
    http2: bool,
    over: impl FnOnce(TcpStream) -> S,
) -> io::Result<Wire<S>> {
    let stream = over(dial_worker(worker).await?);
    let Some(sibling) = &worker.sibling else { return Ok(Wire::Plain(stream)) };
    let none = || io::Error::other("there is no certificate to show the sibling");
    let (credentials, name) = sibling.secure(Instant::now()).ok_or_else(none)?;
    let tls = TlsConnector::from(credentials.client(http2).clone()).connect(name, stream).await?;
    Ok(Wire::Tls(Box::new(tls)))
}

/// The bytes to and from a worker or a sibling.
pub enum Wire<S = TcpStream> {
    /// A worker of the pod.
    Plain(S),
    /// A sibling.
    Tls(Box<TlsStream<S>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
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
