//! The operator: watches `ClusterPolicy` resources, merges those that select a pod, pushes the result to the
//! pod's proxy, and says in the policy's status how far that got.
//!
//! Every replica watches, pushes and answers admission requests. The one that holds the lease also writes:
//! status, Events, Secrets.
//!
//! The modules in the order a change takes: `crd` (what is written), `controller` (what it means for each pod), `canary` (who gets it when),
//! `push` (how it gets there, and what the proxies say of it), `controller::report` (what the user sees).

pub mod crd;

pub mod canary;
pub mod controller;
pub mod push;

pub mod certs;
pub mod session_keys;
pub mod webhook;

pub mod admin;
pub mod app;
pub mod config;
pub mod essential;
pub mod leader;
pub mod listener;
pub mod metrics;
