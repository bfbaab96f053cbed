//! Whom a request is for: one `host`, whatever form it came in (RFC 9112 §3.2, RFC 9113 §8.3.1).

use std::net::Ipv6Addr;

use http::Version;
use http::header::{self, HeaderValue};
use http::request::Parts;

use super::fields::{self, Fields};
use crate::rejection::Rejection;

/// What an HTTP/1.0 request without `Host` is for: the worker is sent HTTP/1.1, where the field is mandatory.
const UNNAMED: HeaderValue = HeaderValue::from_static("localhost");

/// Leaves exactly one `host`: that of an absolute target or of `:authority`, else the field's own.
pub(super) fn settle(head: &mut Parts, fields: Fields) -> Result<(), Rejection> {
    let host = if fields.any(Fields::HOST) {
        let only = fields::only(&head.headers, &header::HOST);
        let host = only.ok_or(Rejection::BadRequest("more than one Host"))?;
        Some(
            Some(host)
                .filter(|host| is_host(host.as_bytes()))
                .ok_or(Rejection::BadRequest("malformed Host"))?,
        )
    } else {
        None
    };
    let version = head.version;
    if host.is_none() && version == Version::HTTP_11 {
        return Err(Rejection::BadRequest("Host is missing"));
    }
    let Some(authority) = head.uri.authority().map(|authority| authority.as_str()) else {
        if host.is_none() && version == Version::HTTP_2 {
            return Err(Rejection::BadRequest("neither :authority nor Host"));
        }
        if host.is_none() {
            head.headers.insert(header::HOST, UNNAMED);
        }
        return Ok(());
    };
    if !is_host(authority.as_bytes()) {
        return Err(Rejection::BadRequest("malformed authority"));
    }
    match host {
        Some(host) if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {}
        Some(_) if version == Version::HTTP_2 => {
            return Err(Rejection::BadRequest("Host differs from :authority"));
        }
        _ => {
            let value = HeaderValue::from_str(authority);
            head.headers
                .insert(header::HOST, value.map_err(|_| Rejection::BadRequest("malformed authority"))?);
        }
    }
    Ok(())
}

/// `uri-host [ ":" port ]` of RFC 3986 §3.2, stricter: no user information, no comma, neither part empty.
fn is_host(host: &[u8]) -> bool {
    let name = if let [b'[', literal @ ..] = host {
        let Some(end) = literal.iter().position(|&byte| byte == b']') else { return false };
        if !std::str::from_utf8(&literal[..end]).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()) {
            return false;
        }
        end + 2
    } else {
        host.iter().position(|&byte| !NAME[usize::from(byte)]).unwrap_or(host.len())
    };
    match &host[name..] {
        _ if name == 0 && host.first() != Some(&b'%') => false,
        [] => true,
        [b':', port @ ..] => is_port(port),
        [b'%', ..] => is_encoded_host(host),
        _ => false,
    }
}

/// The same for a name with percent-encoding, which nobody sends.
#[cold]
fn is_encoded_host(host: &[u8]) -> bool {
    let mut rest = host;
    loop {
        rest = match rest {
            [] => return true,
            [b':', port @ ..] => return is_port(port),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if NAME[usize::from(*byte)] => rest,
            _ => return false,
        };
    }
}

fn is_port(port: &[u8]) -> bool {
    if port.is_empty() || !port.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let zeros = port.iter().take_while(|&&byte| byte == b'0').count();
    let digits = &port[zeros..];
    digits.len() < 5 || (digits.len() == 5 && digits <= &b"65535"[..])
}

/// The bytes of a registered name, but for percent-encoding and the comma (RFC 3986 §3.2.2).
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+;=";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in [
            "a.test",
            "A.Test",
            "a.test.",
            "a_b.test",
            "a.test:80",
            "a.test:0",
            "a.test:65535",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8080",
            "a%2Db.test",
            "%61",
            "%61:80",
            "a!$&'()*+;=.test",
            "xn--caf-dma.test",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn no_hosts() {
        for host in [
            "",
            ":",
            ":80",
            "a.test:",
            "a.test:99999",
            "a.test:65536",
            "a.test:http",
            "a.test:80:81",
            "a.test:+80",
            "a.test, b.test",
            "u@a.test",
            "a.test/x",
            "a.test?x",
            "a.test#x",
            "a b",
            "a\tb",
            "é.test",
            "[::1",
            "[]",
            "[zz]",
            "[::1]x",
            "[::1]:",
            "[::1%25eth0]",
            "a%zz",
            "a%4",
            "a%",
            "a\\b",
            "\"a\"",
            "http://a.test/",
            "a%41/",
            "a%41:",
            "::1",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}
