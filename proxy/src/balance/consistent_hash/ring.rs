//! A ring of points, many for each member; a key goes to the member of the next point.

use super::super::{Member, mix};

/// The points, ascending. The last byte of each is the place of its member: the rest tells points apart well enough.
pub(super) struct Ring(Box<[u64]>);

impl Ring {
    /// A member's points depend on its own name and weight alone: who else is there moves none of them.
    pub(super) fn new(members: &[Member], virtual_nodes: u32) -> Self {
        let of = |(place, member): (usize, &Member)| {
            let key = member.key;
            (0..member.weight * virtual_nodes)
                .map(move |i| mix(key ^ mix(u64::from(i))) & !0xff | place as u64)
        };
        let mut points: Box<[u64]> = members.iter().enumerate().flat_map(of).collect();
        points.sort_unstable();
        Self(points)
    }

    /// The members of all points, from the key's on.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let (before, after) = self.0.split_at(self.0.partition_point(|point| *point < mix(key)));
        after.iter().chain(before).map(|point| (point & 0xff) as usize)
    }
}
