//! A member at random, as often as its weight says. What came before does not matter, so many proxies in front of
//! the same thing do not fall into step.

use super::{Balance, Member, Usable, Weights};

pub(super) struct Random {
    weights: Weights,
}

impl Random {
    pub(super) fn new(members: &[Member]) -> Self {
        Self { weights: Weights::new(members) }
    }
}

impl Balance for Random {
    fn pick(&self, usable: &Usable, random: u64) -> Option<usize> {
        self.weights.draw(&self.weights.candidates(usable), random)
    }
}
