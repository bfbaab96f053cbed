//! What the people who run a proxy or an operator see of it, in the same form for both programs.

pub mod exposition;
pub mod log;
