//! The wire as it is: raw clients that may send anything, a worker that records every byte, and a strict reader
//! that judges those bytes.
//! Status codes say little about request smuggling; what left the proxy says everything.

pub mod client;
pub mod corpus;
pub mod grammar;
pub mod h2;
pub mod hpack;
pub mod judge;
pub mod lanes;
pub mod peer;
pub mod recorder;
pub mod response;
pub mod strict;
pub mod table;
