//! A set of routes, by their places in the policy.

use outrigger_policy::effective::MAX_ROUTES;

const BITS: usize = u64::BITS as usize;
/// Words that hold a bit for each route of the largest policy.
pub(super) const MOST_WORDS: usize = MAX_ROUTES.div_ceil(BITS);

/// A bit for each route, the first in the lowest bit of the first word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places(Box<[u64]>);

impl Places {
    /// No route, of so many.
    pub(super) fn none(routes: usize) -> Self {
        Self(vec![0; routes.div_ceil(BITS)].into())
    }

    /// Adds a route.
    pub(super) fn insert(&mut self, place: usize) {
        self.0[place / BITS] |= 1 << (place % BITS);
    }

    /// With one more route.
    #[cfg(test)]
    pub(super) fn with(mut self, place: usize) -> Self {
        self.insert(place);
        self
    }

    /// Adds all of another set.
    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    /// The words, of which there are `MOST_WORDS` at most.
    pub(super) fn words(&self) -> &[u64] {
        &self.0
    }

    /// The routes, in order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * BITS).filter(|place| self.0[place / BITS] & (1 << (place % BITS)) != 0)
    }
}

/// The routes that may still take a request, while one condition after the other is looked at.
pub(super) struct Candidates {
    words: [u64; MOST_WORDS],
    used: usize,
}

impl Candidates {
    /// Those of a set.
    pub(super) fn of(places: &Places) -> Self {
        let mut words = [0; MOST_WORDS];
        let used = places.words().len();
        words[..used].copy_from_slice(places.words());
        Self { words, used }
    }

    /// Adds those of a set.
    pub(super) fn add(&mut self, places: &Places) {
        self.words.iter_mut().zip(places.words()).for_each(|(word, more)| *word |= more);
    }

    /// Keeps those of both.
    pub(super) fn keep(&mut self, others: &Self) {
        self.words[..self.used].iter_mut().zip(&others.words).for_each(|(word, other)| *word &= other);
    }

    /// Whether none is left.
    pub(super) fn is_empty(&self) -> bool {
        self.words[..self.used].iter().all(|word| *word == 0)
    }

    /// The first of which this holds.
    pub(super) fn first(&self, holds: impl Fn(usize) -> bool) -> Option<usize> {
        for (i, word) in self.words[..self.used].iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let place = i * BITS + left.trailing_zeros() as usize;
                if holds(place) {
                    return Some(place);
                }
                left &= left - 1;
            }
        }
        None
    }
}
