//! The gRPC health protocol, `grpc.health.v1.Health/Check`: one call with two small messages, so its few bytes are
//! written and read here ("GRPC Health Checking Protocol"; the encoding is that of Protocol Buffers).

use bytes::Bytes;
use http::HeaderMap;

use super::probe::Failure;

/// The method's path.
pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";

const SERVING: u64 = 1;
/// A message's head: not compressed, and four bytes of length.
const HEAD: usize = 5;

/// `HealthCheckRequest { string service = 1; }`, of at most 127 bytes of name.
pub(super) fn request(service: &str) -> Bytes {
    let message = match service.len() as u8 {
        0 => Vec::new(),
        length => [&[0x0a, length], service.as_bytes()].concat(),
    };
    let head = [&[0], &(message.len() as u32).to_be_bytes()[..]].concat();
    Bytes::from([head, message].concat())
}

/// Whether an answer says that the worker is serving. A call that fails at once has its status in the header.
pub(super) fn verdict(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Result<(), Failure> {
    let status = |fields: &HeaderMap| fields.get("grpc-status")?.to_str().ok()?.parse().ok();
    match trailers.and_then(status).or_else(|| status(headers)) {
        Some(0) => {}
        Some(code) => return Err(Failure::Grpc(code)),
        None => return Err(Failure::NotGrpc),
    }
    match body.get(HEAD..).map(serving_status) {
        Some(Some(SERVING)) => Ok(()),
        Some(Some(status)) => Err(Failure::NotServing(status)),
        _ => Err(Failure::NotGrpc),
    }
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; `None` for what is no message.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(status: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            status.parse().expect("a value"),
        )])
    }

    #[test]
    fn the_request_names_the_service() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn only_serving_passes() {
        let (empty, ok) = (HeaderMap::new(), headers("0"));
        let judge = |body: &[u8]| verdict(&empty, Some(&ok), body);
        assert!(judge(&[0, 0, 0, 0, 2, 0x08, 1]).is_ok());
        assert!(judge(&[0, 0, 0, 0, 5, 0x12, 1, b'x', 0x08, 1]).is_ok(), "other fields are passed over");
        for (body, status) in [(&[0, 0, 0, 0, 2, 0x08, 2][..], 2), (&[0, 0, 0, 0, 0], 0)] {
            assert!(matches!(judge(body), Err(Failure::NotServing(found)) if found == status));
        }
        for broken in [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 1, 0x08], &[0, 0, 0, 0, 2, 0x0a, 9]] {
            assert!(matches!(judge(broken), Err(Failure::NotGrpc)), "{broken:?}");
        }
        let unimplemented = verdict(&headers("12"), None, &[]);
        assert!(matches!(unimplemented, Err(Failure::Grpc(12))));
        assert!(matches!(verdict(&empty, None, &[0, 0, 0, 0, 2, 0x08, 1]), Err(Failure::NotGrpc)));
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = serving_status(&bytes);
        }
    }
}
