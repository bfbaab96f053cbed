//! Frames as they come, read as far as the rules about messages need it (RFC 9113 §4, §6.2, §6.10).

use super::block::{Block, Fault, MOST_BYTES};
use super::hpack::{Table, Target};
use h2::Reason;

/// What every connection begins with.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// The longest payload: we announce no other.
const MAX_PAYLOAD: usize = 16 << 10;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The fields of a message have been read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) stream: u32,
    /// Whether they follow a body.
    pub(super) trailers: bool,
    pub(super) fault: Option<Fault>,
    /// The target, where `h2` has another one.
    pub(super) target: Option<Target>,
    /// About how many bytes of memory they take.
    pub(super) memory: usize,
}

/// The connection must end, and for this reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: Reason,
    /// So many of the bytes may be handed on still.
    pub(super) sound: usize,
}

/// Where in a connection's bytes their reader is.
pub(super) struct Frames {
    /// Of the preface, or of a payload that nothing is known of.
    skip: usize,
    /// What came of a frame's head that is not whole.
    head: [u8; HEAD_BYTES],
    come: usize,
    /// The frame with fields whose payload is not whole, and what came of that. `h2` has not seen it.
    frame: Option<Frame>,
    kept: Vec<u8>,
    /// The message whose fields are being read.
    message: Option<(u32, Block)>,
    /// What came of a field that is not whole.
    field: Vec<u8>,
    table: Table,
    /// The latest stream.
    last: u32,
}

#[derive(Clone, Copy)]
struct Frame {
    payload: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn of(head: &[u8; HEAD_BYTES]) -> Self {
        let [high, middle, low, kind, flags, stream @ ..] = *head;
        let payload = u32::from_be_bytes([0, high, middle, low]) as usize;
        Self { payload, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The part of a payload that has fields.
    fn fields<'a>(&self, mut payload: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if self.kind == CONTINUATION {
            return Some(payload);
        }
        let mut padding = 0;
        if self.has(PADDED) {
            let (length, rest) = payload.split_first_mut()?;
            (padding, payload) = (usize::from(*length), rest);
        }
        if self.has(PRIORITY) {
            payload = payload.get_mut(5..)?;
        }
        let fields = payload.len().checked_sub(padding)?;
        payload.get_mut(..fields)
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            come: 0,
            frame: None,
            kept: Vec::new(),
            message: None,
            field: Vec::new(),
            table: Table::default(),
            last: 0,
        }
    }
}

impl Frames {
    /// Reads what has come next, and says how many of its bytes may be handed on, as they are now. What follows them is kept:
    /// the payload of a frame with fields, which goes on when it is whole.
    ///
    /// # Errors
    /// Nothing behind the violation may be handed on, and nothing more be read.
    pub(super) fn read(
        &mut self,
        bytes: &mut [u8],
        mut each: impl FnMut(Message),
    ) -> Result<usize, Violation> {
        let mut at = 0;
        while at < bytes.len() {
            if 0 < self.skip {
                let skipped = self.skip.min(bytes.len() - at);
                self.skip -= skipped;
                at += skipped;
                continue;
            }
            let violation = |reason| Violation { reason, sound: at };
            let taken = self.begin(&bytes[at..]).map_err(violation)?;
            at += taken;
            let Some(frame) = self.frame else { continue };
            let Some(payload) = bytes.get_mut(at..at + frame.payload) else {
                self.kept.extend_from_slice(&bytes[at..]);
                return Ok(at);
            };
            self.frame = None;
            let violation = |reason| Violation { reason, sound: at };
            if let Some(message) = self.fields(frame, payload).map_err(violation)? {
                each(message);
            }
            at += frame.payload;
        }
        Ok(at)
    }

    /// So many bytes have to come until what is kept is whole.
    pub(super) fn missing(&self) -> usize {
        self.frame.map_or(0, |frame| frame.payload - self.kept.len())
    }

    /// Adds bytes to what is kept, no more than are missing. Returns it once it is whole.
    ///
    /// # Errors
    /// Nothing of it may be handed on, and nothing more be read.
    pub(super) fn complete(
        &mut self,
        bytes: &[u8],
        each: impl FnOnce(Message),
    ) -> Result<Option<Vec<u8>>, Reason> {
        self.kept.extend_from_slice(bytes);
        let Some(frame) = self.frame.take_if(|frame| frame.payload <= self.kept.len()) else {
            return Ok(None);
        };
        let mut payload = std::mem::take(&mut self.kept);
        if let Some(message) = self.fields(frame, &mut payload)? {
            each(message);
        }
        Ok(Some(payload))
    }

    /// On which stream the fields of a message have begun and not ended.
    pub(super) fn unfinished(&self) -> Option<u32> {
        let message = self.message.as_ref().map(|(stream, _)| *stream);
        message.or(self.frame.map(|frame| frame.stream))
    }

    /// Reads the head of a frame, and says how many bytes were of it.
    fn begin(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let taken = bytes.len().min(HEAD_BYTES - self.come);
        self.head[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
        self.come += taken;
        if self.come < HEAD_BYTES {
            return Ok(taken);
        }
        self.come = 0;
        let frame = Frame::of(&self.head);
        if MAX_PAYLOAD < frame.payload {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let continued = self.message.as_ref().map(|(stream, _)| *stream);
        match (frame.kind, continued) {
            (CONTINUATION, Some(stream)) if stream == frame.stream => self.frame = Some(frame),
            (CONTINUATION, _) | (_, Some(_)) | (PUSH_PROMISE, _) => return Err(Reason::PROTOCOL_ERROR),
            (HEADERS, None) if frame.stream.is_multiple_of(2) => return Err(Reason::PROTOCOL_ERROR),
            (HEADERS, None) => self.frame = Some(frame),
            _ => self.skip = frame.payload,
        }
        Ok(taken)
    }

    /// The payload of a frame with fields.
    fn fields(&mut self, frame: Frame, payload: &mut [u8]) -> Result<Option<Message>, Reason> {
        let fields = frame.fields(payload).ok_or(Reason::PROTOCOL_ERROR)?;
        let (stream, mut block) = self.message.take().unwrap_or_else(|| {
            let trailers = frame.stream <= self.last;
            self.last = self.last.max(frame.stream);
            (frame.stream, Block::new(trailers))
        });
        let ends = frame.has(END_HEADERS);
        let malformed = |_| Reason::COMPRESSION_ERROR;
        if self.field.is_empty() {
            let read = block.read(fields, &mut self.table).map_err(malformed)?;
            self.field.extend_from_slice(&fields[read..]);
        } else {
            self.field.extend_from_slice(fields);
            let read = block.read_apart(&mut self.field, &mut self.table).map_err(malformed)?;
            self.field.drain(..read);
        }
        if ends && !self.field.is_empty() {
            return Err(Reason::COMPRESSION_ERROR);
        }
        if MOST_BYTES <= block.bytes() + self.field.len() {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if !ends {
            self.message = Some((stream, block));
            return Ok(None);
        }
        Ok(Some(Message {
            stream,
            trailers: block.is_trailers(),
            fault: block.fault(),
            memory: block.memory(),
            target: block.target(),
        }))
    }
}

#[cfg(test)]
pub(super) mod tests;
