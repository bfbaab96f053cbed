//! Where the frames of a WebSocket begin and end in a stream of bytes (RFC 6455 §5.2), so that a frame of the proxy's
//! own can be put between two of them. What is in the frames is nobody's business here.

/// The status of a close frame that says that this end is going away (RFC 6455 §7.4.1).
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The header of the frame as far as it was read.
    header: [u8; 10],
    read: usize,
    /// Bytes of the frame that are yet to come, its mask among them.
    rest: u64,
}

impl Frames {
    /// Takes note of bytes that follow those before. Returns how many of them belong to frames that have ended: there,
    /// and not behind, another frame may be put. `None` when no frame ends in these bytes.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        let mut boundary = None;
        while at < bytes.len() {
            if self.rest == 0 {
                self.header[self.read] = bytes[at];
                self.read += 1;
                at += 1;
                if self.read < header_length(&self.header[..self.read]) {
                    continue;
                }
                self.rest = payload_length(&self.header[..self.read]);
                self.read = 0;
            }
            let step = self.rest.min((bytes.len() - at) as u64);
            self.rest -= step;
            at += step as usize;
            if self.rest == 0 {
                boundary = Some(at);
            }
        }
        boundary
    }

    /// Whether a frame has just ended, or none has begun.
    pub(super) fn between(&self) -> bool {
        self.rest == 0 && self.read == 0
    }
}

/// How long the part of the header is that says how long the frame is.
fn header_length(header: &[u8]) -> usize {
    match header.get(1).map(|length| length & !MASKED) {
        None => 2,
        Some(127) => 10,
        Some(126) => 4,
        Some(_) => 2,
    }
}

/// The bytes that follow the header, with the mask.
fn payload_length(header: &[u8]) -> u64 {
    let bytes = match header.len() {
        2 => &[header[1] & !MASKED][..],
        _ => &header[2..],
    };
    let payload = bytes.iter().fold(0, |length: u64, byte| length << 8 | u64::from(*byte));
    let mask = if header[1] & MASKED != 0 { 4 } else { 0 };
    payload.saturating_add(mask)
}

/// A close frame with status 1001. A client masks what it sends, a server does not (RFC 6455 §5.1).
pub(super) fn going_away(mask: Option<[u8; 4]>) -> Vec<u8> {
    let length = GOING_AWAY.len() as u8;
    match mask {
        None => [&[CLOSE, length][..], &GOING_AWAY].concat(),
        Some(mask) => {
            let payload = [GOING_AWAY[0] ^ mask[0], GOING_AWAY[1] ^ mask[1]];
            [&[CLOSE, MASKED | length][..], &mask, &payload].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask_bit = if masked { MASKED } else { 0 };
        let mut frame = vec![0x82];
        match length {
            0..126 => frame.push(mask_bit | length as u8),
            126..65_536 => {
                frame.push(mask_bit | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask_bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; length + if masked { 4 } else { 0 }]); // what would look like another frame
        frame
    }

    proptest! {
        /// However the bytes are cut: frames end where they end.
        #[test]
        fn frames_end_where_they_end(
            lengths in prop::collection::vec((prop_oneof![0..130usize, 65_530..65_540usize], any::<bool>()), 1..6),
            cuts in prop::collection::vec(1..5000usize, 1..40),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![];
            for (length, masked) in lengths {
                bytes.extend(frame(length, masked));
                ends.push(bytes.len());
            }
            let mut frames = Frames::default();
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while at < bytes.len() {
                let next = (at + cuts.next().unwrap_or(1)).min(bytes.len());
                let last = ends.iter().rfind(|end| at < **end && **end <= next);
                prop_assert_eq!(frames.advance(&bytes[at..next]), last.map(|end| end - at));
                at = next;
                prop_assert_eq!(frames.between(), ends.contains(&at));
            }
        }
    }

    #[test]
    fn a_length_that_nobody_sends_is_waited_for() {
        let mut frames = Frames::default();
        let longest = [&[0x82, 0xff][..], &[0xff; 8]].concat();
        assert_eq!(frames.advance(&longest), None);
        assert_eq!(frames.advance(&[0; 4096]), None);
        assert!(!frames.between());
    }

    #[test]
    fn the_close_frame_says_1001() {
        assert_eq!(going_away(None), [0x88, 2, 0x03, 0xe9]);
        assert_eq!(going_away(Some([1, 2, 3, 4])), [0x88, 0x82, 1, 2, 3, 4, 0x02, 0xeb]);
    }
}
