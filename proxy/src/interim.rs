//! Interim answers (RFC 9110 §15.2) on their way to a client: `100 Continue`, `103 Early Hints`, before the final answer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::guard;
use crate::{http1, http2};

/// A worker that has not answered `Expect: 100-continue` for so long does not know it: the proxy asks for the content in its
/// place. Clients wait as long by themselves (curl one second).
pub const CONTINUE_AFTER: Duration = Duration::from_secs(1);
/// A worker may send as many to one request; those beyond it are dropped.
const MOST: u8 = 32;

/// The way of interim answers to the client of one request.
pub struct Interim {
    to: To,
    sent: Cell<u8>,
    /// Whether the client waits for `100 Continue`.
    awaited: Cell<bool>,
}

enum To {
    /// The client understands none.
    Nobody,
    Http1(Rc<http1::Line>),
    Http2(Rc<http2::Respond>),
}

impl Interim {
    fn new(to: To) -> Self {
        Self { to, sent: Cell::new(0), awaited: Cell::new(false) }
    }

    /// For a client that understands none, as those of HTTP/1.0.
    pub fn to_nobody() -> Self {
        Self::new(To::Nobody)
    }

    /// For the client at the other end of an HTTP/1.1 connection.
    pub fn over_http1(line: Rc<http1::Line>) -> Self {
        Self::new(To::Http1(line))
    }

    /// For the client at the other end of a stream of HTTP/2.
    pub fn over_http2(respond: Rc<http2::Respond>) -> Self {
        Self::new(To::Http2(respond))
    }

    /// The client waits for `100 Continue` before it sends its content.
    pub fn awaits_continue(&self) {
        self.awaited.set(true);
        if let To::Http1(line) = &self.to {
            line.awaits_continue(true);
        }
    }

    /// Passes on a worker's interim answer. A `100 Continue` that nobody waits for goes no further.
    pub fn pass(&self, status: StatusCode, mut fields: HeaderMap) {
        if status == StatusCode::CONTINUE {
            return self.go_on();
        }
        let sent = self.sent.get();
        if sent < MOST && guard::interim(&mut fields) {
            self.sent.set(sent + 1);
            self.send(status, &fields);
        }
    }

    /// Asks the client for its content, if it waits for that.
    pub fn go_on(&self) {
        if self.awaited.replace(false) {
            if let To::Http1(line) = &self.to {
                line.awaits_continue(false);
            }
            self.send(StatusCode::CONTINUE, &HeaderMap::new());
        }
    }

    fn send(&self, status: StatusCode, fields: &HeaderMap) {
        match &self.to {
            To::Nobody => {}
            To::Http1(line) => line.interim(status, fields),
            To::Http2(respond) => respond.interim(status, fields),
        }
    }
}
