//! A body that is ended when it stands still.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{AnswerBody, Broken, NextFrame, Progress};
use crate::guard;

/// A body that is ended when it stands still.
pub(super) struct Patient<B> {
    inner: B,
    limit: Duration,
    /// What moves beside it: it may stand still as long as that does not.
    beside: Option<Rc<Progress>>,
    /// Made when a body had to be waited for: most never are.
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    /// A frame that was looked at before its time.
    peeked: Option<Frame<Bytes>>,
}

impl Patient<AnswerBody> {
    pub(super) fn take_at_most(&mut self, bytes: usize) {
        self.inner.take_at_most(bytes);
    }
}

impl<B> Patient<B>
where
    B: Body<Data = Bytes, Error: Into<Broken>> + Unpin,
{
    pub(super) fn new(inner: B, limit: Duration, beside: Option<Rc<Progress>>) -> Self {
        Self { inner, limit, beside, sleep: None, waiting: false, peeked: None }
    }

    /// Why the body has broken off before its first byte, if it has: then nothing of the answer need be sent.
    pub(super) fn broken_at_once(&mut self) -> Option<Broken> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut self.inner).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.peeked = Some(without_forbidden_trailers(frame));
                None
            }
            Poll::Ready(Some(Err(error))) => Some(error.into()),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    /// Whether there is memory to keep so many bytes of it.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        self.beside.as_ref().is_none_or(|progress| progress.may_keep(bytes))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && self.inner.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let peeked = self.peeked.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + peeked);
        }
        hint.set_lower(hint.lower() + peeked);
        hint
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> NextFrame {
        if let Some(frame) = self.peeked.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Poll::Ready(next) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = false;
            let next = next.map(|frame| frame.map(without_forbidden_trailers).map_err(Into::into));
            return Poll::Ready(next);
        }
        ready!(self.exhausted(cx));
        Poll::Ready(Some(Err(Broken::Stalled)))
    }

    fn exhausted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = Instant::now() + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            let beside = self.beside.as_ref().map(|beside| Instant::from_std(beside.stands_still_at()));
            match beside.filter(|until| Instant::now() < *until) {
                Some(until) => sleep.as_mut().reset(until),
                None => return Poll::Ready(()),
            }
        }
    }
}

fn without_forbidden_trailers(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        guard::trailers(trailers);
    }
    frame
}
