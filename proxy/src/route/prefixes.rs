//! The longest prefix of a path, of many, by one binary search.
//!
//! A key is a prefix with a slash at its end, and a path is compared as if it had one, so that whole segments match.
//! In the order of bytes every key that begins a path stands before it, and all keys between the two begin with that
//! key too. So the longest one is the last key at or before the path, or the nearest of those that begin that key.

use std::cmp::Ordering;

use super::places::Places;

/// Prefixes, each with the routes that a path under it satisfies.
pub(super) struct Prefixes {
    /// In order of their keys.
    sorted: Vec<Prefix>,
}

struct Prefix {
    key: Box<[u8]>,
    /// The place of the longest other one that begins this one.
    parent: Option<usize>,
    /// Its routes and those of every prefix that begins it.
    places: Places,
}

impl Prefixes {
    /// Each prefix, without a slash at its end, and the routes that have it as their condition. `any` are the routes that
    /// every path satisfies.
    pub(super) fn new<'a>(prefixes: impl Iterator<Item = (&'a str, Places)>, any: &Places) -> Self {
        let keyed = prefixes.map(|(prefix, places)| ([prefix.as_bytes(), b"/"].concat(), places));
        let mut keyed: Vec<_> = keyed.collect();
        keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut sorted: Vec<Prefix> = Vec::with_capacity(keyed.len());
        for (key, mut places) in keyed {
            let mut parent = sorted.len().checked_sub(1);
            while let Some(place) = parent
                && !key.starts_with(&sorted[place].key)
            {
                parent = sorted[place].parent;
            }
            places.add(parent.map_or(any, |parent| &sorted[parent].places));
            sorted.push(Prefix { key: key.into(), parent, places });
        }
        Self { sorted }
    }

    /// The routes of every prefix of this path; `None` where no prefix is one.
    pub(super) fn of(&self, path: &[u8]) -> Option<&Places> {
        let after = self.sorted.partition_point(|prefix| order(&prefix.key, path) != Ordering::Greater);
        let mut nearest = after.checked_sub(1);
        while let Some(place) = nearest {
            let prefix = &self.sorted[place];
            if begins(&prefix.key, path) {
                return Some(&prefix.places);
            }
            nearest = prefix.parent;
        }
        None
    }
}

/// How a key stands to a path with a slash at its end.
fn order(key: &[u8], path: &[u8]) -> Ordering {
    let common = key.len().min(path.len());
    key[..common].cmp(&path[..common]).then_with(|| match key.get(path.len()) {
        None => Ordering::Less,
        Some(next) => next.cmp(&b'/').then(key.len().cmp(&(path.len() + 1))),
    })
}

/// Whether a path with a slash at its end begins with a key.
fn begins(key: &[u8], path: &[u8]) -> bool {
    let prefix = &key[..key.len() - 1];
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|next| *next == b'/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_order_is_that_of_the_path_with_its_slash() {
        for key in ["/", "/a/", "/a-b/", "/a/b/", "/ab/", "//"] {
            for path in ["", "*", "/", "/a", "/a/", "/a-b", "/a-c", "/a/b", "/a/b/c", "/ab", "/b", "//"] {
                let whole = format!("{path}/");
                assert_eq!(order(key.as_bytes(), path.as_bytes()), key.cmp(&whole), "{key} to {path}");
                assert_eq!(
                    begins(key.as_bytes(), path.as_bytes()),
                    whole.starts_with(key),
                    "{key} of {path}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_path_is_found(
            prefixes in proptest::collection::btree_set("(/[a-b-]{0,2}){1,4}", 0..12),
            path in "(/[a-b-]{0,2}){0,6}",
        ) {
            let prefixes: Vec<_> = prefixes.iter().map(String::as_str).collect();
            let any = Places::none(prefixes.len() + 1).with(prefixes.len());
            let keyed = prefixes.iter().enumerate().map(|(i, prefix)| (*prefix, Places::none(prefixes.len() + 1).with(i)));
            let found = Prefixes::new(keyed, &any);
            let expected: Vec<_> = prefixes.iter().enumerate()
                .filter(|(_, prefix)| format!("{path}/").starts_with(&format!("{prefix}/"))).map(|(i, _)| i)
                .chain([prefixes.len()]).collect();
            let places = found.of(path.as_bytes()).map(|places| places.iter().collect::<Vec<_>>());
            prop_assert_eq!(places.unwrap_or_else(|| vec![prefixes.len()]), expected);
        }
    }
}
