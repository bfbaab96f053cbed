//! Well-behaved workers of every protocol, and clients that do anything they like: what the law is tested with that no client
//! alone changes a breaker, a score or readiness.

mod clients;
mod servers;

pub use clients::{Client, Manner, grpc, plain, websocket};
pub use servers::{Kind, PATIENCE, Server};
