//! A table in which each member has its exact share of the places; a key goes to the member of its place.

use super::super::{Member, below, mix};

/// Places of a key that are tried.
const PROBES: u64 = 64;

/// Whose each place is. The size is a prime, so that every step visits every place.
pub(super) struct Maglev(Box<[u8]>);

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
        Self(places.into_iter().flatten().collect())
    }

    /// The members of as many of the key's places, at random, as nearly always end a search. Neighbours of a place would
    /// not do: who stands beside whom is not random.
    pub(super) fn probes(&self, key: u64) -> impl Iterator<Item = usize> {
        let size = self.0.len() as u64;
        let places = (0..PROBES).filter_map(move |i| self.0.get(below(mix(key ^ mix(i)), size) as usize));
        places.map(|place| usize::from(*place))
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
