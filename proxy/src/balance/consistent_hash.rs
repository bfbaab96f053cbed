//! The same key to the same member, as long as that is usable.
//!
//! A key meets its members in an order of its own, and takes the first that may have it: one that is usable, that has
//! room where the load is bounded (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016),
//! and that, while it starts slowly, has taken over so many keys already. The order comes from a ring (Karger and others,
//! "Consistent Hashing and Random Trees", 1997) or from a Maglev table (Eisenbud and others, "Maglev: A Fast and Reliable
//! Software Network Load Balancer", 2016). Members that are not usable stay in both, so while one is away no key moves
//! between the others. Members are known by their names: every proxy gives a key to the same one. A request
//! without a key goes to a member at random.

mod maglev;
mod ring;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_policy::effective::{self, HashAlgorithm};

use self::maglev::Maglev;
use self::ring::Ring;
use super::shared::Shared;
use super::weights::{WeightsNow, chance};
use super::{Balance, Choice, Load, Member, Usable, Weights, mix};

pub(super) struct ConsistentHash {
    weights: Weights,
    table: Arc<Table>,
    balance_factor: Option<u32>,
    loads: Box<[Arc<Load>]>,
    keys: Box<[u64]>,
}

enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

/// What a table is made of: the keys and the weights of the members, and how.
type Made = (HashAlgorithm, Box<[(u64, u32)]>);

fn table(algorithm: HashAlgorithm, members: &[Member]) -> Arc<Table> {
    static TABLES: Shared<Made, Table> = Shared::new();
    let of = members.iter().map(|member| (member.key, member.weight)).collect();
    TABLES.get((algorithm, of), |_| match algorithm {
        HashAlgorithm::Ring(virtual_nodes) => Table::Ring(Ring::new(members, virtual_nodes)),
        HashAlgorithm::Maglev(size) => Table::Maglev(Maglev::new(members, size)),
    })
}

impl ConsistentHash {
    pub(super) fn new(weights: Weights, settings: &effective::ConsistentHash, members: &[Member]) -> Self {
        Self {
            weights,
            table: table(settings.algorithm, members),
            balance_factor: settings.balance_factor,
            loads: members.iter().map(|member| member.load.clone()).collect(),
            keys: members.iter().map(|member| member.key).collect(),
        }
    }

    fn first_of(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        match &*self.table {
            Table::Ring(ring) => ring.walk(key).find(|place| accepts(*place)),
            Table::Maglev(maglev) => {
                maglev.probes(key).find(|place| accepts(*place)).or_else(|| self.nearest(key, accepts))
            }
        }
    }

    /// The one of all to which the key is nearest, by weight (rendezvous hashing; Schindelhauer and Schomaker, "Weighted
    /// Distributed Hash Tables", 2005).
    fn nearest(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let distance = |place: usize| {
            let random = (mix(key ^ mix(self.keys[place])) >> 11) as f64 / (1u64 << 53) as f64; // 0 to below 1
            -(1.0 - random).ln() / f64::from(self.weights.full()[place])
        };
        let accepted = (0..self.keys.len()).filter(|place| accepts(*place));
        let distances = accepted.map(|place| (distance(place), place));
        distances.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, place)| place)
    }

    /// Whether the member has taken this key over already: each member takes the keys in an order of its own.
    fn has_taken_over(&self, weights: &WeightsNow<'_>, place: usize, key: u64) -> bool {
        weights.are_full() || chance(mix(key ^ self.keys[place])) < weights.part(place)
    }

    /// Where the load is bounded a member that keeps failing has no room, as long as another has some: having nothing to do it
    /// would get what is too much for the others.
    fn without_failing(&self, weights: &WeightsNow<'_>, candidates: Usable) -> Usable {
        let fails = |place: &usize| self.loads[*place].keeps_failing(weights.now());
        if self.balance_factor.is_none() || !candidates.iter().any(|place| fails(&place)) {
            return candidates;
        }
        let rest: Usable = candidates.iter().filter(|place| !fails(place)).collect();
        if rest.is_empty() { candidates } else { rest }
    }

    /// The members that have as many requests in flight as the bound allows.
    fn full(&self, weights: &WeightsNow<'_>, candidates: &Usable) -> Usable {
        let Some(factor) = self.balance_factor else { return Usable::default() };
        let in_flight = |place: usize| u64::from(self.loads[place].in_flight.load(Relaxed));
        let (sum, weight) = candidates.iter().fold((1, 0), |(sum, weight), place| {
            (sum + in_flight(place), weight + u64::from(weights.of(place)))
        });
        let is_full = |place: &usize| {
            let bound = (sum * u64::from(factor) * u64::from(weights.of(*place))).div_ceil(100 * weight);
            bound <= in_flight(*place)
        };
        candidates.iter().filter(is_full).collect()
    }
}

impl Balance for ConsistentHash {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        if candidates.is_empty() {
            return None; // from here on a walk meets a candidate
        }
        let Some(key) = choice.key else { return weights.draw(&candidates, choice.random) };
        let candidates = self.without_failing(&weights, candidates);
        let with_room = candidates.without(&self.full(&weights, &candidates));
        let accepts = |place| with_room.contains(place) && self.has_taken_over(&weights, place, key);
        // The bounds add up to more than all requests, so some member has room; it may not have taken the key over.
        self.first_of(key, accepts)
            .or_else(|| self.first_of(key, |place| with_room.contains(place)))
            .or_else(|| self.first_of(key, |place| candidates.contains(place)))
    }
}

#[cfg(test)]
mod tests;
