//! The names under which a request is known elsewhere: its id, and its place in a trace.

use http::HeaderMap;
use http::header::HeaderValue;

use super::fields::{self, Fields, TRACEPARENT, TRACESTATE, X_REQUEST_ID};

/// The longest request id of a client's own.
const MAX_ID: usize = 128;

/// Gives the request an id unless it has a good one, and drops trace context that is none.
pub(super) fn request(headers: &mut HeaderMap, fields: Fields, random: u128) {
    if !(fields.any(Fields::X_REQUEST_ID) && fields::only(headers, &X_REQUEST_ID).is_some_and(is_id))
        && let Ok(id) = HeaderValue::from_bytes(&hexadecimal(random))
    {
        headers.insert(&X_REQUEST_ID, id);
    }
    if !fields.any(Fields::TRACEPARENT.and(Fields::TRACESTATE)) {
        return;
    }
    if !fields::only(headers, &TRACEPARENT).is_some_and(|value| is_traceparent(value.as_bytes())) {
        headers.remove(&TRACEPARENT);
        headers.remove(&TRACESTATE);
    }
}

fn is_id(value: &HeaderValue) -> bool {
    let id = value.as_bytes();
    !id.is_empty() && id.len() <= MAX_ID && id.iter().all(u8::is_ascii_graphic)
}

fn hexadecimal(number: u128) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.as_chunks_mut().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    text
}

/// W3C Trace Context §3.2: `version "-" trace-id "-" parent-id "-" flags`, lower case, neither id all zeros. Later
/// versions may go on behind another dash.
fn is_traceparent(value: &[u8]) -> bool {
    let Some((known, more)) = value.split_at_checked(55) else { return false };
    // Without a way out early, these look at many bytes at once.
    let is_hex = |part: &[u8]| {
        part.iter().fold(true, |hex, byte| hex & (byte.is_ascii_digit() | matches!(byte, b'a'..=b'f')))
    };
    let is_id = |part: &[u8]| is_hex(part) && part.iter().fold(0, |any, byte| any | (byte ^ b'0')) != 0;
    let (version, trace, parent, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
    let end = more.is_empty() || (version != b"00" && more[0] == b'-');
    dashes && end && is_hex(version) && version != b"ff" && is_id(trace) && is_id(parent) && is_hex(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = "00f067aa0ba902b7";
        let zeros = "0".repeat(32);
        for (value, expected) in [
            (format!("00-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01-more"), true),
            (format!("cc-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01.more"), false),
            (format!("00-{trace}-{parent}-01-more"), false),
            (format!("ff-{trace}-{parent}-01"), false),
            (format!("00-{zeros}-{parent}-01"), false),
            (format!("00-{trace}-0000000000000000-01"), false),
            (format!("00-{}-{parent}-01", trace.to_uppercase()), false),
            (format!("00-{trace}-{parent}-0"), false),
            (format!("00_{trace}-{parent}-01"), false),
            (String::new(), false),
        ] {
            assert_eq!(is_traceparent(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn ids_are_written_in_hexadecimal() {
        assert_eq!(
            &hexadecimal(0x00ff_1234_5678_9abc_def0),
            b"00000000000000ff123456789abcdef0"[..].first_chunk().unwrap()
        );
    }
}
