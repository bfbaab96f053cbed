//! What crosses a process boundary: the policy a user writes, the policy a proxy enforces, and the
//! messages that carry one to the other.
//!
//! No tokio, no hyper, no kube: proxy and operator both depend on this crate and never on each other.

pub mod compile;
pub mod document;
pub mod drain;
pub mod effective;
pub mod merge;
pub mod report;
pub mod sample;
pub mod selector;
pub mod siblings;
pub mod spec;
pub mod units;
pub mod wire;

pub use compile::{Violation, compile, compile_load_balancer};
pub use effective::Policy;
pub use spec::Spec;
