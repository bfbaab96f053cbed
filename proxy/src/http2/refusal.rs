//! What a worker says over HTTP/2 when it ends a stream before its end (RFC 9113 §7).

use std::error::Error;

use h2::Reason;

/// How a worker ended a stream where that says nothing of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It did nothing for the request (RFC 9113 §8.7): another may be asked.
    Unprocessed,
    /// It did not like the request, or how many there were: a client can bring that about.
    Refused,
}

/// Whether an error is such a refusal.
pub fn refusal(error: &(dyn Error + 'static)) -> Option<Refusal> {
    let error = of_http2(error)?;
    of(error.is_remote(), error.is_go_away(), error.reason()?)
}

/// Whether an error has ended a stream, and its connection goes on.
pub fn is_of_a_stream(error: &(dyn Error + 'static)) -> bool {
    of_http2(error).is_some_and(h2::Error::is_reset)
}

/// What the library says of an error.
fn of_http2<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e h2::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn of(remote: bool, leaves: bool, reason: Reason) -> Option<Refusal> {
    match reason {
        _ if !remote => None,
        Reason::REFUSED_STREAM => Some(Refusal::Unprocessed),
        Reason::NO_ERROR if leaves => Some(Refusal::Unprocessed),
        Reason::NO_ERROR
        | Reason::CANCEL
        | Reason::PROTOCOL_ERROR
        | Reason::FRAME_SIZE_ERROR
        | Reason::ENHANCE_YOUR_CALM
        | Reason::INADEQUATE_SECURITY
        | Reason::HTTP_1_1_REQUIRED => Some(Refusal::Refused),
        // A client that resets its streams soon enough has a server end the connection with any reason that it likes.
        _ if leaves => Some(Refusal::Refused),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        for (reason, stream, connection) in [
            (Reason::REFUSED_STREAM, Some(Refusal::Unprocessed), Some(Refusal::Unprocessed)),
            (Reason::NO_ERROR, Some(Refusal::Refused), Some(Refusal::Unprocessed)),
            (Reason::PROTOCOL_ERROR, Some(Refusal::Refused), Some(Refusal::Refused)),
            (Reason::ENHANCE_YOUR_CALM, Some(Refusal::Refused), Some(Refusal::Refused)),
            (Reason::INTERNAL_ERROR, None, Some(Refusal::Refused)),
            (Reason::FLOW_CONTROL_ERROR, None, Some(Refusal::Refused)),
        ] {
            assert_eq!(of(true, false, reason), stream, "{reason}");
            assert_eq!(of(true, true, reason), connection, "{reason}");
            assert_eq!(of(false, false, reason), None, "the proxy's own {reason}");
        }
        assert_eq!(refusal(&std::io::Error::other("a reset")), None);
    }
}
