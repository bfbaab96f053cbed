//! How long a client that says nothing is waited for: one timer for a connection, which no request touches.
//!
//! A client that is silent is asked by PING whether it is there. One that was told to send no further requests (GOAWAY) has
//! a while to send those that were on their way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// A client that is silent for so long is asked, and has as long to answer.
const INTERVAL: Duration = Duration::from_secs(20);
/// For so long requests may have been on their way.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// For the client to say anything.
    Silent,
    /// For its answer to PING.
    Asked,
    /// For the last requests.
    Farewell,
}

/// The timer of a connection.
pub(super) struct Alive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    waits: Waits,
}

/// What the time has come for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The client is gone.
    Gone,
    /// What it sends from now on goes nowhere.
    Farewell,
}

impl Alive {
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, timer: Box::pin(sleep(INTERVAL)), waits: Waits::Silent }
    }

    /// The client was told to send no further requests.
    pub(super) fn farewell(&mut self) {
        self.waits = Waits::Farewell;
        self.timer.as_mut().reset(Instant::now() + FAREWELL);
    }

    /// Ready when it is over. `heard` says whether something came from the client since this was last asked.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, heard: impl Fn() -> bool) -> Poll<Over> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            self.timer.as_mut().reset(Instant::now() + INTERVAL);
            self.waits = match self.waits {
                Waits::Farewell => {
                    self.waits = Waits::Silent;
                    return Poll::Ready(Over::Farewell);
                }
                _ if heard() => Waits::Silent,
                Waits::Asked => return Poll::Ready(Over::Gone),
                Waits::Silent => {
                    self.ask(cx);
                    Waits::Asked
                }
            };
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>) {
        let Some(pings) = &mut self.pings else { return };
        // The answer to the last one, if it came; if not, that one is still on its way.
        let _ = pings.poll_pong(cx);
        let _ = pings.send_ping(Ping::opaque());
    }
}
