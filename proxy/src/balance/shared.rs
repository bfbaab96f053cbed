//! Tables that strategies look things up in, and of which there is one for all strategies over the same members: a policy of
//! a thousand routes that hash by different headers needs one ring.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// The tables of one kind that are in use.
pub(super) struct Shared<K, T> {
    in_use: Mutex<Vec<Entry<K, T>>>,
}

/// A table, and what it was made of.
struct Entry<K, T> {
    of: K,
    table: Weak<T>,
}

impl<K: PartialEq, T> Shared<K, T> {
    pub(super) const fn new() -> Self {
        Self { in_use: Mutex::new(Vec::new()) }
    }

    /// The table of this, which is made unless there is one.
    pub(super) fn get(&self, of: K, make: impl FnOnce(&K) -> T) -> Arc<T> {
        let mut in_use = self.in_use.lock();
        in_use.retain(|entry| entry.table.strong_count() != 0);
        let found = in_use.iter().filter(|entry| entry.of == of).find_map(|entry| entry.table.upgrade());
        found.unwrap_or_else(|| {
            let table = Arc::new(make(&of));
            in_use.push(Entry { of, table: Arc::downgrade(&table) });
            table
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_shared_as_long_as_it_is_in_use() {
        let (shared, mut made) = (Shared::new(), 0);
        let one = shared.get(1, |_| made += 1);
        let again = shared.get(1, |_| made += 1);
        let other = shared.get(2, |_| made += 1);
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        drop((one, again));
        let anew = shared.get(1, |_| made += 1);
        drop((anew, other));
        assert_eq!((made, shared.in_use.lock().len()), (3, 2));
    }
}
