//! How often a pod may ask for a certificate. Each is signed anew, so a proxy that asks without end would keep a replica busy.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

/// So many certificates at once, and one more each `EACH`: a certificate is asked for at a proxy's start and twice a day.
const AT_ONCE: u32 = 6;
const EACH: Duration = Duration::from_secs(60);
/// Pods remembered; those that may ask for all of theirs again are forgotten first.
const REMEMBERED: usize = 20_000;

/// What each pod has left.
#[derive(Default)]
pub struct Certified(Mutex<HashMap<Arc<str>, Instant>>);

impl Certified {
    /// Takes one certificate of the pod's.
    ///
    /// # Errors
    /// How long until it may ask again.
    pub(super) fn take(&self, pod: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.0.lock();
        if REMEMBERED <= full_at.len() {
            full_at.retain(|_, at| now < *at);
        }
        let at = full_at.get(pod).copied().unwrap_or(now).max(now) + EACH;
        let most = now + EACH * AT_ONCE;
        if most < at {
            return Err(at - most);
        }
        full_at.insert(pod.clone(), at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_some_at_once_and_then_one_a_minute() {
        let (certified, now) = (Certified::default(), Instant::now());
        let (web, other) = ("uid-web".into(), "uid-other".into());
        (0..AT_ONCE).for_each(|_| certified.take(&web, now).expect("at once"));
        assert_eq!(certified.take(&web, now), Err(EACH));
        assert_eq!(certified.take(&other, now), Ok(()), "it is not the other's fault");
        assert_eq!(certified.take(&web, now + EACH / 2), Err(EACH / 2));
        assert_eq!(certified.take(&web, now + EACH), Ok(()));
        assert_eq!(certified.take(&web, now + EACH), Err(EACH));
    }
}
