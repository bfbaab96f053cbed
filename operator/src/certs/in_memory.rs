//! Certificates of a CA that only this process knows and that changes when it is told to: for tests, and for
//! trying things without Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::authority::Held;
use super::rotation::{Schedule, Step, Validity};
use super::{Certificates, Error, Shared, certified, now};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const SCHEDULE: Schedule = Schedule { authority: YEAR, overlap: YEAR, leaf: YEAR };

/// The CA behind such certificates.
pub struct InMemory {
    held: Held,
    names: Vec<String>,
    shared: Arc<Shared>,
    changes: watch::Sender<()>,
}

impl Certificates {
    /// Certificates for these names that never change.
    ///
    /// # Errors
    /// A name is no DNS name.
    pub fn in_memory(names: &[String]) -> Result<Self, Error> {
        Ok(InMemory::create(names)?.0)
    }
}

impl InMemory {
    /// A new CA, and a certificate of it for these names.
    ///
    /// # Errors
    /// A name is no DNS name.
    pub fn create(names: &[String]) -> Result<(Certificates, Self), Error> {
        let held = Held::create(&SCHEDULE, now())?;
        let leaf = held.current().issue(names, Validity::starting(now(), YEAR))?;
        let (certificates, changes) =
            Certificates::new(certified(leaf)?, held.bundle(), held.current().clone())?;
        let shared = certificates.shared.clone();
        Ok((certificates, Self { held, names: names.to_vec(), shared, changes }))
    }

    /// Takes a step of a rotation, as the lease holder does when it is due: the bundle first, then a certificate
    /// of the CA that signs now.
    ///
    /// # Errors
    /// Never in practice: what worked before fails.
    pub fn advance(&mut self, step: Step) -> Result<(), Error> {
        self.held = Held::load(&self.held.data())?.advance(step, &SCHEDULE, now())?;
        self.shared.bundle.store(Arc::new(self.held.bundle()));
        let leaf = self.held.current().issue(&self.names, Validity::starting(now(), YEAR))?;
        self.shared.leaf.store(certified(leaf)?);
        self.shared.signer.store(self.held.current().clone());
        self.changes.send_replace(());
        Ok(())
    }
}
