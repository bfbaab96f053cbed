//! Bytes that lie in several places, written at once.
//!
//! For few bytes `send` and a copy of them cost less than `writev`: 0.2 µs of some 8 (Linux 6.18, 430 bytes). An answer's
//! head and a short body are few, and so is a request's head, which lies in one place.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::io::AsyncWrite;

/// As many bytes as are worth a copy.
const FEW: usize = 2048;

/// Writes what it can of `slices`, in their order. Returns how many bytes that was.
pub fn poll_write<S: AsyncWrite>(
    stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<Result<usize>> {
    if let [slice] = slices {
        return stream.poll_write(cx, slice);
    }
    if FEW < slices.iter().map(|slice| slice.len()).sum() {
        return stream.poll_write_vectored(cx, slices);
    }
    let mut bytes = SmallVec::<[u8; FEW]>::new();
    slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
    stream.poll_write(cx, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes up to so many bytes at a time, and says how it was asked.
    struct Sink {
        takes: usize,
        taken: Vec<u8>,
        vectored: u32,
    }

    impl Sink {
        fn take(&mut self, bytes: &[u8]) -> Poll<Result<usize>> {
            let n = bytes.len().min(self.takes);
            self.taken.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        }
    }

    impl AsyncWrite for Sink {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
            self.take(bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            self.vectored += 1;
            self.take(&slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>())
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What a sink that takes so many bytes has of these slices after one write, and how often it was asked for several.
    fn write(slices: &[&[u8]], takes: usize) -> (Vec<u8>, u32) {
        let mut sink = Sink { takes, taken: Vec::new(), vectored: 0 };
        let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let wrote = poll_write(Pin::new(&mut sink), &mut cx, &slices);
        assert!(matches!(wrote, Poll::Ready(Ok(n)) if n == sink.taken.len()));
        (sink.taken, sink.vectored)
    }

    #[test]
    fn few_bytes_are_written_as_one() {
        assert_eq!(write(&[b"head", b"", b"body"], 100), (b"headbody".to_vec(), 0));
        assert_eq!(write(&[b"head", b"body"], 6), (b"headbo".to_vec(), 0), "as many as are taken");
        assert_eq!(write(&[b"head"], 100), (b"head".to_vec(), 0));
        assert_eq!(write(&[], 100), (Vec::new(), 0));
    }

    #[test]
    fn many_bytes_are_not_copied() {
        let body = [b'x'; FEW];
        assert_eq!(write(&[b"head", &body], 10_000), ([b"head", &body[..]].concat(), 1));
        assert_eq!(write(&[&[b'x'; 3 * FEW]], 10_000), (vec![b'x'; 3 * FEW], 0), "it is one already");
    }
}
