//! The table that every client and server of HTTP/2 begins with.

use super::Field;

/// The table that every client and server has (RFC 7541, appendix A).
#[rustfmt::skip]
pub(super) static STATIC: [Field; 61] = [
    Field::new(b":authority", b""), Field::new(b":method", b"GET"), Field::new(b":method", b"POST"),
    Field::new(b":path", b"/"), Field::new(b":path", b"/index.html"), Field::new(b":scheme", b"http"),
    Field::new(b":scheme", b"https"), Field::new(b":status", b"200"), Field::new(b":status", b"204"),
    Field::new(b":status", b"206"), Field::new(b":status", b"304"), Field::new(b":status", b"400"),
    Field::new(b":status", b"404"), Field::new(b":status", b"500"), Field::new(b"accept-charset", b""),
    Field::new(b"accept-encoding", b"gzip, deflate"), Field::new(b"accept-language", b""),
    Field::new(b"accept-ranges", b""), Field::new(b"accept", b""), Field::new(b"access-control-allow-origin", b""),
    Field::new(b"age", b""), Field::new(b"allow", b""), Field::new(b"authorization", b""),
    Field::new(b"cache-control", b""), Field::new(b"content-disposition", b""), Field::new(b"content-encoding", b""),
    Field::new(b"content-language", b""), Field::new(b"content-length", b""), Field::new(b"content-location", b""),
    Field::new(b"content-range", b""), Field::new(b"content-type", b""), Field::new(b"cookie", b""),
    Field::new(b"date", b""), Field::new(b"etag", b""), Field::new(b"expect", b""), Field::new(b"expires", b""),
    Field::new(b"from", b""), Field::new(b"host", b""), Field::new(b"if-match", b""),
    Field::new(b"if-modified-since", b""), Field::new(b"if-none-match", b""), Field::new(b"if-range", b""),
    Field::new(b"if-unmodified-since", b""), Field::new(b"last-modified", b""), Field::new(b"link", b""),
    Field::new(b"location", b""), Field::new(b"max-forwards", b""), Field::new(b"proxy-authenticate", b""),
    Field::new(b"proxy-authorization", b""), Field::new(b"range", b""), Field::new(b"referer", b""),
    Field::new(b"refresh", b""), Field::new(b"retry-after", b""), Field::new(b"server", b""),
    Field::new(b"set-cookie", b""), Field::new(b"strict-transport-security", b""),
    Field::new(b"transfer-encoding", b""), Field::new(b"user-agent", b""), Field::new(b"vary", b""), Field::new(b"via", b""),
    Field::new(b"www-authenticate", b""),
];
