//! The Huffman code of HPACK, read only (RFC 7541 §5.2 and appendix B).

/// How many bits the code of each byte has. The code is canonical: bytes in the order of length and value have codes
/// that follow one another, so the lengths say all.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
/// A look at so many bits finds the usual bytes.
const SHORT: u32 = 8;
const LONGEST: u8 = 30;

/// What a look at the next bits finds: the byte and the length of its code; 0 where that is longer.
static BY_BITS: [(u8, u8); 1 << SHORT] = CODE.0;
/// The longer codes by their lengths.
static BY_LENGTH: [Group; GROUPS] = CODE.1;
/// Bytes in the order of their codes.
static IN_ORDER: [u8; 256] = CODE.2;

const GROUPS: usize = LONGEST as usize - SHORT as usize;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The first 32 bits of the next that is no code of this length or a shorter one.
    end: u32,
    /// The first of them, and which byte in order that is.
    first: (u32, u32),
    length: u32,
}

/// By the bits of short codes, by the length of long ones, and the bytes in the order of their codes.
type Code = ([(u8, u8); 1 << SHORT], [Group; GROUPS], [u8; 256]);

const CODE: Code = code();

const fn code() -> Code {
    let mut by_bits = [(0, 0); 1 << SHORT];
    let mut by_length = [Group { end: 0, first: (0, 0), length: 0 }; GROUPS];
    let mut in_order = [0; 256];
    let (mut next, mut place, mut length) = (0, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        let first = (next, place as u32);
        let mut byte = 0;
        while byte < 256 {
            if LENGTHS[byte] == length {
                in_order[place] = byte as u8;
                if length as u32 <= SHORT {
                    let step = 1 << (SHORT - length as u32);
                    let mut at = next as usize * step;
                    while at < (next as usize + 1) * step {
                        by_bits[at] = (byte as u8, length);
                        at += 1;
                    }
                }
                place += 1;
                next += 1;
            }
            byte += 1;
        }
        if SHORT < length as u32 {
            by_length[(length as u32 - SHORT - 1) as usize] =
                Group { end: next << (32 - length), first, length: length as u32 };
        }
        length += 1;
    }
    (by_bits, by_length, in_order)
}

/// Hands on each byte that `bytes` stand for, and the bit behind its code; `None` where they are no such code, or end as none
/// does.
pub(super) fn decode(bytes: &[u8], mut each: impl FnMut(u8, usize)) -> Option<()> {
    let (mut rest, mut window, mut bits, mut end) = (bytes, 0_u64, 0_u32, 0);
    loop {
        while bits <= 56
            && let Some((byte, more)) = rest.split_first()
        {
            window |= u64::from(*byte) << (56 - bits);
            bits += 8;
            rest = more;
        }
        let (byte, length) = match BY_BITS[(window >> 56) as usize] {
            (_, 0) => long((window >> 32) as u32)?,
            (byte, length) => (byte, u32::from(length)),
        };
        if bits < length {
            // Less than a byte, and all ones.
            let padding = bits == 0 || bits < 8 && window >> (64 - bits) == (1 << bits) - 1;
            return padding.then_some(());
        }
        end += length as usize;
        each(byte, end);
        window <<= length;
        bits -= length;
    }
}

#[cold]
fn long(bits: u32) -> Option<(u8, u32)> {
    let group = BY_LENGTH.iter().find(|group| bits < group.end)?;
    let (first, place) = group.first;
    let byte = IN_ORDER.get(((bits >> (32 - group.length)) - first + place) as usize)?;
    Some((*byte, group.length))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// The code of `text`.
    pub(in crate::http2) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut out, mut window, mut bits) = (Vec::new(), 0_u64, 0);
        for byte in text {
            let length = u32::from(LENGTHS[usize::from(*byte)]);
            window = window << length | u64::from(CODES[usize::from(*byte)]);
            bits += length;
            while 8 <= bits {
                bits -= 8;
                out.push((window >> bits) as u8);
            }
        }
        if 0 < bits {
            out.push((window << (8 - bits)) as u8 | (0xff_u8 >> bits));
        }
        out
    }

    /// The codes, one after the other in the order of length and value.
    static CODES: LazyLock<[u32; 256]> = LazyLock::new(|| {
        let (mut codes, mut next) = ([0; 256], 0);
        for length in 1..=LONGEST {
            next <<= 1;
            for byte in (0..256).filter(|byte| LENGTHS[*byte] == length) {
                codes[byte] = next;
                next += 1;
            }
        }
        codes
    });

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes, |byte, _| out.push(byte)).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 7541, appendices C.4 and C.6.
        for (code, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
            (&[], ""),
        ] {
            assert_eq!(decoded(code).as_deref(), Some(text.as_bytes()), "{text}");
            assert_eq!(encode(text.as_bytes()), code, "{text}");
        }
    }

    #[test]
    fn what_ends_as_no_code_does() {
        for code in [
            &[0xff][..],                     // a whole byte of padding
            &[0x1f, 0xff],                   // behind a byte
            &[0x18],                         // zeros behind `a`
            &[0xff, 0xff, 0xff, 0xff],       // the end of the text, which must not be written
            &[0x1f, 0xff, 0xff, 0xff, 0xff], // the same behind a byte
            &[0xfe],                         // half a byte's code
        ] {
            assert_eq!(decoded(code), None, "{code:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text: Vec<u8>) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        /// What is taken for a code is one: written again it is the same.
        #[test]
        fn no_text_has_two_codes(code: Vec<u8>) {
            if let Some(text) = decoded(&code) {
                prop_assert_eq!(encode(&text), code);
            }
        }
    }
}
