//! Sends a request: its head, and its body as the client sends that.

use std::rc::Rc;
use std::task::{Context, Poll};

use http::Request;

use super::Line;
use super::request;
use crate::body::{Progress, RequestBody};
use crate::guard::RawQuery;
use crate::http1::Buffers;
use crate::http1::message::{Failed, Framing, Message};

/// A request that is being sent.
pub(super) struct Upload {
    message: Message<RequestBody>,
    /// How many bytes the head has.
    head: usize,
    /// How its body gets on, where it has one.
    progress: Option<Rc<Progress>>,
}

impl Upload {
    /// A request of which nothing was sent. Its body is taken, if it has one.
    pub(super) fn new(request: &mut Request<RequestBody>, buffers: &Buffers) -> Self {
        let framing = request::framing(request);
        let mut head = buffers.head();
        let target = request::Target {
            uri: request.uri(),
            query: request.extensions().get::<RawQuery>().map(|query| &*query.0),
        };
        request::write_head(&mut head, request.method(), &target, request.headers(), framing);
        let progress = request.body().progress();
        let body = match framing {
            Framing::None => None,
            _ => Some(std::mem::replace(request.body_mut(), RequestBody::empty())),
        };
        let (bytes, progress) = (head.len(), progress.filter(|_| body.is_some()));
        Self { message: Message::new(head, body, framing, true), head: bytes, progress }
    }

    /// Whether nothing of the request has left, and it is whole where it came from.
    pub(super) fn is_untouched(&self) -> bool {
        self.progress.is_none() && !self.message.has_begun()
    }

    /// How many bytes the request has, where they are its head alone.
    pub(super) fn head_alone(&self) -> Option<usize> {
        self.progress.is_none().then_some(self.head)
    }

    /// The buffer that was lent to it.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.message.into_buffer()
    }

    /// Sends as much as can be. Ready when all has been sent.
    pub(super) fn poll(&mut self, line: &Rc<Line>, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let outbox = &line.buffers.outbox;
        let progress = &self.progress;
        self.message
            .poll(cx, |cx, slices| {
                let written = outbox.poll_write(line, cx, slices);
                if let (Some(progress), Poll::Ready(Ok(1..))) = (progress, &written) {
                    progress.moved();
                }
                written
            })
            .map(|sent| {
                progress.iter().for_each(|progress| progress.left());
                sent
            })
    }

    /// Waits until neither the body nor the answer has moved for too long.
    pub(super) fn stands_still(&self) -> impl Future<Output = ()> + use<> {
        let progress = self.progress.clone();
        async move {
            match progress {
                Some(progress) => progress.stands_still().await,
                None => std::future::pending().await,
            }
        }
    }
}
