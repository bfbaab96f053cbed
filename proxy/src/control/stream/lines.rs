//! Splits the stream's body into lines.

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

/// No line is longer.
pub(super) const LONGEST: usize = 4 << 20;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("a line is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the stream broke off: {0}")]
    Broken(String),
}

/// The lines of a body.
pub(super) struct Lines<B> {
    body: B,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no line's end.
    searched: usize,
}

impl<B: Body<Data = Bytes, Error: std::error::Error> + Unpin> Lines<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line that is not empty; `None` at the end of the body, where half a line is worth nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.split() {
                Some(line) if line.trim_ascii().is_empty() => continue,
                Some(line) => return Ok(Some(line)),
                None if LONGEST < self.buffer.len() => return Err(Error::TooLong),
                None => {}
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Broken(super::connect::chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn split(&mut self) -> Option<Bytes> {
        let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    async fn lines(chunks: &[&'static [u8]]) -> Vec<Bytes> {
        let frames: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from_static(chunk)))).collect();
        let mut lines = Lines::new(StreamBody::new(stream::iter(frames)));
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.expect("no line is too long") {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_split_wherever_the_frames_end() {
        assert_eq!(lines(&[b"one\ntw", b"o", b"\n\nthree\n"]).await, ["one", "two", "three"]);
    }

    #[tokio::test]
    async fn half_a_line_at_the_end_is_dropped() {
        assert_eq!(lines(&[b"one\ntwo"]).await, ["one"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let chunk = Bytes::from(vec![b'a'; 1 << 20]);
        let endless =
            stream::iter(std::iter::repeat_with(move || Ok::<_, Infallible>(Frame::data(chunk.clone()))));
        assert!(matches!(Lines::new(StreamBody::new(endless)).next().await, Err(Error::TooLong)));
    }
}
