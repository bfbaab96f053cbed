//! Compares what the process uses with its limit: what no connection was charged for counts there too.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Memory;

/// How often.
const EVERY: Duration = Duration::from_millis(250);
/// From this part of the limit on, in percent, memory is scarce, and until less than that part is used.
const SCARCE: [u64; 2] = [85, 80];

/// Looks for as long as the process runs.
pub async fn watch(memory: Arc<Memory>) {
    let mut every = tokio::time::interval(EVERY);
    loop {
        every.tick().await;
        if let Some(used) = used(&memory) {
            memory.uses(used);
        }
    }
}

fn used(memory: &Memory) -> Option<u64> {
    match &memory.limit.group {
        Some(group) => group.used(),
        None => resident(&fs::read_to_string("/proc/self/status").ok()?),
    }
}

/// What a process has in memory, by its `/proc/self/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

impl Memory {
    fn uses(&self, bytes: u64) {
        let [from, until] = SCARCE.map(|percent| self.limit.bytes / 100 * percent);
        self.used.store(bytes, Relaxed);
        let was = self.scarce.load(Relaxed);
        let scarce = if was { until <= bytes } else { from <= bytes };
        self.scarce.store(scarce, Relaxed);
        if scarce && !was {
            let (used, limit) = (bytes >> 20, self.limit.bytes >> 20);
            tracing::warn!(
                used_mib = used,
                limit_mib = limit,
                "memory is scarce: connections that hold much and do not move are ended; raise the limit of memory or lower \
                 --max-connections"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limit;
    use super::*;

    #[test]
    fn memory_is_scarce_from_one_mark_until_below_another() {
        let memory = Memory::new(Limit::of(1000), 1);
        let scarce = |used| {
            memory.uses(used);
            memory.is_scarce()
        };
        assert_eq!([849, 850, 801, 799, 849].map(scarce), [false, true, true, false, false]);
        assert_eq!(memory.used(), 849);
    }

    #[test]
    fn a_process_says_what_it_has_of_its_own() {
        assert_eq!(resident("VmRSS:\t 90 kB\nRssAnon:\t  12 kB\n"), Some(12 << 10));
        let own = fs::read_to_string("/proc/self/status").expect("there is /proc");
        assert!(resident(&own).is_some_and(|bytes| 0 < bytes));
    }
}
