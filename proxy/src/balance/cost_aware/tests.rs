use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::*;
use crate::balance::laws::{members, share_of};
use crate::balance::measure::{Ended, How, Measure};

const MILLI: Duration = Duration::from_millis(1);
const OBJECTIVE: Duration = Duration::from_millis(50);

struct Bench {
    members: Vec<Member>,
    strategy: CostAware,
    now: Instant,
}

impl Bench {
    fn new(costs: &[u32]) -> Self {
        let mut members = members(&vec![1; costs.len()]);
        let settings = effective::CostAware { latency_objective: OBJECTIVE };
        let measure = Arc::new(Measure { budget: Some(settings), ..Measure::default() });
        for (member, cost) in members.iter_mut().zip(costs) {
            member.cost = *cost;
            member.load.configure(&measure);
        }
        let strategy = CostAware::new(Weights::new(&members, None), &members);
        Self { members, strategy, now: Instant::now() }
    }

    /// Sends `rate` requests a second for so long, and says how many each member got. A member serves one request at a
    /// time and takes this long for each; `fails` says which answer with a failure at once instead.
    fn run(
        &mut self,
        rate: u32,
        lasting: Duration,
        takes: Duration,
        fails: impl Fn(usize) -> bool,
    ) -> Vec<u32> {
        let all: Usable = (0..self.members.len()).collect();
        let mut queues = vec![VecDeque::<(Instant, Instant)>::new(); self.members.len()];
        let mut counts = vec![0; self.members.len()];
        let mut random = fastrand::Rng::with_seed(3);
        let end = self.now + lasting;
        while self.now < end {
            for (place, queue) in queues.iter_mut().enumerate() {
                while let Some((sent, done)) = queue.front().copied().filter(|(_, done)| *done <= self.now) {
                    queue.pop_front();
                    let how = if fails(place) { How::Failed } else { How::Answered };
                    self.members[place].load.ended(Ended { sent, now: done, how });
                    self.members[place].load.in_flight.fetch_sub(1, Relaxed);
                }
            }
            let choice = Choice { usable: &all, now: self.now, random: random.u64(..), key: None };
            let place = self.strategy.pick(&choice).expect("all are usable");
            counts[place] += 1;
            self.members[place].load.in_flight.fetch_add(1, Relaxed);
            let starts = queues[place].back().map_or(self.now, |(_, done)| *done).max(self.now);
            let takes = if fails(place) { Duration::from_micros(100) } else { takes };
            queues[place].push_back((self.now, starts + takes));
            self.now += Duration::from_secs(1) / rate;
        }
        for (member, queue) in self.members.iter().zip(&queues) {
            member.load.in_flight.fetch_sub(queue.len() as u32, Relaxed);
        }
        counts
    }
}

#[test]
fn the_cheapest_gets_everything_it_can_take() {
    let mut bench = Bench::new(&[3, 1, 2]);
    let counts = bench.run(100, 20 * 1000 * MILLI, 5 * MILLI, |_| false);
    assert_eq!((counts[0], counts[2]), (0, 0), "{counts:?}: half of what one can do costs no other");
}

#[test]
fn what_is_too_much_for_it_spills_over_to_the_next() {
    let mut bench = Bench::new(&[3, 1, 2]);
    bench.run(300, 60 * 1000 * MILLI, 5 * MILLI, |_| false);
    let counts = bench.run(300, 60 * 1000 * MILLI, 5 * MILLI, |_| false);
    let sum: u32 = counts.iter().sum();
    let share = |place: usize| f64::from(counts[place]) / f64::from(sum);
    assert!((0.55..0.70).contains(&share(1)), "{counts:?}: it can do 200 a second");
    assert!((0.28..0.45).contains(&share(2)), "{counts:?}");
    assert!(share(0) < 0.02, "{counts:?}");
}

#[test]
fn one_that_fails_fast_is_not_cheap() {
    let mut bench = Bench::new(&[1, 2, 3]);
    let counts = bench.run(100, 100 * 1000 * MILLI, 5 * MILLI, |place| place == 0);
    assert!(counts[0] < 30 && 9_900 < counts[1], "{counts:?}");
}

#[test]
fn equal_costs_share() {
    let bench = Bench::new(&[1, 1, 7, 7]);
    let shares = [0, 1, 2, 3].map(|place| share_of(&bench.strategy, &bench.members, place, bench.now));
    assert!((0.48..0.52).contains(&shares[0]) && shares[2] == 0.0, "{shares:?}");
}

#[test]
fn where_all_are_over_their_limits_the_least_full_one_is_taken() {
    let bench = Bench::new(&[1, 2]);
    [50, 49].into_iter().zip(&bench.members).for_each(|(n, member)| member.load.in_flight.store(n, Relaxed));
    assert_eq!(share_of(&bench.strategy, &bench.members, 1, bench.now), 1.0);
}
