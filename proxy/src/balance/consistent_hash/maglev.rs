//! A table in which each member has its exact share of the places; a key goes to the member of its place.

use super::super::{Member, below, mix};

/// Places of a key that are tried.
const PROBES: u64 = 64;

pub(super) struct Maglev {
    /// Whose each place is. The size is a prime, so that every step visits every place.
    places: Box<[u8]>,
    /// What each member is known by, and its weight.
    members: Box<[(u64, u32)]>,
}

impl Maglev {
    /// Members take the places in turn, each in an order of its own; one of twice the weight has twice the turns.
    pub(super) fn new(members: &[Member], size: u32) -> Self {
        let size = size as usize;
        let highest = members.iter().map(|member| member.weight).max().unwrap_or(0);
        let mut places: Vec<Option<u8>> = vec![None; size];
        let mut orders: Vec<Order> = members.iter().map(|member| Order::new(member.key, size)).collect();
        let mut credits = vec![0; members.len()];
        let mut free = if highest == 0 { 0 } else { size };
        while free != 0 {
            for (place, member) in members.iter().enumerate() {
                credits[place] += member.weight;
                if credits[place] < highest || free == 0 {
                    continue;
                }
                credits[place] -= highest;
                if let Some(at) = orders[place].by_ref().find(|at| places[*at].is_none()) {
                    places[at] = Some(place as u8);
                    free -= 1;
                }
            }
        }
        Self {
            places: places.into_iter().flatten().collect(),
            members: members.iter().map(|member| (member.key, member.weight)).collect(),
        }
    }

    /// The first that may have the key: of the members of as many places at random as nearly always end the search, then
    /// of all. Neighbours of a place would not do: who stands beside whom is not random.
    pub(super) fn first_of(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.places.len() as u64;
        let probes = (0..PROBES).filter_map(|i| self.places.get(below(mix(key ^ mix(i)), size) as usize));
        probes
            .map(|place| usize::from(*place))
            .find(|place| accepts(*place))
            .or_else(|| self.next_of(key, accepts))
    }

    /// The one of all to which the key is nearest, by weight (rendezvous hashing; Schindelhauer and Schomaker, "Weighted
    /// Distributed Hash Tables", 2005).
    fn next_of(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let distance = |place: usize| {
            let (member, weight) = self.members[place];
            let random = (mix(key ^ mix(member)) >> 11) as f64 / (1u64 << 53) as f64; // 0 to below 1
            -(1.0 - random).ln() / f64::from(weight)
        };
        let distances =
            (0..self.members.len()).filter(|place| accepts(*place)).map(|place| (distance(place), place));
        distances.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, place)| place)
    }
}

/// The order in which a member takes places: from an offset by a step.
struct Order {
    next: usize,
    step: usize,
    size: usize,
}

impl Order {
    fn new(key: u64, size: usize) -> Self {
        let [offset, step] = [mix(key), mix(!key)];
        Self {
            next: below(offset, size as u64) as usize,
            step: 1 + below(step, size as u64 - 1) as usize,
            size,
        }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let at = self.next;
        self.next = (at + self.step) % self.size;
        Some(at)
    }
}
