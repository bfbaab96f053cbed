//! What may follow content (RFC 9110 §6.5.1).

use http::HeaderMap;
use http::header::{self, HeaderName};

use super::fields;

/// Drops the fields that have no place behind content, in both directions: those that frame, route, authenticate,
/// describe the content or steer who handles it. A merging reader would take them for fields of the head.
pub fn trailers(trailers: &mut HeaderMap) {
    if trailers.len() > super::MAX_HEADERS {
        trailers.clear();
        return;
    }
    let forbidden: Vec<_> = trailers.keys().filter(|name| is_forbidden(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

fn is_forbidden(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 33] = [
        header::AGE,
        header::ALLOW,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LOCATION,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::DATE,
        header::EXPIRES,
        header::IF_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_RANGE,
        header::IF_UNMODIFIED_SINCE,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::ORIGIN,
        header::PRAGMA,
        header::RANGE,
        header::RETRY_AFTER,
        header::SET_COOKIE,
        header::STRICT_TRANSPORT_SECURITY,
        header::TRAILER,
        header::USER_AGENT,
        header::VARY,
        header::WARNING,
        header::WWW_AUTHENTICATE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_PROTOCOL,
    ];
    fields::is_ours(name) || FORBIDDEN.contains(name)
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn only_harmless_trailers_stay() {
        let mut fields = HeaderMap::new();
        for name in [
            "content-length",
            "transfer-encoding",
            "host",
            "authorization",
            "cookie",
            "set-cookie",
            "x-forwarded-for",
            "x_forwarded_for",
            "connection",
            "te",
            "trailer",
            "x-request-id",
            "content-type",
            "keep-alive",
            "via",
            "expect",
            "traceparent",
            "grpc-status",
            "grpc-message",
            "server-timing",
            "x-sum",
        ] {
            fields.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        trailers(&mut fields);
        let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-message", "grpc-status", "server-timing", "x-sum"]);
    }

    #[test]
    fn a_flood_is_dropped() {
        let mut fields = HeaderMap::new();
        (0..=crate::guard::MAX_HEADERS).for_each(|_| _ = fields.append("x-a", HeaderValue::from_static("b")));
        trailers(&mut fields);
        assert!(fields.is_empty());
    }
}
