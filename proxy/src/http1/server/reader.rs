//! Finds the head of the next request in what came.

use bytes::{Buf, Bytes};

use super::head::{self, Head};
use super::line::Line;
use crate::connection::{Client, Holding};
use crate::http1::buffers::FEW;
use crate::http1::fields;
use crate::http1::{Buffers, MAX_HEAD_BYTES};
use crate::rejection::Rejection;

/// Reads heads from what came.
#[derive(Default)]
pub(super) struct Reader {
    /// The bytes before it were looked at: the end of the head is not there.
    scanned: usize,
    /// Whether an empty line was passed over.
    passed: bool,
    /// What came of the head so far, where that is more than a little.
    holding: Option<Holding>,
}

impl Reader {
    /// Whether there is memory for what came of a head that has not ended.
    pub(super) fn has_room(&mut self, line: &Line, client: &Client) -> bool {
        let bytes = line.received_bytes();
        if bytes <= FEW {
            return true;
        }
        let activity = &client.activity;
        self.holding.get_or_insert_with(|| Holding::of_head(activity.clone())).may_become(bytes)
    }

    /// What a head of so many bytes holds for as long as its request lasts: it is apart from what came behind it.
    pub(super) fn holding(&mut self, bytes: usize) -> Option<Holding> {
        let mut holding = self.holding.take()?;
        holding.is_now(bytes);
        Some(holding)
    }

    /// The head of the next request, or why it is refused; `None` when more must come.
    pub(super) fn head(&mut self, line: &Line) -> Option<Result<Head, Rejection>> {
        let mut received = line.received();
        let head = self.take(&mut received, &line.buffers);
        line.put_back(received);
        head.transpose()
    }

    /// Takes the head with which `received` begins, once it is whole.
    pub(super) fn take(
        &mut self,
        received: &mut Bytes,
        buffers: &Buffers,
    ) -> Result<Option<Head>, Rejection> {
        if !self.passed && received.starts_with(b"\r\n") {
            // Some clients send one behind the content of a request (RFC 9112 §2.2).
            received.advance(2);
            self.passed = true;
        }
        let whole = match (received.is_empty(), self.scanned) {
            (true, _) => return Ok(None),
            (false, 0) => true, // mostly
            (false, _) => fields::has_end(received, &mut self.scanned)?,
        };
        if whole {
            let mut fields = buffers.fields();
            let head = head::parse(&alone(received), &mut fields).map_err(|rejection| {
                match is_too_long(received) {
                    true => Rejection::HeadersTooLarge, // what is wrong with it is that it does not end
                    false => rejection,
                }
            })?;
            if let Some(head) = head {
                if MAX_HEAD_BYTES < head.bytes {
                    return Err(Rejection::HeadersTooLarge);
                }
                *received = received.slice(head.bytes..);
                return Ok(Some(head));
            }
            buffers.take_over(fields);
            fields::has_end(received, &mut self.scanned)?;
        }
        if MAX_HEAD_BYTES < received.len() { Err(Rejection::HeadersTooLarge) } else { Ok(None) }
    }
}

/// The head with which these bytes begin, apart from what follows it: its fields live as long as the request, and would hold
/// all that was read with them.
fn alone(received: &Bytes) -> Bytes {
    let mut end = 0;
    if FEW < received.len() && fields::has_end(received, &mut end) == Ok(true) {
        return Bytes::copy_from_slice(&received[..end + 2]);
    }
    received.clone()
}

/// Whether a head does not end where it must.
fn is_too_long(received: &[u8]) -> bool {
    let may_be = received.get(..MAX_HEAD_BYTES);
    may_be.is_some_and(|head| !head.windows(4).any(|end| end == b"\r\n\r\n"))
}
