//! A client's connection: which protocol it speaks, and how long it may take for what.
//!
//! No request arms a timer for its connection. Every connection notes in which phase it is and since which
//! tick; once a tick the thread looks at all of them and ends those that overstay.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::client::Peer;
use crate::memory::{Memory, Share};
use crate::rejection::Rejection;
use crate::siblings::Arrival;
use crate::thread::TICK;

pub use self::activity::Activity;
use self::activity::{Phase, Verdict};
pub use self::cap::{Cap, Place};
pub use self::holding::Holding;
use self::shed::Shedding;
pub use self::stream::{Transport, Watched, is_http2};
pub use self::uploading::Uploading;

mod activity;
mod cap;
mod holding;
mod shed;
mod stream;
mod uploading;

/// How long a client may take, whatever the policy says.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a head to its end, and for the TLS handshake.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// How long a client may leave what was sent to it unread.
    pub stall: Duration,
}

/// What bounds the connections of one data thread.
pub struct Bounds {
    /// How long their clients may take.
    pub limits: Limits,
    /// How many there may be.
    pub cap: Arc<Cap>,
    /// How much they may hold.
    pub memory: Arc<Memory>,
    /// Which of the threads that share these this is.
    pub thread: usize,
}

/// As many of those that overstay end at once, and so much time is between them and the next.
const AT_ONCE: usize = 16;
const BETWEEN: Duration = Duration::from_millis(5);

/// The connection a request came on.
pub struct Client {
    /// Who is at its other end.
    pub peer: Peer,
    /// What it is doing.
    pub activity: Rc<Activity>,
    /// Who takes the connection over once it no longer speaks HTTP.
    pub upgrade: Cell<Option<Taker>>,
    /// Which port it came to.
    pub arrival: Arrival,
}

/// Takes over the stream of a connection.
pub type Taker = oneshot::Sender<Watched>;

/// The connections of one data thread.
pub struct Connections {
    clock: Rc<Cell<u32>>,
    started: Instant,
    limits: Limits,
    open: RefCell<HashMap<u64, Open, foldhash::fast::FixedState>>,
    next: Cell<u64>,
    shedding: Shedding,
    /// Those that overstay.
    ending: RefCell<VecDeque<u64>>,
    cap: Arc<Cap>,
    /// Which of the threads of `cap` this is.
    thread: usize,
    share: Rc<Share>,
    /// When connections gave way for memory last, or were looked at for it.
    relieved: Cell<Instant>,
}

struct Open {
    client: Weak<Client>,
    task: AbortHandle,
}

impl Connections {
    /// None yet.
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { limits, cap, memory, thread } = bounds;
        Self {
            share: Rc::new(Share::new(memory, thread)),
            relieved: Cell::new(Instant::now()),
            shedding: Shedding::default(),
            ending: RefCell::default(),
            cap,
            thread,
            clock: Rc::new(Cell::new(1)),
            started: Instant::now(),
            limits,
            open: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// How long a client may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a connection from this address. Near the cap another gives way to it: one of this thread, or of the
    /// others.
    ///
    /// # Errors
    /// Why there is none.
    pub fn admit(&self, address: IpAddr) -> Result<Place, Rejection> {
        let place = self.cap.take(address)?;
        let refused = self.cap.is_nearly_full()
            && !self.shed_one(Rejection::ConnectionLimit)
            && !self.cap.ask_another(self.thread)
            && self.cap.is_exceeded();
        if refused { Err(Rejection::ConnectionLimit) } else { Ok(place) }
    }

    /// Whether those that give way have to end before others are accepted.
    pub fn is_full(&self) -> bool {
        self.cap.is_full()
    }

    /// Waits until another thread needs a place.
    pub async fn is_asked(&self) {
        self.cap.is_asked(self.thread).await;
    }

    /// Ends as many connections as other threads need places, and says how many more would give way.
    pub fn give_way(&self) {
        for _ in 0..self.cap.asked(self.thread) {
            self.shed_one(Rejection::ConnectionLimit);
        }
        self.cap.gives(self.thread, self.would_give_way());
    }

    /// Runs a connection until it ends or is ended.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        arrival: Arrival,
        place: Option<Place>,
        serve: impl FnOnce(Rc<Client>) -> F,
    ) {
        let activity = Rc::new(Activity::new(self.clock.clone(), self.share.clone()));
        activity.place.set(place);
        let client = Rc::new(Client { peer, activity, arrival, upgrade: Cell::default() });
        let id = self.next.replace(self.next.get() + 1);
        let known = Rc::downgrade(&client);
        let task = tokio::task::spawn_local(serve(client)).abort_handle();
        self.open.borrow_mut().insert(id, Open { client: known, task });
    }

    /// Tells every connection to take no further requests.
    pub fn close_all(&self) {
        for client in self.open.borrow().values().filter_map(|open| open.client.upgrade()) {
            client.activity.close();
        }
    }

    /// Moves the clock and finds what overstays, of which some end at once and the rest by `end_some`.
    pub fn tick(&self, now: Instant) {
        let ticks = now.duration_since(self.started).as_millis() / TICK.as_millis();
        self.clock.set(u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
        let mut ending = self.ending.borrow_mut();
        ending.clear();
        self.open.borrow_mut().retain(|id, open| {
            let Some(client) = open.client.upgrade() else { return false };
            if client.activity.verdict(&self.limits) != Verdict::Stay {
                ending.push_back(*id);
            }
            !open.task.is_finished()
        });
        drop(ending);
        self.end_some();
    }

    /// Ends some of what overstays: thousands may at once, and nobody else is to wait until all of them have ended.
    pub fn end_some(&self) {
        for _ in 0..AT_ONCE {
            let Some(id) = self.ending.borrow_mut().pop_front() else { return };
            let open = self.open.borrow();
            let Some(open) = open.get(&id) else { continue };
            let Some(client) = open.client.upgrade() else { continue };
            let activity = &client.activity;
            match activity.verdict(&self.limits) {
                Verdict::Stay => {}
                Verdict::Late => {
                    activity.late.set(true);
                    activity.wake();
                }
                Verdict::Close => activity.close(),
                Verdict::Cut => open.task.abort(),
            }
        }
    }

    /// Waits until the next of what overstays may end; for ever where nothing does.
    pub async fn more_to_end(&self) {
        if self.ending.borrow().is_empty() {
            std::future::pending().await
        }
        tokio::time::sleep(BETWEEN).await;
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.borrow().values().all(|open| open.task.is_finished())
    }
}

#[cfg(test)]
impl Bounds {
    /// Those of a process with one thread and no limit of memory.
    pub fn of_one_thread(limits: Limits) -> Self {
        let memory = Memory::new(crate::memory::Limit::of(u64::MAX), 1);
        Self { limits, cap: Cap::new(16, None, 1), memory, thread: 0 }
    }
}
