//! Until when each request of a data thread waits for its answer. Nearly all answers come in time, so to wait must cost
//! little: a place in a list, and one timer for all of them.

use std::cell::RefCell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use crate::clock;

/// The alarms of one data thread.
#[derive(Default)]
pub struct Alarms {
    set: RefCell<Set>,
    /// The first alarm is earlier than it was.
    sooner: Notify,
}

#[derive(Default)]
struct Set {
    places: Vec<Place>,
    free: Vec<usize>,
    /// No alarm rings before this. It may be that of a request which is over: then nothing rings.
    first: Option<Instant>,
}

/// A waiting request's, or free.
struct Place {
    at: Instant,
    waker: Option<Waker>,
    rang: bool,
}

impl Alarms {
    /// What comes of `future`, or `None` when it takes until `at`.
    pub async fn within<T>(&self, at: Instant, future: impl Future<Output = T>) -> Option<T> {
        self.until(|_| Some(at), future).await
    }

    /// The same, until a time that may move while it is waited for: it is asked for whenever the future was polled, and when
    /// it has come. Whoever moves it to an earlier time wakes the one who waits. `None`: there is no such time so far.
    pub async fn until<T>(
        &self,
        mut at: impl FnMut(&Context<'_>) -> Option<Instant>,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        let mut alarm = Alarm { alarms: self, place: None };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            match at(cx) {
                Some(at) if alarm.rang(at, cx) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Rings them, each in time: to be run beside whatever waits.
    pub async fn run(&self) {
        loop {
            let first = self.set.borrow().first;
            match first {
                None => self.sooner.notified().await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.sooner.notified() => {}
                },
            }
            let ringing = self.set.borrow_mut().due(clock::now());
            ringing.into_iter().for_each(Waker::wake);
        }
    }
}

impl Set {
    fn place(&mut self, place: Place) -> usize {
        match self.free.pop() {
            Some(free) => {
                self.places[free] = place;
                free
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }

    /// Whom to wake at this time.
    fn due(&mut self, now: Instant) -> Vec<Waker> {
        if self.first.is_none_or(|first| now < first) {
            return Vec::new();
        }
        let (mut ringing, mut first) = (Vec::new(), None);
        for place in &mut self.places {
            if place.waker.is_none() {
                continue;
            }
            if place.at <= now {
                place.rang = true;
                ringing.extend(place.waker.take());
            } else {
                first = Some(first.map_or(place.at, |first: Instant| first.min(place.at)));
            }
        }
        self.first = first;
        ringing
    }
}

/// One request's.
struct Alarm<'a> {
    alarms: &'a Alarms,
    place: Option<usize>,
}

impl Alarm<'_> {
    /// Whether it rang for this time; if not it is set to it, and wakes the one who asks.
    fn rang(&mut self, at: Instant, cx: &Context<'_>) -> bool {
        let mut set = self.alarms.set.borrow_mut();
        match self.place {
            Some(place) => {
                let Place { at: set_to, waker, rang } = &mut set.places[place];
                if *rang && at <= *set_to {
                    return true;
                }
                (*set_to, *rang) = (at, false);
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
            }
            None => self.place = Some(set.place(Place { at, waker: Some(cx.waker().clone()), rang: false })),
        }
        if set.first.is_none_or(|first| at < first) {
            set.first = Some(at);
            self.alarms.sooner.notify_one();
        }
        false
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut set = self.alarms.set.borrow_mut();
            set.places[place].waker = None;
            set.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::rc::Rc;
    use std::time::Duration;

    use tokio::task::LocalSet;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(20);

    async fn beside<T>(test: impl AsyncFnOnce(Rc<Alarms>) -> T) -> T {
        let alarms = Rc::<Alarms>::default();
        let ringing = alarms.clone();
        let run_until = async move {
            let running = tokio::task::spawn_local(async move { ringing.run().await });
            let result = test(alarms).await;
            running.abort();
            result
        };
        LocalSet::new().run_until(run_until).await
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up_and_the_rest_is_not() {
        beside(async |alarms: Rc<Alarms>| {
            let now = Instant::now();
            let (never, late, soon) = tokio::join!(
                alarms.within(now + SHORT, pending::<()>()),
                alarms.within(now + LONG, tokio::time::sleep(SHORT * 3)),
                alarms.within(now + LONG, ready(1)),
            );
            assert_eq!((never, late, soon), (None, Some(()), Some(1)));
            assert_eq!(alarms.within(now, pending::<()>()).await, None, "its time was over before");
            assert_eq!(alarms.within(now, ready(2)).await, Some(2), "it did not take any");
        })
        .await;
    }

    #[tokio::test]
    async fn an_alarm_before_all_others_rings_first() {
        beside(async |alarms: Rc<Alarms>| {
            let now = Instant::now();
            let long = alarms.within(now + LONG, pending::<()>());
            tokio::select! {
                biased;
                _ = long => unreachable!("an hour has not passed"),
                short = alarms.within(now + SHORT, pending::<()>()) => assert_eq!(short, None),
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_may_move() {
        beside(async |alarms: Rc<Alarms>| {
            let began = clock::now();
            let at = std::cell::Cell::new(Some(began + SHORT));
            let later = alarms.until(|_| at.get(), async {
                tokio::time::sleep(SHORT / 2).await;
                at.set(Some(began + SHORT * 5));
                pending::<()>().await;
            });
            assert_eq!((later.await, clock::now() - began), (None, SHORT * 5));
            let began = clock::now();
            at.set(None);
            let sooner = alarms.until(|_| at.get(), async {
                tokio::time::sleep(SHORT).await;
                at.set(Some(began + SHORT * 2));
                pending::<()>().await;
            });
            assert_eq!((sooner.await, clock::now() - began), (None, SHORT * 2));
        })
        .await;
    }

    #[tokio::test]
    async fn places_are_used_again() {
        beside(async |alarms: Rc<Alarms>| {
            for _ in 0..100 {
                let at = Instant::now() + LONG;
                alarms.within(at, tokio::task::yield_now()).await.expect("in time");
            }
            let set = alarms.set.borrow();
            assert_eq!((set.places.len(), set.free.len()), (1, 1));
            assert!(set.places[0].waker.is_none(), "nobody is held");
        })
        .await;
    }

    #[test]
    fn only_what_is_due_rings() {
        let now = Instant::now();
        let place = |millis, waits: bool| Place {
            at: now + Duration::from_millis(millis),
            waker: waits.then(|| Waker::noop().clone()),
            rang: false,
        };
        let places = vec![place(5, true), place(1, false), place(3, true), place(9, true)];
        let mut set = Set { places, free: vec![1], first: Some(now + Duration::from_millis(1)) };
        assert!(set.due(now).is_empty());
        assert_eq!(set.due(now + Duration::from_millis(5)).len(), 2);
        let rang: Vec<_> = set.places.iter().map(|place| place.rang).collect();
        assert_eq!(rang, [true, false, true, false]);
        assert_eq!(set.first, Some(now + Duration::from_millis(9)));
    }
}
