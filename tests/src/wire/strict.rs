//! A reader of HTTP/1.1 requests that accepts only what a strict sender writes (RFC 9112), for the bytes that a
//! worker receives from the proxy.
//! It is stricter than RFC 9112 asks of a *recipient*: whatever two servers could read in two ways is a violation.

use super::grammar::{
    Field, Violation, forbidden_in_trailers, imitates_own_field, is_field_value, is_host, is_token, members,
    target_fault, target_leak, trim, values, violation,
};

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub method: String,
    pub target: String,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// What in it was not for a worker, though every reader takes the message for the same.
    pub leaks: Vec<Violation>,
}

/// What the front of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<M> {
    /// One message and the number of bytes it takes.
    Complete(M, usize),
    Incomplete,
    Broken(Vec<Violation>),
}

/// All messages of a byte stream that ended, none with a leak.
pub fn messages(mut bytes: &[u8]) -> Result<Vec<Message>, Vec<Violation>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        match request(bytes) {
            Step::Complete(message, _) if !message.leaks.is_empty() => return Err(message.leaks),
            Step::Complete(message, length) => {
                found.push(message);
                bytes = &bytes[length..];
            }
            Step::Incomplete => return Err(vec![violation("the stream ends inside a message")]),
            Step::Broken(violations) => return Err(violations),
        }
    }
    Ok(found)
}

/// The request at the front of `bytes`.
pub fn request(bytes: &[u8]) -> Step<Message> {
    let Some((lines, head_length)) = head(bytes) else {
        return unfinished_head(bytes);
    };
    let mut faults = line_faults(lines);
    let mut lines = split_lines(lines).into_iter();
    let line = request_line(lines.next().unwrap_or_default(), &mut faults);
    let fields = fields(lines, &mut faults);
    host_faults(line.old, &fields, &mut faults);
    let framing = framing(&fields, &mut faults);
    if line.old && framing == Framing::Chunked {
        faults.push(violation("Transfer-Encoding in HTTP/1.0"));
    }
    if !faults.is_empty() {
        return Step::Broken(faults);
    }
    let mut leaks = leaks(&line, &fields);
    let RequestLine { method, target, .. } = line;
    match body(framing, &bytes[head_length..]) {
        Step::Complete((body, trailers), length) => {
            leaks.extend(trailer_leaks(&trailers));
            let message = Message { method, target, fields, body, trailers, leaks };
            Step::Complete(message, head_length + length)
        }
        Step::Incomplete => Step::Incomplete,
        Step::Broken(faults) => Step::Broken(faults),
    }
}

/// Everything before the empty line (its last line end included), and the length with the empty line.
pub fn head(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((&bytes[..end + 2], end + 4))
}

/// A head without an end is a violation at once when it ends its lines otherwise.
pub(super) fn unfinished_head<M>(bytes: &[u8]) -> Step<M> {
    let ended_otherwise = [&b"\n\n"[..], b"\r\r", b"\n\r\n"]
        .iter()
        .any(|end| bytes.windows(end.len()).any(|window| window == *end));
    let faults = line_faults(bytes.strip_suffix(b"\r").unwrap_or(bytes));
    if ended_otherwise || !faults.is_empty() { Step::Broken(faults) } else { Step::Incomplete }
}

/// Bare CR, bare LF and NUL.
pub fn line_faults(bytes: &[u8]) -> Vec<Violation> {
    let mut faults = Vec::new();
    for (at, &byte) in bytes.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        match byte {
            b'\r' if bytes.get(at + 1) != Some(&b'\n') => faults.push(violation("bare CR in the head")),
            b'\n' if before != Some(&b'\r') => faults.push(violation("bare LF in the head")),
            0 => faults.push(violation("NUL in the head")),
            _ => {}
        }
    }
    faults
}

pub fn split_lines(head: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> =
        head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    lines.pop();
    lines
}

#[derive(Default)]
struct RequestLine {
    method: String,
    target: String,
    /// HTTP/1.0.
    old: bool,
}

fn request_line(line: &[u8], faults: &mut Vec<Violation>) -> RequestLine {
    let parts: Vec<_> = line.split(|&byte| byte == b' ').collect();
    let &[method, target, version] = parts.as_slice() else {
        faults.push(violation("request line is not three parts"));
        return RequestLine::default();
    };
    if !is_token(method) {
        faults.push(violation("method is not a token"));
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        faults.push(violation("version is not HTTP/1.1"));
    }
    faults.extend(target_fault(target));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    RequestLine { method: text(method), target: text(target), old: version == b"HTTP/1.0" }
}

/// Field lines; what is wrong with them goes to `faults`.
pub fn fields<'l>(lines: impl Iterator<Item = &'l [u8]>, faults: &mut Vec<Violation>) -> Vec<Field> {
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':');
        let Some(colon) = colon.filter(|&colon| is_token(&line[..colon])) else {
            faults.push(violation(format!("not a field line: {}", line.escape_ascii())));
            continue;
        };
        let value = trim(&line[colon + 1..]);
        if !is_field_value(value) {
            faults.push(violation(format!("control byte in a field value: {}", line.escape_ascii())));
        }
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        fields.push(Field { name, value: value.to_vec() });
    }
    fields
}

fn host_faults(old: bool, fields: &[Field], faults: &mut Vec<Violation>) {
    let hosts: Vec<_> = values(fields, "host").collect();
    match hosts.as_slice() {
        [] if old => {}
        [host] if is_host(host) => {}
        [host] => faults.push(violation(format!("malformed Host: {}", host.escape_ascii()))),
        _ => faults.push(violation(format!("{} Host fields", hosts.len()))),
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
    /// Neither field: no content in a request, until close in a response.
    Unstated,
}

pub(super) fn framing(fields: &[Field], faults: &mut Vec<Violation>) -> Framing {
    let lengths: Vec<_> = values(fields, "content-length").collect();
    let codings: Vec<_> = values(fields, "transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => return Framing::Unstated,
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => return Framing::Chunked,
        ([length], []) => match canonical_length(length) {
            Some(length) => return Framing::Length(length),
            None => faults.push(violation(format!("Content-Length is {}", length.escape_ascii()))),
        },
        (_, []) => faults.push(violation("more than one Content-Length")),
        ([], _) => faults.push(violation("Transfer-Encoding is not one `chunked`")),
        _ => faults.push(violation("both Content-Length and Transfer-Encoding")),
    }
    Framing::Unstated
}

fn canonical_length(value: &[u8]) -> Option<usize> {
    let canonical = value == b"0" || (!value.starts_with(b"0") && value.iter().all(u8::is_ascii_digit));
    std::str::from_utf8(value).ok().filter(|_| canonical)?.parse().ok()
}

/// What is not for a worker: another version, other methods, targets in other forms, fields of the connection to the
/// client, fields that speak for a client.
fn leaks(line: &RequestLine, fields: &[Field]) -> Vec<Violation> {
    let method = line.method.as_str();
    let mut leaks = Vec::new();
    if line.old {
        leaks.push(violation("version is not HTTP/1.1"));
    }
    if method == "CONNECT" || method == "TRACE" {
        leaks.push(violation(format!("{method} reached a worker")));
    }
    leaks.extend(target_leak(method, line.target.as_bytes()));
    for name in ["keep-alive", "proxy-connection", "proxy-authorization", "http2-settings"] {
        if fields.iter().any(|field| field.is(name)) {
            leaks.push(violation(format!("hop-by-hop field {name}")));
        }
    }
    let options = members(fields, "connection");
    for option in &options {
        if !["close", "keep-alive", "te", "upgrade"].contains(&option.as_str()) {
            leaks.push(violation(format!("Connection nominates {option}")));
        }
    }
    let codings = members(fields, "te");
    let listed = |option: &str| options.iter().any(|present| present == option);
    if !codings.is_empty() && (codings != ["trailers"] || !listed("te")) {
        leaks.push(violation("TE other than `trailers` nominated by Connection"));
    }
    let protocols = members(fields, "upgrade");
    let bodiless = method == "GET" && framing(fields, &mut Vec::new()) == Framing::Unstated;
    if !protocols.is_empty() && (protocols != ["websocket"] || !listed("upgrade") || !bodiless) {
        leaks.push(violation("Upgrade other than a WebSocket GET without content"));
    }
    for field in fields.iter().filter(|field| imitates_own_field(&field.name)) {
        leaks.push(violation(format!("field {} imitates a field of the proxy", field.name)));
    }
    leaks
}

fn trailer_leaks(trailers: &[Field]) -> impl Iterator<Item = Violation> {
    let forbidden = trailers.iter().filter(|field| forbidden_in_trailers(&field.name));
    forbidden.map(|field| violation(format!("{} in the trailers", field.name)))
}

/// Whether the head at the front of `bytes` is whole and its sender waits for `100 Continue`.
pub fn waits_for_continue(bytes: &[u8]) -> bool {
    let Some((lines, _)) = head(bytes) else { return false };
    let fields = fields(split_lines(lines).into_iter().skip(1), &mut Vec::new());
    members(&fields, "expect").iter().any(|member| member == "100-continue")
}

type Body = (Vec<u8>, Vec<Field>);

pub(super) fn body(framing: Framing, bytes: &[u8]) -> Step<Body> {
    match framing {
        Framing::Unstated => Step::Complete((Vec::new(), Vec::new()), 0),
        Framing::Length(length) if bytes.len() < length => Step::Incomplete,
        Framing::Length(length) => Step::Complete((bytes[..length].to_vec(), Vec::new()), length),
        Framing::Chunked => chunked(bytes),
    }
}

fn chunked(bytes: &[u8]) -> Step<Body> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") else {
            let size = &bytes[at..];
            let size = size.strip_suffix(b"\r").unwrap_or(size);
            let begun = size.is_empty() || chunk_size(size).is_some();
            return if begun { Step::Incomplete } else { broken("malformed chunk size") };
        };
        let Some(size) = chunk_size(&bytes[at..at + line]) else { return broken("malformed chunk size") };
        at += line + 2;
        if size == 0 {
            return trailers(body, bytes, at);
        }
        let Some(end) = at.checked_add(size) else { return broken("chunk size overflows") };
        if bytes.len() < end + 2 {
            return Step::Incomplete;
        }
        if &bytes[end..end + 2] != b"\r\n" {
            return broken("chunk data is not followed by CRLF");
        }
        body.extend_from_slice(&bytes[at..end]);
        at = end + 2;
    }
}

/// Hexadecimal digits and nothing else: a proxy that frames anew has no extension to send.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let digits = !line.is_empty() && line.len() <= 15 && line.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(line).ok().filter(|_| digits).and_then(|line| usize::from_str_radix(line, 16).ok())
}

fn trailers(body: Vec<u8>, bytes: &[u8], at: usize) -> Step<Body> {
    let rest = &bytes[at..];
    if rest.starts_with(b"\r\n") {
        return Step::Complete((body, Vec::new()), at + 2);
    }
    let Some((lines, length)) = head(rest) else { return unfinished_head(rest) };
    let mut faults = line_faults(lines);
    let fields = fields(split_lines(lines).into_iter(), &mut faults);
    if faults.is_empty() { Step::Complete((body, fields), at + length) } else { Step::Broken(faults) }
}

fn broken<M>(text: &str) -> Step<M> {
    Step::Broken(vec![violation(text)])
}

#[cfg(test)]
mod tests;
