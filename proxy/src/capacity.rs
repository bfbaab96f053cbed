//! How many connections of clients the process takes: as many as it was told to, or a number that suits most, and never
//! more than it has descriptors for.

use crate::descriptors::{self, Reserve, TooFew};

/// Where nothing is said.
const USUAL: usize = 10_000;

/// How many connections of clients the process takes, where `asked` was said by flag.
///
/// # Errors
/// That its limit of open files is not enough for any.
pub fn connections(asked: Option<usize>, reserve: Reserve) -> Result<usize, TooFew> {
    let files = descriptors::raise();
    let possible = descriptors::connections(files, reserve)?;
    let wanted = asked.unwrap_or(USUAL);
    if possible < wanted && asked.is_some() {
        tracing::warn!(
            max_connections = wanted,
            taken = possible,
            open_files = files,
            "--max-connections cannot be met: each connection takes two descriptors, and some are set aside; raise the \
             hard limit of open files (`ulimit -Hn`, RLIMIT_NOFILE) or ask for fewer"
        );
    }
    Ok(wanted.min(possible))
}
