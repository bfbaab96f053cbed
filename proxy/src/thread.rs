//! One data thread: what its requests share among themselves, and with no other thread, so without locks.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::alarms::Alarms;
use crate::balance::Usable;
use crate::client::Trust;
use crate::connection::{Bounds, Connections};
use crate::control::Control;
use crate::drain::Phase;
use crate::drain::worker::Serves;
use crate::forward::recent::Recent;
use crate::metrics::{self, Shard};
use crate::outbox::Outbox;
use crate::pool::Upstreams;
use crate::refusals::{Asked, Refusals};
use crate::rejection::Rejection;
use crate::session::Opened;
use crate::siblings::Arrival;
use crate::snapshot::{Seen, Snapshot};
use crate::upgrade::Tunnels;

/// How often what does not need to be exact is looked at: idle connections, the wall clock.
pub const TICK: Duration = Duration::from_millis(250);

/// The snapshot as one thread's requests share it: taking it changes no count that other threads use.
pub type View = Rc<Arc<Snapshot>>;

/// What the requests of one data thread share.
pub struct DataThread {
    /// Where the policy comes from.
    pub control: Arc<Control>,
    /// The thread's counts.
    pub shard: Arc<Shard>,
    /// What leaves at the end of a turn.
    pub outbox: Rc<Outbox>,
    /// The thread's connections to workers.
    pub upstreams: Upstreams,
    /// The connections of clients.
    pub connections: Connections,
    /// Who may say who a client is.
    trust: Trust,
    /// The same for what a sibling passes on.
    sibling_trust: Trust,
    /// Every answer closes its connection: the process is about to stop.
    pub closing: Cell<bool>,
    /// The tunnels that are open.
    pub tunnels: Tunnels,
    /// The last seconds of each route.
    pub recent: Recent,
    /// Until when its requests wait for their answers.
    pub alarms: Alarms,
    /// The log of what was refused.
    pub refusals: Refusals,
    /// The sessions of its last requests.
    pub sessions: RefCell<Opened>,
    view: RefCell<View>,
    seen: RefCell<Seen>,
    unix_seconds: Cell<u64>,
    /// The second of `date`, and that as text.
    date: Cell<(u64, Date)>,
}

/// The time as `Date` has it: IMF-fixdate (RFC 9110 §5.6.7).
pub type Date = [u8; 29];

impl DataThread {
    /// A thread that has served nothing yet.
    pub fn new(control: Arc<Control>, shard: Arc<Shard>, trust: Trust, bounds: Bounds) -> Rc<Self> {
        let snapshot = control.snapshot();
        let seen = Seen::new(&snapshot, Instant::now());
        let view = RefCell::new(Rc::new(snapshot));
        let outbox = Rc::<Outbox>::default();
        Rc::new(Self {
            control,
            upstreams: Upstreams::new(shard.clone(), outbox.clone()),
            outbox,
            connections: Connections::new(bounds),
            shard,
            sibling_trust: trust.one_hop_later(),
            trust,
            closing: Cell::new(false),
            tunnels: Tunnels::default(),
            recent: Recent::default(),
            alarms: Alarms::default(),
            refusals: Refusals::new(Instant::now()),
            sessions: RefCell::default(),
            view,
            seen: RefCell::new(seen),
            unix_seconds: Cell::new(unix_seconds()),
            date: Cell::new((0, date(0))),
        })
    }

    /// The snapshot for one request: one atomic load, and no count that threads share.
    pub fn snapshot(&self) -> View {
        let mut view = self.view.borrow_mut();
        let current = self.control.current().load();
        if !Arc::ptr_eq(&current, &view) {
            *view = Rc::new(arc_swap::Guard::into_inner(current));
        }
        view.clone()
    }

    /// Which workers may be sent a request.
    pub fn usable(&self, snapshot: &Snapshot, now: Instant) -> Usable {
        self.seen.borrow_mut().now(snapshot, now)
    }

    /// Who may say who a client is, for a request that came from there.
    pub fn trust(&self, arrival: Arrival) -> &Trust {
        match arrival {
            Arrival::Client => &self.trust,
            Arrival::Sibling => &self.sibling_trust,
        }
    }

    /// Seconds since 1970, a tick old at most.
    pub fn unix_seconds(&self) -> u64 {
        self.unix_seconds.get()
    }

    /// The same as `Date` has it.
    pub fn date(&self) -> Date {
        let (second, text) = self.date.get();
        let now = self.unix_seconds();
        if second == now {
            return text;
        }
        let text = date(now);
        self.date.set((now, text));
        text
    }

    /// Looks after what a request need not: ends idle connections, moves the clock, follows the process's phase.
    pub async fn look_after(self: Rc<Self>, mut phase: watch::Receiver<Phase>) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = phase.changed() => {}
                () = self.connections.more_to_end() => {
                    self.connections.end_some();
                    continue;
                }
                () = self.connections.is_asked() => {
                    self.connections.give_way();
                    continue;
                }
                () = self.connections.are_burdens() => {
                    self.connections.relieve();
                    continue;
                }
            }
            self.unix_seconds.set(unix_seconds());
            let phase_now = *phase.borrow_and_update();
            self.closing.set(Phase::NotReady <= phase_now);
            if Phase::Closing <= phase_now {
                self.connections.close_all();
            }
            if Phase::Goodbye <= phase_now {
                self.tunnels.tell(None);
            }
            self.end_drained();
            let now = Instant::now();
            self.refusals.tick(now);
            self.connections.tick(now);
            self.connections.give_way();
            self.connections.relieve();
            self.upstreams.close_idle(now);
        }
    }
}

impl DataThread {
    /// A connection from this address is refused or ends, and gets no answer.
    pub fn shed(&self, why: Rejection, address: IpAddr) {
        self.shard.rejected(why);
        self.refusals.refused(why, &Asked::from(address), (metrics::no_route(), &self.snapshot()));
    }

    /// Ends what still runs on workers whose drain is over.
    fn end_drained(&self) {
        for worker in &self.snapshot().workers {
            let serves = worker.drain.serves();
            if Serves::Goodbye <= serves {
                self.tunnels.tell(Some(worker.id));
            }
            if serves == Serves::Nothing {
                self.upstreams.cut(worker.id);
            }
        }
    }
}

fn date(unix_seconds: u64) -> Date {
    let second =
        i64::try_from(unix_seconds).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let text = printer.timestamp_to_rfc9110_string(&second.unwrap_or_default());
    text.ok().and_then(|text| text.into_bytes().try_into().ok()).unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT")
}

fn unix_seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the edge that reads the wall clock for session expiry")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_one_form() {
        assert_eq!(&date(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&date(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&date(u64::MAX), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
