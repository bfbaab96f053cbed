//! What the system tests share: raw clients and recording workers, the proxy started in process.

pub mod proxy;
pub mod wire;
