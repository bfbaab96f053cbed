//! Which connections of a thread give way to new ones, and in which order.
//!
//! Those that rest go first, longest first: their clients lose nothing. Then those whose head does not end, oldest first, so that a
//! client that sends its head at once has it read before its turn comes. Then those that rested for a moment only. A request
//! in progress gives way to nobody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use super::{Activity, Connections, Phase};
use crate::rejection::Rejection;
use crate::siblings::Arrival;
use crate::thread::TICK;

/// A connection that rests for so long gives way before any other.
const RESTS: Duration = Duration::from_secs(5);
/// One that rests for less is in use: its client may be sending the next request.
const PAUSES: Duration = Duration::from_secs(1);
/// As many are found at once at least, and as large a share of all: looking at all of them for each would cost too much.
const FOUND: usize = 32;
const SHARE: usize = 16;

/// A place in the order in which connections give way; the least is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    kind: Kind,
    /// The tick since which it is of that kind.
    since: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Rests,
    Head,
    Pauses,
}

/// What a thread knows of those that give way next.
#[derive(Default)]
pub(super) struct Shedding {
    next: RefCell<VecDeque<(Rank, u64)>>,
    /// The tick at which none was found.
    barren: Cell<u32>,
}

impl Activity {
    /// Its place among those that give way; `None`: it does not.
    fn rank(&self, arrival: Arrival) -> Option<Rank> {
        if self.closing.get() {
            return None;
        }
        let since = self.since.get();
        let rested = TICK * self.clock.get().saturating_sub(since);
        let kind = match self.phase.get() {
            Phase::Head => Kind::Head,
            Phase::Lingering => Kind::Rests,
            // A request may be on its way, and a sibling would hold its end against this proxy.
            Phase::Idle if arrival == Arrival::Sibling => return None,
            Phase::Idle if RESTS <= rested => Kind::Rests,
            Phase::Idle if PAUSES <= rested => Kind::Pauses,
            Phase::Idle | Phase::Request => return None,
        };
        Some(Rank { kind, since })
    }

    /// The connection gives way for this reason, which its client is told if it has begun to ask.
    pub(super) fn shed(&self, why: Rejection) {
        self.shed.set(Some(why));
        self.close();
    }

    /// Whether it gives way.
    pub fn is_shed(&self) -> bool {
        self.shed.get().is_some()
    }

    /// Why it gives way, for whoever tells of it: once.
    pub fn tell_why_shed(&self) -> Option<Rejection> {
        self.shed.get().filter(|_| !self.told.replace(true))
    }
}

impl Connections {
    /// Ends one connection of this thread that gives way. Whether there was one.
    pub(super) fn shed_one(&self, why: Rejection) -> bool {
        let shedding = &self.shedding;
        for looked in [false, true] {
            if looked && (shedding.barren.get() == self.clock.get() || !self.find()) {
                shedding.barren.set(self.clock.get());
                return false;
            }
            while let Some((rank, id)) = { shedding.next.borrow_mut().pop_front() } {
                let client = self.open.borrow().get(&id).and_then(|open| open.client.upgrade());
                if let Some(client) = client
                    && client.activity.rank(client.arrival) == Some(rank)
                {
                    client.activity.shed(why);
                    return true;
                }
            }
        }
        false
    }

    /// Finds those that give way next.
    fn find(&self) -> bool {
        let open = self.open.borrow();
        let ranked = open.iter().filter_map(|(id, open)| {
            let client = open.client.upgrade()?;
            Some((client.activity.rank(client.arrival)?, *id))
        });
        let mut ranked: Vec<_> = ranked.collect();
        let wanted = FOUND.max(open.len() / SHARE);
        if wanted < ranked.len() {
            ranked.select_nth_unstable(wanted);
            ranked.truncate(wanted);
        }
        ranked.sort_unstable();
        *self.shedding.next.borrow_mut() = ranked.into();
        !self.shedding.next.borrow().is_empty()
    }

    /// How many would give way.
    pub(super) fn would_give_way(&self) -> usize {
        let open = self.open.borrow();
        let clients = open.values().filter_map(|open| open.client.upgrade());
        clients.filter(|client| client.activity.rank(client.arrival).is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn wait(activity: &Activity, time: Duration) {
        let ticks = u32::try_from(time.as_millis() / TICK.as_millis()).expect("small");
        activity.clock.set(activity.clock.get() + ticks);
    }

    fn kind(activity: &Activity) -> Option<Kind> {
        activity.rank(Arrival::Client).map(|rank| rank.kind)
    }

    #[test]
    fn whoever_rests_goes_before_a_head_that_does_not_end_and_a_request_stays() {
        let clock = Rc::new(Cell::new(1));
        let [rests, head, pauses, busy, fresh] =
            [(); 5].map(|()| Activity::new(clock.clone(), Rc::default()));
        for used in [&rests, &pauses, &fresh, &busy] {
            used.request_began();
        }
        rests.request_ended();
        wait(&rests, RESTS - PAUSES);
        pauses.request_ended();
        wait(&rests, PAUSES);
        fresh.request_ended();
        assert_eq!([&rests, &head, &pauses].map(kind), [Kind::Rests, Kind::Head, Kind::Pauses].map(Some));
        assert_eq!([&busy, &fresh].map(kind), [None; 2]);
        assert!(rests.rank(Arrival::Client) < head.rank(Arrival::Client));
        assert!(head.rank(Arrival::Client) < pauses.rank(Arrival::Client));
        assert_eq!(rests.rank(Arrival::Sibling), None);
        assert!(head.rank(Arrival::Sibling).is_some(), "it has not shown that it is one");
    }

    #[test]
    fn the_longest_goes_first_and_is_told_of_once() {
        let clock = Rc::new(Cell::new(1));
        let older = Activity::new(clock.clone(), Rc::default());
        wait(&older, TICK);
        let newer = Activity::new(clock, Rc::default());
        assert!(older.rank(Arrival::Client) < newer.rank(Arrival::Client));
        older.shed(Rejection::ConnectionLimit);
        assert_eq!(older.rank(Arrival::Client), None, "it has given way");
        assert!(older.is_closing() && older.is_shed());
        assert_eq!([(); 2].map(|()| older.tell_why_shed()), [Some(Rejection::ConnectionLimit), None]);
    }
}
