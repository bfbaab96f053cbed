//! How many connections of clients the process takes: as many as it was told to, or a number that suits most, and never
//! more than it has descriptors and memory for.

use crate::descriptors::{self, Reserve, TooFew};
use crate::memory::Memory;

/// Where nothing is said.
const USUAL: usize = 10_000;

/// How many connections of clients the process takes, where `asked` was said by flag.
///
/// # Errors
/// That its limit of open files is not enough for any.
pub fn connections(asked: Option<usize>, reserve: Reserve, memory: &Memory) -> Result<usize, TooFew> {
    let files = descriptors::raise();
    let described = descriptors::connections(files, reserve)?;
    let wanted = asked.unwrap_or(USUAL);
    let possible = described.min(memory.connections());
    if possible < wanted && asked.is_some() {
        tracing::warn!(
            max_connections = wanted,
            taken = possible,
            open_files = files,
            enough_for = described,
            memory_mib = memory.limit() >> 20,
            suffices_for = memory.connections(),
            "--max-connections cannot be met: each connection takes two descriptors and its part of the memory, and some are \
             set aside; raise the hard limit of open files (`ulimit -Hn`, RLIMIT_NOFILE), the limit of memory, or ask for fewer"
        );
    }
    Ok(wanted.min(possible))
}
