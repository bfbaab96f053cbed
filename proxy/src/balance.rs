//! Which worker takes the next request.
//!
//! A strategy is built from the members once and then immutable, but for a counter: a change of members or of
//! weights builds another. It is asked only about members that may be sent a request (`Usable`), and what it
//! does is a function of that set, of the load and of the random number it is given.

mod least_request;
mod random;
mod round_robin;

#[cfg(test)]
mod laws;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use outrigger_policy::effective::LoadBalancerType;

use self::least_request::LeastRequest;
use self::random::Random;
use self::round_robin::RoundRobin;

/// Members of one pod that can be told apart; any beyond are never chosen.
pub const MAX_MEMBERS: usize = 256;

/// What the strategies look at.
#[derive(Default)]
pub struct Load {
    /// Requests sent to the worker and not yet done.
    pub in_flight: AtomicU32,
}

/// A worker, as a strategy sees it.
pub struct Member {
    /// Its relative share; 0 takes no new requests.
    pub weight: u32,
    /// Its load, shared with the worker.
    pub load: Arc<Load>,
}

/// Chooses among members.
pub trait Balance: Send + Sync {
    /// The place of the chosen member. It is in `usable` and has a weight; `None` when there is no such member.
    fn pick(&self, usable: &Usable, random: u64) -> Option<usize>;
}

/// A strategy over these members. This is the only list of strategies.
pub fn build(kind: LoadBalancerType, members: &[Member]) -> Arc<dyn Balance> {
    let members = &members[..members.len().min(MAX_MEMBERS)];
    match kind {
        LoadBalancerType::RoundRobin => Arc::new(RoundRobin::new(members)),
        LoadBalancerType::Random => Arc::new(Random::new(members)),
        LoadBalancerType::LeastRequest => Arc::new(LeastRequest::new(members)),
    }
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
}

impl FromIterator<usize> for Usable {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut usable = Self::default();
        places.into_iter().for_each(|place| usable.insert(place));
        usable
    }
}

/// The weights of the members, and who of them takes requests at all.
struct Weights {
    weights: Box<[u32]>,
    positive: Usable,
}

impl Weights {
    fn new(members: &[Member]) -> Self {
        let weights: Box<[u32]> = members.iter().map(|member| member.weight).collect();
        let positive = (0..weights.len()).filter(|place| weights[*place] != 0).collect();
        Self { weights, positive }
    }

    fn of(&self, place: usize) -> u32 {
        self.weights[place]
    }

    /// The usable members that have a weight.
    fn candidates(&self, usable: &Usable) -> Usable {
        usable.intersection(&self.positive)
    }

    /// One of the candidates, each as likely as its weight says; `random` covers the whole range of `u64`.
    ///
    /// Scaling by multiplication favours some candidates by less than one part in 2^31 (Lemire, "Fast Random
    /// Integer Generation in an Interval", 2019), and needs no division.
    fn draw(&self, candidates: &Usable, random: u64) -> Option<usize> {
        let total: u64 = candidates.iter().map(|place| u64::from(self.of(place))).sum();
        let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        candidates.iter().find(|place| {
            let weight = u64::from(self.of(*place));
            let found = point < weight;
            point = point.wrapping_sub(weight);
            found
        })
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
            prop_assert_eq!((usable.len(), usable.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
