//! The moving average of a worker's response times: a rise is taken whole, a fall by and by.

use super::{Stamped, Tick};

/// The average, in seconds. None before the first answer.
#[derive(Default)]
pub struct ResponseTime(Stamped);

impl ResponseTime {
    /// Takes note of a response time. After `decay` seconds what came before counts 1/e.
    pub fn observe(&self, seconds: f32, now: Tick, decay: f32) {
        self.0.update(|before| match before {
            Some((average, at)) if seconds < average => {
                let old = fading(now.since(at), decay);
                (average * old + seconds * (1.0 - old), now)
            }
            _ => (seconds, now),
        });
    }

    /// The average now. It fades while no answers come, so that a worker which was slow is tried again.
    pub fn at(&self, now: Tick, decay: f32) -> Option<f32> {
        self.0.get().map(|(average, at)| average * fading(now.since(at), decay))
    }
}

fn fading(age: f32, decay: f32) -> f32 {
    (-age / decay).exp()
}
