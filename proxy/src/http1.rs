//! HTTP/1.1, read and written as bytes.
//!
//! `client` speaks it to workers. `chunked` reads a body of either direction, `buffers` is what the connections of one thread
//! borrow while they are read or written.

mod buffers;
mod chunked;
mod client;

pub use self::buffers::Buffers;
pub use self::client::{Body, Closer, Connection, Error, SendError};

/// The head of a message may have this many bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
