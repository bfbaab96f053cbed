//! HPACK (RFC 7541), as little as a test client needs: literals without indexing out, and in what a peer may send
//! to one that announced a dynamic table of no size.

use anyhow::{Context, Result, bail, ensure};

/// A field as bytes, legal or not.
pub type RawField = (Vec<u8>, Vec<u8>);

/// Literal fields without indexing and without Huffman coding: any bytes can be written so.
pub fn encode<'f>(fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            put_integer(&mut block, 7, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

fn put_integer(block: &mut Vec<u8>, prefix: u32, value: usize) {
    let limit = (1_usize << prefix) - 1;
    if value < limit {
        block.push(value as u8);
        return;
    }
    block.push(limit as u8);
    let mut rest = value - limit;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

pub fn decode(mut block: &[u8]) -> Result<Vec<RawField>> {
    let mut fields = Vec::new();
    while let Some(&first) = block.first() {
        match first {
            128.. => {
                let index = integer(&mut block, 7)?;
                let &(name, value) =
                    STATIC.get(index.wrapping_sub(1)).context("an index above the static table")?;
                fields.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
            }
            64.. => fields.push(literal(&mut block, 6)?),
            32.. => ensure!(integer(&mut block, 5)? == 0, "a table size above the announced one"),
            _ => fields.push(literal(&mut block, 4)?),
        }
    }
    Ok(fields)
}

fn literal(block: &mut &[u8], prefix: u32) -> Result<RawField> {
    let name = match integer(block, prefix)? {
        0 => string(block)?,
        index => STATIC.get(index - 1).context("a name index above the static table")?.0.as_bytes().to_vec(),
    };
    Ok((name, string(block)?))
}

fn integer(block: &mut &[u8], prefix: u32) -> Result<usize> {
    let limit = (1_usize << prefix) - 1;
    let mut value = usize::from(take_byte(block)?) & limit;
    let mut shift = 0;
    if value < limit {
        return Ok(value);
    }
    loop {
        let byte = usize::from(take_byte(block)?);
        ensure!(shift < 28, "an integer too long");
        value += (byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            return Ok(value);
        }
    }
}

fn take_byte(block: &mut &[u8]) -> Result<u8> {
    let (&byte, rest) = block.split_first().context("the block ends inside a field")?;
    *block = rest;
    Ok(byte)
}

fn string(block: &mut &[u8]) -> Result<Vec<u8>> {
    let coded = block.first().is_some_and(|&first| first >= 128);
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).context("the block ends inside a string")?;
    *block = rest;
    if coded { huffman(bytes) } else { Ok(bytes.to_vec()) }
}

/// The code of Appendix B is canonical: a symbol's code follows from the lengths alone.
fn huffman(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut symbols: Vec<u8> = (0..=255).collect();
    symbols.sort_by_key(|&symbol| (LENGTHS[usize::from(symbol)], symbol));
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        code = code << 1 | bit;
        length += 1;
        if length > 30 {
            bail!("no such Huffman code");
        }
        if let Some(symbol) = symbol(&symbols, code, length) {
            text.push(symbol);
            (code, length) = (0, 0);
        }
    }
    ensure!(length < 8 && code == (1 << length) - 1, "padding that is not the start of EOS");
    Ok(text)
}

fn symbol(symbols: &[u8], code: u32, length: u8) -> Option<u8> {
    let mut next = 0_u32;
    let mut at_length = 0;
    for &symbol in symbols {
        let of = LENGTHS[usize::from(symbol)];
        next <<= of - at_length;
        at_length = of;
        match of.cmp(&length) {
            std::cmp::Ordering::Equal if next == code => return Some(symbol),
            std::cmp::Ordering::Greater => return None,
            _ => next += 1,
        }
    }
    None
}

/// Bits of each byte's code.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads_literals() {
        let long = vec![b'x'; 300];
        let fields = [(&b"a\r\n"[..], &b"\0"[..]), (b"", &long)];
        let decoded = decode(&encode(fields)).unwrap();
        assert_eq!(decoded, [(b"a\r\n".to_vec(), vec![0]), (Vec::new(), long)]);
    }

    #[test]
    fn reads_the_examples_of_rfc_7541_c_6_1() {
        let block = [0x48, 0x82, 0x64, 0x02, 0x58, 0x85, 0xae, 0xc3, 0x77, 0x1a, 0x4b];
        let decoded = decode(&block).unwrap();
        assert_eq!(decoded[0], (b":status".to_vec(), b"302".to_vec()));
        assert_eq!(decoded[1], (b"cache-control".to_vec(), b"private".to_vec()));
        assert!(decode(&[0xff, 0xff]).is_err() && decode(&[0xbe]).is_err() && decode(&[0x3f, 0x01]).is_err());
    }
}
