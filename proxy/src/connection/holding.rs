//! What a connection makes the process hold of memory besides what every connection takes, and which connections give way when
//! that gets too much.
//!
//! Each may always hold a little. Where the thread's share is nearly used up, those end first that hold something that has
//! not moved for a while, the longest first. Then those that hold the most end, whatever they wait for: a single client that
//! holds much is rather the reason than hundreds that hold little.

use std::cmp::Reverse;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::{Activity, Client, Connections, Open, Phase};
use crate::memory::ALWAYS;
use crate::rejection::Rejection;
use crate::thread::TICK;

/// What the process holds for a client that does not read: a block of the answer, what waits in the kernel to be sent, and what
/// the worker has sent to be read.
const UNREAD: usize = 192 << 10;
/// What a stream of HTTP/2 takes of the kernel while its client does not read: what its worker has sent to be read.
const UNREAD_STREAM: usize = 128 << 10;
/// What has not moved for so long stands still.
const STILL: Duration = Duration::from_secs(1);

/// A part of what a connection holds, until this is dropped.
pub struct Holding {
    activity: Rc<Activity>,
    bytes: usize,
    /// Whether it goes when a worker answers, and not when its client does something.
    waits: bool,
}

impl Holding {
    /// Nothing yet, of what its client has to take or a worker has to take from it.
    pub fn by(activity: Rc<Activity>) -> Self {
        Self { activity, bytes: 0, waits: false }
    }

    /// What its protocol takes besides what every connection does, for as long as the connection is there.
    pub fn of_protocol(activity: Rc<Activity>, bytes: usize) -> Self {
        activity.always.set(activity.always.get() + bytes);
        let mut holding = Self::by(activity);
        holding.is_now(bytes);
        holding
    }

    /// What a stream of HTTP/2 takes whose client does not read it.
    pub fn of_unread_stream(activity: Rc<Activity>) -> Self {
        let mut holding = Self::by(activity);
        holding.is_now(UNREAD_STREAM);
        holding
    }

    /// Nothing yet, of the head of a request.
    pub fn of_head(activity: Rc<Activity>) -> Self {
        Self { activity, bytes: 0, waits: true }
    }

    /// It is to have so many bytes. False: there is no room, and it stays as it was.
    #[must_use]
    pub fn may_become(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let may = more == 0 || self.activity.may_hold(more);
        if may {
            self.is_now(bytes);
        }
        may
    }

    /// It has so many bytes: they are there already.
    pub fn is_now(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if before < bytes {
            self.activity.hold(bytes - before, self.waits);
        } else if bytes < before {
            self.activity.let_go(before - bytes, self.waits);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.is_now(0);
    }
}

impl Activity {
    fn may_hold(&self, more: usize) -> bool {
        self.held.get() + more <= self.always.get() || self.share.has_room_for(more)
    }

    fn hold(&self, bytes: usize, waits: bool) {
        if self.held.get() == 0 {
            self.moved.set(self.clock.get());
        }
        self.held.set(self.held.get() + bytes);
        self.waiting.set(self.waiting.get() + if waits { bytes } else { 0 });
        self.share.take(bytes);
    }

    fn let_go(&self, bytes: usize, waits: bool) {
        self.moved.set(self.clock.get());
        self.held.set(self.held.get().saturating_sub(bytes));
        self.waiting.set(self.waiting.get().saturating_sub(if waits { bytes } else { 0 }));
        self.share.give_back(bytes);
    }

    /// Nothing can be written to the client from now on.
    pub(super) fn unread(&self) {
        self.hold(UNREAD, false);
    }

    /// Something can again.
    pub(super) fn read_on(&self) {
        self.let_go(UNREAD, false);
    }

    /// Whether the connections of its thread have to make do with less.
    pub fn is_tight(&self) -> bool {
        self.share.is_tight()
    }

    /// Its place among those that give way for memory; `None`: it holds too little.
    fn burden(&self) -> Option<Burden> {
        let held = self.held.get();
        if held <= ALWAYS || self.shed.get().is_some() {
            return None;
        }
        let since = match self.blocked.get() {
            0 => self.moved.get(),
            blocked => blocked,
        };
        let still = STILL <= TICK * self.clock.get().saturating_sub(since);
        Some(match still && self.waiting.get() < held {
            true => Burden::Still { since },
            false => Burden::Moves { held: Reverse(held) },
        })
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.share.give_back(self.held.get());
    }
}

/// The order in which connections give way for memory; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Burden {
    /// Something of what it holds has not moved since this tick.
    Still { since: u32 },
    /// It holds so many bytes.
    Moves { held: Reverse<usize> },
}

/// A connection that may have to give way.
struct Bearer<'a> {
    burden: Burden,
    client: Rc<Client>,
    task: &'a AbortHandle,
}

impl Connections {
    /// Ends connections that hold much, until what is left is not too much.
    pub fn relieve(&self) {
        self.relieved.set(Instant::now());
        self.share.tell();
        let mut excess = self.share.excess();
        if excess == 0 {
            return;
        }
        let open = self.open.borrow();
        let bearers = open.values().filter_map(|Open { client, task }| {
            let client = client.upgrade()?;
            Some(Bearer { burden: client.activity.burden()?, client, task })
        });
        let mut bearers: Vec<_> = bearers.collect();
        bearers.sort_unstable_by_key(|bearer| bearer.burden);
        for Bearer { client, task, .. } in bearers {
            if excess == 0 {
                break;
            }
            let activity = &client.activity;
            excess = excess.saturating_sub(activity.held.get());
            if activity.phase.get() == Phase::Idle {
                activity.shed(Rejection::MemoryLimit); // it is told
            } else {
                activity.shed.set(Some(Rejection::MemoryLimit));
                task.abort();
            }
        }
    }

    /// Waits until connections have to give way for memory.
    pub async fn are_burdens(&self) {
        self.share.is_wanted(self.relieved.get()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::super::{Bounds, Limits};
    use super::*;
    use crate::client::Peer;
    use crate::memory::{Limit, Memory, Share};
    use crate::siblings::Arrival;

    /// Which connections ended, and why each gave way.
    type Ended = Rc<RefCell<Vec<(usize, Option<Rejection>)>>>;

    /// Notes the end of a connection, and why it gave way.
    struct Ends {
        number: usize,
        client: Rc<Client>,
        ended: Ended,
    }

    impl Drop for Ends {
        fn drop(&mut self) {
            self.ended.borrow_mut().push((self.number, self.client.activity.tell_why_shed()));
        }
    }

    /// A connection of a thread whose part of the pool is this long, and the thread's clock.
    fn connection(share: &Rc<Share>, clock: &Rc<Cell<u32>>) -> Rc<Activity> {
        Rc::new(Activity::new(clock.clone(), share.clone()))
    }

    fn share_of(bytes: u64) -> Rc<Share> {
        Rc::new(Share::new(Memory::new(Limit::of(4 * bytes), 1), 0))
    }

    #[test]
    fn a_connection_may_always_hold_a_little() {
        let (share, clock) = (share_of(ALWAYS as u64), Rc::default());
        let [greedy, modest] = [(); 2].map(|()| connection(&share, &clock));
        let mut much = Holding::of_head(greedy);
        assert!(much.may_become(ALWAYS));
        assert!(!much.may_become(ALWAYS + 1), "there is no room");
        let mut little = Holding::of_head(modest);
        assert!(little.may_become(ALWAYS), "whatever others hold");
        drop(much);
        assert!(!little.may_become(ALWAYS + 1) && little.may_become(100));
        drop(little);
        assert!(share.has_room_for(ALWAYS) && !share.has_room_for(ALWAYS + 1), "nothing is left behind");
    }

    #[test]
    fn what_stands_still_gives_way_first_then_whoever_holds_most() {
        let clock = Rc::new(Cell::new(1));
        let share = Rc::default();
        let [older, newer, waits, waits_more, little] = [(); 5].map(|()| connection(&share, &clock));
        let mut holdings = vec![Holding::by(older.clone()), Holding::of_head(waits.clone())];
        holdings.push(Holding::of_head(waits_more.clone()));
        holdings.push(Holding::by(little.clone()));
        for (holding, bytes) in holdings.iter_mut().zip([2 * ALWAYS, 3 * ALWAYS, 4 * ALWAYS, ALWAYS]) {
            holding.is_now(bytes);
        }
        clock.set(2);
        newer.wrote(true);
        assert_eq!(older.burden(), Some(Burden::Moves { held: Reverse(2 * ALWAYS) }), "not for long");
        clock.set(20);
        let mut burdens = [&older, &newer, &waits, &waits_more].map(|activity| activity.burden());
        assert_eq!(burdens[..2], [Some(Burden::Still { since: 1 }), Some(Burden::Still { since: 2 })]);
        let order = burdens;
        burdens.sort_unstable();
        assert_eq!(burdens, [order[0], order[1], order[3], order[2]]);
        assert_eq!(little.burden(), None);
        newer.wrote(false);
        assert_eq!(newer.burden(), None, "it reads again");
    }

    #[tokio::test]
    async fn connections_end_until_what_is_left_is_not_too_much() {
        let hour = Duration::from_secs(3600);
        let memory = Memory::new(Limit::of(4 * 10 * ALWAYS as u64), 1);
        let bounds =
            Bounds { memory, ..Bounds::of_one_thread(Limits { head: hour, idle: hour, stall: hour }) };
        let connections = Connections::new(bounds);
        let ended = Ended::default();
        let local = tokio::task::LocalSet::new();
        let _in = local.enter();
        for (i, bytes) in [2 * ALWAYS, 3 * ALWAYS, 4 * ALWAYS].into_iter().enumerate() {
            let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
            let ended = ended.clone();
            connections.spawn(peer, Arrival::Client, None, |client| {
                client.activity.request_began();
                let mut holding = Holding::of_head(client.activity.clone());
                holding.is_now(bytes);
                let ends = Ends { number: i, client, ended };
                async move {
                    let _held = (holding, ends);
                    std::future::pending().await
                }
            });
        }
        connections.relieve();
        local.run_until(tokio::task::yield_now()).await;
        assert_eq!(
            *ended.borrow(),
            [(2, Some(Rejection::MemoryLimit))],
            "it holds the most, and that is enough"
        );
    }

    #[test]
    fn a_connection_that_ends_while_nothing_can_be_written_leaves_nothing_behind() {
        let (share, clock) = (share_of(UNREAD as u64), Rc::default());
        let unread = connection(&share, &clock);
        unread.wrote(true);
        unread.wrote(true);
        assert!(!share.has_room_for(1));
        drop(unread);
        assert!(share.has_room_for(UNREAD));
    }
}
