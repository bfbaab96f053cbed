//! How the end of a message's content is told, and the content read by it (RFC 9112 §6).

use bytes::Bytes;

use super::chunked::{self, Chunked, Next};

/// How the end of a message's content is told.
pub(super) enum Framing {
    /// There is none.
    None,
    /// By the number of bytes that are left.
    Length(u64),
    /// By the last chunk.
    Chunked(Chunked),
    /// By the end of the connection.
    Close,
}

impl Framing {
    /// Whether nothing follows the head.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }

    /// Takes what comes next from the front of `received`. After `End` or `Trailers` it must not be asked again. With `Close`
    /// the end of the connection is the end.
    ///
    /// # Errors
    /// The rule of chunks that the bytes break.
    pub(super) fn next(&mut self, received: &mut Bytes) -> Result<Next, chunked::Malformed> {
        match self {
            Self::Chunked(chunked) => chunked.next(received),
            Self::None | Self::Length(0) => Ok(Next::End),
            _ if received.is_empty() => Ok(Next::More),
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
                *left -= taken as u64;
                Ok(Next::Data(received.split_to(taken)))
            }
            Self::Close => Ok(Next::Data(std::mem::take(received))),
        }
    }

    /// How many bytes are left, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Close => None,
        }
    }
}
