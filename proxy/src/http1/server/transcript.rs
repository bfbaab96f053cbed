//! What bytes are read as, without a connection: for tests that compare this reader with others.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, request};

use super::reader::Reader;
use crate::http1::Buffers;
use crate::http1::chunked::Next;

/// A request, read to its end.
#[derive(Debug)]
pub struct Exchange {
    /// Its head, as it came.
    pub head: request::Parts,
    /// Its content.
    pub body: Vec<u8>,
    /// The fields behind that.
    pub trailers: HeaderMap,
    /// Whether its client means to send another one.
    pub keep_alive: bool,
}

/// The requests that come in these pieces one after the other, and why what follows them is none; `None` when the bytes
/// end with a request, or within one.
pub fn read(pieces: &[&[u8]]) -> (Vec<Exchange>, Option<String>) {
    let (mut exchanges, buffers) = (Vec::new(), Buffers::default());
    let (mut received, mut pieces) = (Bytes::new(), pieces.iter());
    let mut more = |received: &mut Bytes| {
        let Some(piece) = pieces.next() else { return false };
        let mut joined = BytesMut::from(&received[..]);
        joined.extend_from_slice(piece);
        *received = joined.freeze();
        true
    };
    loop {
        let mut reader = Reader::default();
        let head = loop {
            match reader.take(&mut received, &buffers) {
                Ok(Some(head)) => break head,
                Ok(None) if more(&mut received) => {}
                Ok(None) => return (exchanges, None),
                Err(rejection) => return (exchanges, Some(rejection.message().to_owned())),
            }
        };
        let (mut framing, mut body) = (head.framing, Vec::new());
        let trailers = loop {
            match framing.next(&mut received) {
                Ok(Next::Data(data)) => body.extend_from_slice(&data),
                Ok(Next::Trailers(trailers)) => break trailers,
                Ok(Next::End) => break HeaderMap::new(),
                Ok(Next::More) if more(&mut received) => {}
                Ok(Next::More) => return (exchanges, None),
                Err(malformed) => return (exchanges, Some(malformed.to_string())),
            }
        };
        exchanges.push(Exchange { head: head.parts, body, trailers, keep_alive: head.keep_alive });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_each_other() {
        let bytes =
            b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: y\r\n\r\n\
            GET /b HTTP/1.1\r\nhost: a\r\n\r\nx\n";
        let byte_by_byte: Vec<_> = bytes.chunks(1).collect();
        for pieces in [&[&bytes[..]][..], &byte_by_byte] {
            let (found, why) = read(pieces);
            let told: Vec<_> = found.iter().map(|one| (one.head.uri.path(), one.body.as_slice())).collect();
            assert_eq!(told, [("/a", &b"ab"[..]), ("/b", b"")]);
            assert_eq!((found[0].trailers.len(), why.is_some()), (1, true));
        }
        let (found, why) = read(&[&bytes[..bytes.len() - 4]]);
        assert_eq!((found.len(), why), (1, None));
    }
}
