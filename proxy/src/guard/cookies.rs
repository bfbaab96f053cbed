//! A cookie is one field, however a client of HTTP/2 splits it for better compression (RFC 9113 §8.2.3).

use http::HeaderMap;
use http::header::{self, HeaderValue};

/// Joins what was split. Done before fields are counted: the parts of a cookie are not many fields.
pub(super) fn join(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return; // no field has a second line
    }
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}
