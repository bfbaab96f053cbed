//! The sidecar proxy. The modules stand in the order in which a request meets them; start with `request`.
//!
//! It never names Kubernetes: workers, policy and identity reach it as settings, files and a stream.

// the request path
pub mod listener;
pub mod thread;
pub mod connection;
pub mod request;
pub mod guard;
pub mod client;
pub mod route;
pub mod limit;
pub mod session;
pub mod breaker;
pub mod balance;
pub mod worker;
pub mod forward;
pub mod pool;
pub mod body;
pub mod upgrade;
pub mod rejection;
pub mod record;

// what stands around it
pub mod snapshot;
pub mod control;
pub mod health;
pub mod tls;
pub mod metrics;
pub mod admin;
pub mod drain;
pub mod supervisor;
pub mod config;
pub mod app;
