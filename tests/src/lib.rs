//! What the system tests share: raw clients and recording workers, the proxy started in process, real programs.

pub mod certificate;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod flood;
pub mod group;
pub mod hoard;
pub mod law;
pub mod load;
pub mod operator;
pub mod processes;
pub mod prometheus;
pub mod proxy;
pub mod push;
pub mod readers;
pub mod siblings;
pub mod tools;
pub mod wire;
pub mod workers;
