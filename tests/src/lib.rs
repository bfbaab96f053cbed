//! What the system tests share: raw clients and recording workers, the proxy started in process.

pub mod client;
pub mod cluster;
pub mod demo;
pub mod load;
pub mod proxy;
pub mod wire;
pub mod workers;
