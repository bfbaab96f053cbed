//! A reader by the grammar of RFC 9112, independent of the proxy's: what a strict recipient takes for a request. What a
//! strict sender would not write but no two readers differ about (leading zeros, extensions of chunks) it takes.

use super::{Read, Reading, comparable, sorted};
use crate::wire::grammar::{Field, is_host, is_token, values};
use crate::wire::strict::{fields, head, line_faults, split_lines};

/// What such a recipient makes of these bytes.
pub fn read(mut bytes: &[u8]) -> Reading {
    let mut requests = Vec::new();
    loop {
        // A server should ignore at least one empty line (RFC 9112 §2.2).
        bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        match request(bytes) {
            Ok(Some((read, length))) => {
                requests.push(read);
                bytes = &bytes[length..];
            }
            Ok(None) => return Reading { requests, refusal: None },
            Err(why) => return Reading { requests, refusal: Some(why) },
        }
    }
}

/// The request at the front and its length; `None` when its end has not come.
type Front = Option<(Read, usize)>;

fn request(bytes: &[u8]) -> Result<Front, String> {
    let Some((lines, head_length)) = head(bytes) else { return Ok(None) };
    let mut faults = line_faults(lines);
    let mut lines = split_lines(lines).into_iter();
    let line = lines.next().unwrap_or_default();
    let fields = fields(lines, &mut faults);
    if let Some(fault) = faults.first() {
        return Err(fault.to_string());
    }
    let &[method, target, version] = line.split(|byte| *byte == b' ').collect::<Vec<_>>().as_slice() else {
        return Err(String::from("the request line is not three parts"));
    };
    let old = version == b"HTTP/1.0";
    if !is_token(method) || !(old || version == b"HTTP/1.1") || !is_target(method, target) {
        return Err(String::from("the request line is malformed"));
    }
    let hosts: Vec<_> = values(&fields, "host").collect();
    if !(matches!(hosts.as_slice(), [host] if is_host(host)) || (hosts.is_empty() && old)) {
        return Err(String::from("Host is not one host"));
    }
    let Some((body, trailers, length)) = content(old, &fields, &bytes[head_length..])? else {
        return Ok(None);
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pairs = |fields: Vec<Field>| sorted(fields.into_iter().map(|field| (field.name, field.value)));
    let read = Read {
        method: text(method),
        target: comparable(&text(target)),
        fields: pairs(fields),
        body,
        trailers: pairs(trailers),
    };
    Ok(Some((read, head_length + length)))
}

/// The four forms (RFC 9112 §3.2), in visible bytes and without a fragment.
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let absolute = target.to_ascii_lowercase();
    let form = match target {
        b"*" => method == b"OPTIONS",
        [b'/', ..] => true,
        _ => absolute.starts_with(b"http://") || absolute.starts_with(b"https://"),
    };
    form && method != b"CONNECT" && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
}

/// Content, trailers and how many bytes they take; `None` when their end has not come.
type Content = Option<(Vec<u8>, Vec<Field>, usize)>;

fn content(old: bool, fields: &[Field], bytes: &[u8]) -> Result<Content, String> {
    let lengths: Vec<_> = values(fields, "content-length").collect();
    let codings: Vec<_> = values(fields, "transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(Some((Vec::new(), Vec::new(), 0))),
        ([length], []) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(length).ok().filter(|_| digits);
            let length: u64 =
                length.and_then(|text| text.parse().ok()).ok_or("Content-Length is no number")?;
            let content = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
            Ok(content.map(|content| (content.to_vec(), Vec::new(), content.len())))
        }
        ([], [coding]) if !old && coding.eq_ignore_ascii_case(b"chunked") => chunks(bytes),
        _ => Err(String::from("the end of the content is not told in one way")),
    }
}

fn chunks(bytes: &[u8]) -> Result<Content, String> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = line(&bytes[at..])? else { return Ok(None) };
        at += line.len() + 2;
        let size = chunk_size(line).ok_or_else(|| format!("no chunk size: {}", line.escape_ascii()))?;
        if size == 0 {
            break;
        }
        let end =
            usize::try_from(size).ok().and_then(|size| at.checked_add(size)).ok_or("a chunk is too large")?;
        let Some(data) = bytes.get(at..end) else { return Ok(None) };
        content.extend_from_slice(data);
        match bytes.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return Err(String::from("a chunk does not end with CR LF")),
            None => return Ok(None),
        }
    }
    if bytes[at..].starts_with(b"\r\n") {
        return Ok(Some((content, Vec::new(), at + 2)));
    }
    let Some((lines, length)) = head(&bytes[at..]) else { return Ok(None) };
    let mut faults = line_faults(lines);
    let trailers = fields(split_lines(lines).into_iter(), &mut faults);
    match faults.first() {
        Some(fault) => Err(fault.to_string()),
        None => Ok(Some((content, trailers, at + length))),
    }
}

/// The line at the front, without its end; `None` when that has not come.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    match bytes[..end].strip_suffix(b"\r") {
        Some(line) if !line.contains(&b'\r') => Ok(Some(line)),
        _ => Err(String::from("a line does not end with CR LF")),
    }
}

/// `chunk-size *( ";" name [ "=" value ] )`, without white space (RFC 9112 §7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let size = u64::from_str_radix(std::str::from_utf8(&line[..end]).ok()?, 16).ok()?;
    let mut rest = &line[end..];
    while let Some(extension) = rest.strip_prefix(b";") {
        let (name, after) = token(extension);
        if name.is_empty() {
            return None;
        }
        rest = match after.strip_prefix(b"=") {
            Some([b'"', quoted @ ..]) => behind_quotes(quoted)?,
            Some(value) => token(value).1,
            None => after,
        };
    }
    rest.is_empty().then_some(size)
}

fn token(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !is_token(&[*byte])).unwrap_or(bytes.len());
    bytes.split_at(end)
}

fn behind_quotes(bytes: &[u8]) -> Option<&[u8]> {
    let is_text = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    match bytes {
        [b'"', rest @ ..] => Some(rest),
        [b'\\', escaped, rest @ ..] if is_text(*escaped) => behind_quotes(rest),
        [byte, rest @ ..] if *byte != b'\\' && is_text(*byte) => behind_quotes(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (line, size) in [
            (&b"5"[..], Some(5)),
            (b"00a;b", Some(10)),
            (b"5;a=b;c=\"d;\\\"e\"", Some(5)),
            (b"", None),
            (b"5 ", None),
            (b"5;", None),
            (b"5;a=\"b", None),
            (b"5;a=\x00", None),
            (b"10000000000000000", None),
        ] {
            assert_eq!(chunk_size(line), size, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn requests_follow_each_other() {
        let bytes =
            b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX: y\r\n\r\n\
            GET http://A/ HTTP/1.0\r\n\r\nGET /c HTTP/1.1\r\n\r\n";
        let reading = read(bytes);
        let told: Vec<_> =
            reading.requests.iter().map(|read| (read.target.as_str(), read.body.as_slice())).collect();
        assert_eq!(told, [("/a", &b"ab"[..]), ("http://a/", b"")]);
        assert_eq!(reading.refusal.as_deref(), Some("Host is not one host"));
    }
}
