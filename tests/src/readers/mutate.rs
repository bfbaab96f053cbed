//! Bytes that are nearly requests: the corpus, spliced and bent with chance as an argument.

use fastrand::Rng;

use crate::wire::corpus::{self, Case, Expect};

/// What stands in requests and decides about them.
const WORDS: [&[u8]; 40] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\r\n",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"\\",
    b"#",
    b"%",
    b"?",
    b"*",
    b"/",
    b"0",
    b"5",
    b"00",
    b"0x",
    b"+",
    b"-",
    b"a",
    b"\x7f",
    b"\x85",
    b"\xff",
    b"chunked",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b.test\r\n",
    b"Connection: close\r\n",
    b"0\r\n\r\n",
    b"5;a=\"b\"\r\nhello\r\n",
    b"X-A: b\r\n c\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
];

/// Requests to begin with: those that are legal, and all.
pub struct Seeds {
    legal: Vec<Vec<u8>>,
    all: Vec<Vec<u8>>,
}

impl Seeds {
    /// The corpus, but for what is long.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_the_corpus() -> anyhow::Result<Self> {
        let cases = [corpus::accepts()?, corpus::h1_families()?, corpus::h1_rejects()?].concat();
        let short = |case: &Case| case.raw.as_ref().map(|raw| raw.0.clone()).filter(|raw| raw.len() < 2000);
        let legal = cases.iter().filter(|case| case.expect == Expect::Accept).filter_map(short).collect();
        Ok(Self { legal, all: cases.iter().filter_map(short).collect() })
    }

    /// The bytes of a connection.
    pub fn bytes(&self, random: &mut Rng) -> Vec<u8> {
        let mut bytes = self.seed(random).to_vec();
        if random.u8(..4) == 0 {
            bytes.extend_from_slice(self.seed(random)); // behind it, as clients send them that do not wait
        }
        for _ in 0..[0, 1, 1, 1, 2, 2, 3, 5][random.usize(..8)] {
            self.bend(&mut bytes, random);
        }
        bytes
    }

    fn seed(&self, random: &mut Rng) -> &[u8] {
        let from = if random.u8(..3) == 0 { &self.all } else { &self.legal };
        &from[random.usize(..from.len())]
    }

    fn bend(&self, bytes: &mut Vec<u8>, random: &mut Rng) {
        let at = random.usize(..=bytes.len());
        match random.u8(..11) {
            0 | 1 => {
                let word = WORDS[random.usize(..WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            2 => {
                let word = WORDS[random.usize(..WORDS.len())];
                let end = bytes.len().min(at + word.len());
                bytes.splice(at..end, word.iter().copied());
            }
            3 => drop(bytes.drain(at..bytes.len().min(at + random.usize(1..4)))),
            4 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.u8(..);
                }
            }
            5 => line(bytes, random, |lines, one, _| lines.insert(one, lines[one].clone())),
            6 => line(bytes, random, |lines, one, _| drop(lines.remove(one))),
            7 => line(bytes, random, |lines, one, other| lines.swap(one, other)),
            8 => other_end(bytes, random),
            9 => other_digit(bytes, random),
            _ => {
                let other = self.seed(random);
                let from = random.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// Changes the lines, of which two are chosen.
fn line(bytes: &mut Vec<u8>, random: &mut Rng, change: impl FnOnce(&mut Vec<Vec<u8>>, usize, usize)) {
    let mut lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return;
    }
    let (one, other) = (random.usize(..lines.len()), random.usize(..lines.len()));
    change(&mut lines, one, other);
    *bytes = lines.concat();
}

/// Ends one of the lines otherwise.
fn other_end(bytes: &mut Vec<u8>, random: &mut Rng) {
    const ENDS: [&[u8]; 6] = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b""];
    let places: Vec<_> =
        bytes.windows(2).enumerate().filter(|(_, pair)| *pair == b"\r\n").map(|(at, _)| at).collect();
    if let Some(&at) = places.get(random.usize(..places.len().max(1))) {
        bytes.splice(at..at + 2, ENDS[random.usize(..ENDS.len())].iter().copied());
    }
}

/// Changes one of the digits.
fn other_digit(bytes: &mut [u8], random: &mut Rng) {
    let places: Vec<_> =
        bytes.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at).collect();
    if let Some(&at) = places.get(random.usize(..places.len().max(1))) {
        bytes[at] = b"0123456789afAFx"[random.usize(..15)];
    }
}
