//! A strict reader of HTTP/1.1 responses, for the bytes that a client receives from the proxy.

use super::grammar::{Field, Violation, forbidden_in_trailers, members, violation};
use super::strict::{Framing, Step, body, fields, framing, head, line_faults, split_lines, unfinished_head};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
}

/// What the answers depend on besides their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// The request was HEAD.
    pub to_head: bool,
    /// The sender closed in order: no more bytes will come.
    pub closed: bool,
}

/// The response at the front of `bytes`.
pub fn response(bytes: &[u8], context: Context) -> Step<Response> {
    let Some((lines, head_length)) = head(bytes) else { return unfinished_head(bytes) };
    let mut faults = line_faults(lines);
    let mut lines = split_lines(lines).into_iter();
    let status = status_line(lines.next().unwrap_or_default(), &mut faults);
    let fields = fields(lines, &mut faults);
    let framing = framing(&fields, &mut faults);
    hop_by_hop_faults(status, &fields, &mut faults);
    if !faults.is_empty() {
        return Step::Broken(faults);
    }
    let rest = &bytes[head_length..];
    let without_content = context.to_head || status < 200 || status == 204 || status == 304;
    let framing = if without_content { Framing::Length(0) } else { framing };
    if framing == Framing::Unstated {
        let done = Response { status, fields, body: rest.to_vec(), trailers: Vec::new() };
        return if context.closed { Step::Complete(done, bytes.len()) } else { Step::Incomplete };
    }
    match body(framing, rest) {
        Step::Complete((body, trailers), length) => {
            Step::Complete(Response { status, fields, body, trailers }, head_length + length)
        }
        Step::Incomplete => Step::Incomplete,
        Step::Broken(faults) => Step::Broken(faults),
    }
}

fn status_line(line: &[u8], faults: &mut Vec<Violation>) -> u16 {
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "));
    let digits = rest.and_then(|rest| rest.get(..3)).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let status = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    match status {
        Some(status)
            if (100..600).contains(&status) && rest.is_some_and(|rest| rest.get(3) == Some(&b' ')) =>
        {
            status
        }
        _ => {
            faults.push(violation(format!("not a status line: {}", line.escape_ascii())));
            0
        }
    }
}

/// A client of the proxy must not see what the worker said to the proxy alone.
fn hop_by_hop_faults(status: u16, fields: &[Field], faults: &mut Vec<Violation>) {
    for name in ["proxy-connection", "te", "http2-settings"] {
        if fields.iter().any(|field| field.is(name)) {
            faults.push(violation(format!("hop-by-hop field {name} in a response")));
        }
    }
    let told = |name: &str| fields.iter().any(|field| field.is(name));
    if told("upgrade") && status != 101 && status != 426 {
        faults.push(violation("Upgrade in a response other than 101 and 426"));
    }
    for option in members(fields, "connection") {
        if !["close", "keep-alive", "upgrade"].contains(&option.as_str()) {
            faults.push(violation(format!("Connection nominates {option} in a response")));
        }
    }
    if (status < 200 || status == 204) && (told("content-length") || told("transfer-encoding")) {
        faults.push(violation(format!("framing field in a {status}")));
    }
}

/// Trailer names of a response that a strict sender would not have sent.
pub fn bad_trailers(response: &Response) -> impl Iterator<Item = &str> {
    response.trailers.iter().map(|field| field.name.as_str()).filter(|name| forbidden_in_trailers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str, context: Context) -> Step<Response> {
        response(bytes.as_bytes(), context)
    }

    #[test]
    fn reads_each_framing() {
        let open = Context::default();
        let closed = Context { closed: true, ..open };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        let until_close = "HTTP/1.1 200 OK\r\n\r\nab";
        for (bytes, context) in [(chunked, open), (until_close, closed)] {
            assert!(
                matches!(read(bytes, context), Step::Complete(found, _) if found.body == b"ab"),
                "{bytes}"
            );
        }
        assert_eq!(read(until_close, open), Step::Incomplete);
        let to_head = Context { to_head: true, ..open };
        assert!(matches!(read("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", to_head), Step::Complete(..)));
    }

    #[test]
    fn refuses_what_would_split_clients() {
        for bytes in [
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: x-secret\r\n\r\n",
        ] {
            assert!(matches!(read(bytes, Context::default()), Step::Broken(_)), "{bytes}");
        }
    }
}
