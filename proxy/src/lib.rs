//! The sidecar proxy. The modules stand in the order in which a request meets them; start with `request`.
//!
//! It never names Kubernetes: workers, policy and identity reach it as settings, files and a stream.

// the request path
pub mod alarms;
pub mod availability;
pub mod balance;
pub mod body;
pub mod breaker;
pub mod canary;
pub mod client;
pub mod clock;
pub mod connection;
pub mod forward;
pub mod guard;
pub mod http1;
pub mod http2;
pub mod interim;
pub mod limit;
pub mod listener;
pub mod outbox;
pub mod passage;
pub mod pool;
pub mod protocol;
pub mod record;
pub mod refusals;
pub mod rejection;
pub mod request;
pub mod route;
pub mod session;
pub mod siblings;
pub mod thread;
pub mod upgrade;
pub mod worker;

// what stands around it
pub mod admin;
pub mod app;
pub mod backoff;
pub mod capacity;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod drain;
pub mod essential;
pub mod health;
pub mod memory;
pub mod metrics;
pub mod orphans;
pub mod processes;
pub mod snapshot;
pub mod startup;
pub mod supervisor;
pub mod tls;
