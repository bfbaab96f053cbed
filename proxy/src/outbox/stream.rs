//! A socket as a stream that one task reads and writes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Outbox, Socket};

/// A socket that is one task's alone. What waits is sent at the latest when it is dropped, as far as the kernel takes it.
pub struct Stream {
    pub(super) socket: Rc<Socket>,
    outbox: Rc<Outbox>,
}

impl Stream {
    /// What is written to it leaves by way of `outbox`.
    pub fn new(stream: TcpStream, outbox: Rc<Outbox>) -> Self {
        Self { socket: Rc::new(Socket::new(stream)), outbox }
    }

    /// The first byte that comes, which stays to be read; `None` at the end.
    ///
    /// # Errors
    /// The socket's.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        poll_fn(|cx| {
            let mut byte = [0];
            let mut buf = ReadBuf::new(&mut byte);
            let read = ready!(self.socket.0.borrow().stream.poll_peek(cx, &mut buf))?;
            Poll::Ready(Ok((0 < read).then_some(byte[0])))
        })
        .await
    }

    /// When it is dropped the connection is reset.
    pub fn reset(&self) {
        self.socket.reset_when_dropped();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.socket.0.borrow_mut().try_send(&self.outbox); // nobody is left to be told
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.outbox.poll_write(&self.socket, cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outbox.poll_write(&self.socket, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready while what waits is to leave in this turn.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.socket.0.borrow_mut();
        match state.failed {
            Some(failed) => Poll::Ready(Err(failed.into())),
            None if state.blocked => state.poll_send_own(&self.outbox, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.socket.0.borrow_mut();
        ready!(state.poll_send_own(&self.outbox, cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}
