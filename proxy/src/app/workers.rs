//! Who starts the workers: somebody else, or the proxy.

use std::sync::Arc;

use crate::supervisor::{self, Beginning, Conflict};
use crate::worker::Worker;

/// Who the workers are.
pub enum Workers {
    /// Others start them.
    Given(Vec<Arc<Worker>>),
    /// The proxy starts them.
    Started(supervisor::Settings),
}

impl Workers {
    /// How many there are once all have started.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Given(given) => given.len(),
            Self::Started(settings) => settings.workers,
        }
    }

    /// How many of them the proxy starts.
    pub(super) fn started(&self) -> usize {
        match self {
            Self::Given(_) => 0,
            Self::Started(settings) => settings.workers,
        }
    }

    /// How the start of those stands that the proxy starts.
    pub fn beginning(&self) -> Arc<Beginning> {
        match self {
            Self::Given(_) => Arc::default(),
            Self::Started(settings) => settings.beginning.clone(),
        }
    }

    /// Looks whether those that the proxy starts can have their ports. To be called when it has its own.
    pub(super) fn preflight(&self) -> Result<(), Conflict> {
        match self {
            Self::Given(_) => Ok(()),
            Self::Started(settings) => supervisor::preflight(settings),
        }
    }
}
