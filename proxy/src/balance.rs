//! Which worker takes the next request.
//!
//! A strategy is built from the members once and then immutable, but for counters: a change of members or of
//! weights builds another. It is asked only about members that may be sent a request (`Usable`), and what it
//! does is a function of that set, of the load, of the time and of the random number it is given. What it knows of a
//! worker's speed is in the worker's `Load`, which `measure` keeps: it survives the strategy.

mod backend_utilization;
mod consistent_hash;
mod cost_aware;
pub mod key;
mod least_cost;
mod least_request;
pub mod measure;
mod peak_ewma;
mod predictive;
mod random;
mod round_robin;
mod shared;
mod slow_start;
mod spillover;
mod weights;

#[cfg(test)]
mod failures;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod pools;

use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::effective::{LoadBalancer, Strategy};

use self::backend_utilization::BackendUtilization;
use self::consistent_hash::ConsistentHash;
use self::cost_aware::CostAware;
use self::least_request::LeastRequest;
pub use self::measure::Load;
use self::peak_ewma::PeakEwma;
use self::predictive::Predictive;
use self::random::Random;
use self::round_robin::RoundRobin;
pub use self::spillover::{Level, Spillover};
use self::weights::Weights;

/// Members of one pod that can be told apart; any beyond are never chosen.
pub const MAX_MEMBERS: usize = 256;

/// Up to so many members all are compared; of more, some. That is what a request can afford.
const FEW: usize = 8;

/// A worker, as a strategy sees it.
#[derive(Clone)]
pub struct Member {
    /// What it is known by wherever it is a member: a hash of its name.
    pub key: u64,
    /// Its relative share; 0 takes no new requests.
    pub weight: u32,
    /// What a request to it costs, relative to the others.
    pub cost: u32,
    /// Its load, shared with the worker.
    pub load: Arc<Load>,
}

/// What one request asks of a strategy.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// The members that may be sent it.
    pub usable: &'a Usable,
    /// When it is sent.
    pub now: Instant,
    /// Decides what chance decides.
    pub random: u64,
    /// The hash of its key, for strategies by key.
    pub key: Option<u64>,
}

/// Chooses among members.
pub trait Balance: Send + Sync {
    /// The place of the chosen member. It is in `usable` and has a weight; `None` when there is no such member.
    fn pick(&self, choice: &Choice<'_>) -> Option<usize>;
}

/// A strategy over these members. This is the only list of strategies.
pub fn build(settings: &LoadBalancer, members: &[Member]) -> Arc<dyn Balance> {
    let members = &members[..members.len().min(MAX_MEMBERS)];
    let weights = Weights::new(members, settings.slow_start);
    match &settings.strategy {
        Strategy::RoundRobin => Arc::new(RoundRobin::new(weights)),
        Strategy::Random => Arc::new(Random::new(weights)),
        Strategy::LeastRequest(settings) => Arc::new(LeastRequest::new(weights, *settings, members)),
        Strategy::PeakEwma(settings) => Arc::new(PeakEwma::new(weights, *settings, members)),
        Strategy::ConsistentHash(settings) => Arc::new(ConsistentHash::new(weights, settings, members)),
        Strategy::BackendUtilization(settings) => {
            Arc::new(BackendUtilization::new(weights, settings, members))
        }
        Strategy::Predictive(settings) => Arc::new(Predictive::new(weights, *settings, members)),
        Strategy::CostAware(_) => Arc::new(CostAware::new(weights, members)),
    }
}

/// The next of a sequence of random numbers, of which this is one (the finalizer of SplitMix64; Steele, Lea and Flood,
/// "Fast Splittable Pseudorandom Number Generators", 2014).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number below `bound`, each as likely as the others but for one part in 2^31, without a division (Lemire, "Fast
/// Random Integer Generation in an Interval", 2019).
fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

const WORD: usize = u64::BITS as usize;

/// The places of members that may be sent a request: a set of bits, so that asking costs no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usable([u64; MAX_MEMBERS / WORD]);

impl Usable {
    /// Adds a place. One that is not below `MAX_MEMBERS` is left out.
    pub fn insert(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / WORD) {
            *word |= 1 << (place % WORD);
        }
    }

    /// Takes a place out.
    pub fn remove(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / WORD) {
            *word &= !(1 << (place % WORD));
        }
    }

    /// Whether the place is in the set.
    pub fn contains(&self, place: usize) -> bool {
        self.0.get(place / WORD).is_some_and(|word| word & (1 << (place % WORD)) != 0)
    }

    /// Whether there is no place in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many places are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The places, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        self.0.into_iter().enumerate().flat_map(|(i, word)| {
            let rest = std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)));
            rest.take_while(|word| *word != 0).map(move |word| i * WORD + word.trailing_zeros() as usize)
        })
    }

    /// The places that are in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// The places that are not in the other.
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// The place that `n` others come before.
    fn nth(&self, n: usize) -> Option<usize> {
        let mut before = n;
        for (i, word) in self.0.into_iter().enumerate() {
            let here = word.count_ones() as usize;
            if before < here {
                let rest = (0..before).fold(word, |word, _| word & word.wrapping_sub(1));
                return Some(i * WORD + rest.trailing_zeros() as usize);
            }
            before -= here;
        }
        None
    }
}

impl FromIterator<usize> for Usable {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut usable = Self::default();
        places.into_iter().for_each(|place| usable.insert(place));
        usable
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn usable_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..MAX_MEMBERS + 9), 0..200)) {
            let (mut usable, mut model) = (Usable::default(), BTreeSet::new());
            for (insert, place) in steps {
                if insert {
                    usable.insert(place);
                    model.extend((place < MAX_MEMBERS).then_some(place));
                } else {
                    usable.remove(place);
                    model.remove(&place);
                }
                prop_assert_eq!(usable.contains(place), model.contains(&place));
            }
            prop_assert!(usable.iter().eq(model.iter().copied()));
            prop_assert!((0..).map_while(|n| usable.nth(n)).eq(model.iter().copied()));
            prop_assert_eq!((usable.len(), usable.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
