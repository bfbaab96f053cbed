//! The body of a request that a client still sends, perhaps after its answer has ended: meanwhile its connection does not
//! rest.

use std::rc::Rc;

use super::{Activity, Client, Holding, Phase};

/// A body that a client sends, until it is dropped.
pub struct Uploading(Rc<Client>);

impl Uploading {
    /// This client has begun to send a body.
    pub fn by(client: Rc<Client>) -> Self {
        client.activity.upload_began();
        Self(client)
    }
}

impl Uploading {
    /// Whether it comes over HTTP/2, where more of it may have come than was asked for.
    pub fn comes_ahead(&self) -> bool {
        self.0.activity.http2.get()
    }

    /// What is held of the body, which is nothing yet.
    pub fn holding(&self) -> Holding {
        Holding::by(self.0.activity.clone())
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.activity.upload_ended();
    }
}

impl Activity {
    fn upload_began(&self) {
        self.uploads.set(self.uploads.get() + 1);
    }

    fn upload_ended(&self) {
        self.uploads.set(self.uploads.get().saturating_sub(1));
        if self.phase.get() == Phase::Request {
            self.rest_if_unused();
        }
    }

    /// It rests where there is neither a request nor a body.
    pub(super) fn rest_if_unused(&self) {
        if self.requests.get() == 0 && self.uploads.get() == 0 {
            self.enter(Phase::Idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_body_that_goes_on_after_its_answer_is_no_rest() {
        let busy = Activity::new(Rc::new(Cell::new(1)), Rc::default());
        busy.request_began();
        busy.upload_began();
        busy.request_ended();
        busy.read();
        assert_eq!(busy.phase.get(), Phase::Request, "what comes is no head");
        busy.upload_ended();
        assert_eq!(busy.phase.get(), Phase::Idle);
        busy.read();
        assert_eq!(busy.phase.get(), Phase::Head);
    }
}
