//! A ring of points, many for each member; a key goes to the member of the next point.

use super::super::{Member, mix};

/// The points, ascending, and the place of each one's member: five bytes a point.
pub(super) struct Ring {
    points: Box<[u32]>,
    places: Box<[u8]>,
}

impl Ring {
    /// A member's points depend on its own name and weight alone: who else is there moves none of them.
    pub(super) fn new(members: &[Member], virtual_nodes: u32) -> Self {
        let count: u64 =
            members.iter().map(|member| u64::from(member.weight) * u64::from(virtual_nodes)).sum();
        let mut sorted = Vec::with_capacity(count as usize);
        for (place, member) in members.iter().enumerate() {
            let point = |i: u32| mix(member.key ^ mix(u64::from(i))) & !0xff | place as u64;
            sorted.extend((0..member.weight * virtual_nodes).map(point));
        }
        sorted.sort_unstable();
        let points = sorted.iter().map(|point| (point >> 32) as u32).collect();
        Self { points, places: sorted.iter().map(|point| *point as u8).collect() }
    }

    /// The members of all points, from the key's on.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let key = (mix(key) >> 32) as u32;
        let (before, after) = self.places.split_at(self.points.partition_point(|point| *point < key));
        after.iter().chain(before).map(|place| usize::from(*place))
    }

    /// What it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.points) + size_of_val(&*self.places)
    }
}
