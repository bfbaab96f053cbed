//! A member at random, as often as its weight says. What came before does not matter, so many proxies in front of
//! the same thing do not fall into step.

use super::{Balance, Choice, Weights};

pub(super) struct Random {
    weights: Weights,
}

impl Random {
    pub(super) fn new(weights: Weights) -> Self {
        Self { weights }
    }
}

impl Balance for Random {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        weights.draw(&weights.candidates(choice.usable), choice.random)
    }
}
