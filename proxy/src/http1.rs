//! HTTP/1.1, read and written as bytes.
//!
//! `server` speaks it to clients, `client` to workers. Both directions have one strict reader and one writer: `fields` reads
//! the lines of a head, `framing` and `chunked` the content, `message` writes. `buffers` is what the connections of one thread
//! borrow while they are read or written.

mod buffers;
mod chunked;
mod client;
mod fields;
mod framing;
mod message;
pub mod server;

pub use self::buffers::{BLOCK, Buffers};
pub use self::client::{Body, Closer, Connection, Error, SendError};
pub use self::server::{Incoming, Line};

/// The head of a message may have this many bytes.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;
