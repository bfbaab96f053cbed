//! The keys of session cookies: master keys in a Secret, from which each namespace gets keys of its own.
//!
//! A namespace's keys are derived, so a pod that leaks its keys cannot forge the cookies of another
//! namespace. A new key is published for a minute before it seals: a proxy that meets a cookie of a key it
//! does not have yet would take the session for a new one.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use k8s_openapi::ByteString;
use kube::Client;
use outrigger_policy::wire::{KeyRing, SessionKey};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::certs::store::{Data, Store};
use crate::certs::{duration, now};

/// Keys kept. A cookie opens for at least two key lifetimes; after that its session is pinned anew.
const MOST: usize = 3;
/// How long a new key is held by every proxy before it seals.
const SETTLE: Duration = Duration::from_secs(60);
/// How often a replica looks at the Secret.
const INTERVAL: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 15;
/// The entry of the Secret.
const ENTRY: &str = "keys.json";
const SALT: &[u8] = b"outrigger.dev session keys v1";

/// Where the keys are kept and how long they are used.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// The Secret that holds the master keys of session cookies.
    #[arg(long, env = "OUTRIGGER_SESSION_KEYS_SECRET", default_value = "outrigger-session-keys")]
    pub session_keys_secret: String,
    /// How long a key seals cookies before a new one does. Cookies open for two lifetimes more.
    #[arg(long, env = "OUTRIGGER_SESSION_KEY_LIFETIME", value_parser = duration, default_value = "168h")]
    pub session_key_lifetime: Duration,
    /// The operator's namespace.
    #[arg(skip)]
    pub namespace: String,
    /// The Service that owns the Secret.
    #[arg(skip)]
    pub owner: Option<String>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked.
    #[error("kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The Secret's content is unusable. It is never overwritten.
    #[error("the secret '{0}' holds no session keys; delete it to have new ones made")]
    Secret(String),
    /// The system gave no random bytes.
    #[error("no random bytes")]
    Random,
    /// Another replica was faster: the next look shows what it wrote.
    #[error("another replica is writing the session keys")]
    Conflict,
}

/// The master keys: the first seals, all open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Master {
    keys: Vec<SessionKey>,
}

/// What the Secret holds, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    keys: Vec<StoredKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredKey {
    #[serde(flatten)]
    key: SessionKey,
    created: u64, // seconds since 1970
}

// === impl Master ===

impl Master {
    /// A key that only this process knows: for tests and for trying things without Kubernetes.
    ///
    /// # Errors
    /// The system gave no random bytes.
    pub fn in_memory() -> Result<Self, Error> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_| Error::Random)?;
        Ok(Self { keys: vec![SessionKey { id: 1, secret }] })
    }

    /// The keys of one namespace.
    pub fn for_namespace(&self, namespace: &str) -> KeyRing {
        let derive = |master: &SessionKey| {
            let mut secret = [0; 32];
            let prk = Salt::new(HKDF_SHA256, SALT).extract(&master.secret);
            // 32 bytes are one block: HKDF refuses only what is longer than 255 of them.
            prk.expand(&[namespace.as_bytes()], HKDF_SHA256).and_then(|okm| okm.fill(&mut secret)).ok()?;
            Some(SessionKey { id: master.id, secret })
        };
        KeyRing { keys: self.keys.iter().filter_map(derive).collect() }
    }
}

// === impl Stored ===

impl Stored {
    /// The keys in the order of use at this time. It follows from what is stored, so all replicas agree
    /// without a second write.
    fn master(&self, now: SystemTime) -> Master {
        let mut keys: Vec<_> = self.keys.iter().map(|stored| stored.key.clone()).collect();
        if 1 < keys.len() && now < self.keys[0].created() + SETTLE {
            keys.swap(0, 1);
        }
        Master { keys }
    }

    fn is_due(&self, lifetime: Duration, now: SystemTime) -> bool {
        self.keys.first().is_none_or(|newest| newest.created() + lifetime <= now)
    }

    /// With a new key; the oldest goes when there are too many.
    fn rotated(&self, secret: [u8; 32], now: SystemTime) -> Self {
        let id = self.keys.first().map_or(1, |newest| newest.key.id.wrapping_add(1));
        let created = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut keys = vec![StoredKey { key: SessionKey { id, secret }, created }];
        keys.extend(self.keys.iter().take(MOST - 1).cloned());
        Self { keys }
    }

    fn load(data: &Data) -> Option<Self> {
        let stored: Self = serde_json::from_slice(&data.get(ENTRY)?.0).ok()?;
        (!stored.keys.is_empty()).then_some(stored)
    }

    fn data(&self) -> Data {
        let json = serde_json::to_vec(self).unwrap_or_default();
        [(ENTRY.to_owned(), ByteString(json))].into()
    }
}

impl StoredKey {
    fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }
}

/// Reads or makes the keys. The task that comes with them keeps them rotated: the lease holder adds, all read.
///
/// # Errors
/// The Secret could be neither read nor made for half a minute.
pub async fn start(
    client: Client,
    settings: Settings,
    mut leadership: watch::Receiver<bool>,
) -> anyhow::Result<(watch::Receiver<Arc<Master>>, impl Future<Output = ()> + Send + 'static)> {
    let owner = settings.owner.as_deref();
    let store = Store::new(client, &settings.namespace, &settings.session_keys_secret, owner);
    let mut known = None;
    let mut attempt = 0;
    loop {
        // Not within the call: what is borrowed would be held until its answer, and whoever changes the leadership
        // meanwhile would block its thread, and with it all that runs there.
        let leads = *leadership.borrow_and_update();
        let Err(error) = look(&store, &settings, &mut known, leads).await else { break };
        if attempt == ATTEMPTS {
            return Err(error.into());
        }
        tracing::warn!(%error, "no session keys yet");
        attempt += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let (masters, receiver) = watch::channel(Arc::new(known.clone().unwrap_or_default().master(now())));
    let kept = async move {
        while !masters.is_closed() {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                Ok(()) = leadership.changed() => {}
            }
            let leads = *leadership.borrow_and_update();
            match look(&store, &settings, &mut known, leads).await {
                Ok(()) | Err(Error::Conflict) => {}
                Err(error) => tracing::warn!(%error, "keeping the session keys as they are"),
            }
            let master = known.clone().unwrap_or_default().master(now());
            masters.send_if_modified(|held| {
                let changed = **held != master;
                if changed {
                    *held = Arc::new(master);
                }
                changed
            });
        }
    };
    Ok((receiver, kept))
}

/// One look at the Secret: `known` becomes what it holds, after the rotation that is due.
async fn look(
    store: &Store,
    settings: &Settings,
    known: &mut Option<Stored>,
    leads: bool,
) -> Result<(), Error> {
    let now = now();
    match (store.read().await?, known.as_ref()) {
        (Some(secret), _) => {
            let name = || Error::Secret(settings.session_keys_secret.clone());
            let mut stored = Stored::load(&secret.data).ok_or_else(name)?;
            if leads && stored.is_due(settings.session_key_lifetime, now) {
                let rotated = stored.rotated(random()?, now);
                store.replace(secret, rotated.data()).await?.ok_or(Error::Conflict)?;
                tracing::info!(keys = rotated.keys.len(), "added a session key");
                stored = rotated;
            }
            *known = Some(stored);
        }
        (None, None) => {
            let first = Stored::default().rotated(random()?, now);
            store.create(first.data()).await?.ok_or(Error::Conflict)?;
            *known = Some(first);
        }
        // Somebody removed the Secret: put back what is known, or every session would move.
        (None, Some(stored)) if leads => drop(store.create(stored.data()).await?),
        (None, Some(_)) => {}
    }
    Ok(())
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::tests::fake::Fake;

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000 + seconds)
    }

    fn ids(keys: &[SessionKey]) -> Vec<u8> {
        keys.iter().map(|key| key.id).collect()
    }

    #[test]
    fn a_new_key_opens_before_it_seals() {
        let one = Stored::default().rotated([1; 32], at(0));
        assert_eq!(ids(&one.master(at(0)).keys), [1], "the only key seals at once");
        let two = one.rotated([2; 32], at(100));
        assert_eq!(ids(&two.master(at(100)).keys), [1, 2]);
        assert_eq!(ids(&two.master(at(159)).keys), [1, 2]);
        assert_eq!(ids(&two.master(at(160)).keys), [2, 1]);
    }

    #[test]
    fn keys_rotate_weekly_and_three_are_kept() {
        let mut stored = Stored::default();
        assert!(stored.is_due(WEEK, at(0)));
        for week in 0..300 {
            let now = at(week * WEEK.as_secs());
            assert!(stored.is_due(WEEK, now));
            stored = stored.rotated([9; 32], now);
            assert!(!stored.is_due(WEEK, now + WEEK - Duration::from_secs(1)));
            let mut distinct = ids(&stored.master(now).keys);
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), stored.keys.len());
            assert!(stored.keys.len() <= MOST);
        }
    }

    #[test]
    fn every_namespace_has_keys_of_its_own() {
        let master = Stored::default().rotated([1; 32], at(0)).rotated([2; 32], at(1)).master(at(99));
        let (a, b) = (master.for_namespace("a"), master.for_namespace("b"));
        assert_eq!(ids(&a.keys), [2, 1]);
        assert_eq!(a, master.for_namespace("a"), "the same everywhere");
        assert_ne!(a.keys[0].secret, b.keys[0].secret);
        assert_ne!(a.keys[0].secret, [2; 32], "a master key never leaves");
    }

    /// Computed with another implementation (Python's `hmac`): the derivation is a format that replicas of
    /// different releases share.
    #[test]
    fn the_derivation_is_hkdf_sha256() {
        let master = Master { keys: vec![SessionKey { id: 7, secret: [1; 32] }] };
        let hex: String =
            master.for_namespace("shop").keys[0].secret.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "d44f5bfadcd034c9f094fb321927422843d3908ceea05137d578a8ff2b93554a");
    }

    #[test]
    fn what_is_stored_reads_back_and_garbage_does_not() {
        let stored = Stored::default().rotated([1; 32], at(0)).rotated([2; 32], at(1));
        assert_eq!(Stored::load(&stored.data()), Some(stored));
        assert_eq!(Stored::load(&Data::new()), None);
        for garbage in ["", "{", "{\"keys\":[]}", "{\"keys\":[{\"id\":1,\"secret\":\"AA==\",\"created\":1}]}"]
        {
            let data = [(ENTRY.to_owned(), ByteString(garbage.as_bytes().to_vec()))].into();
            assert_eq!(Stored::load(&data), None, "{garbage}");
        }
    }

    #[tokio::test]
    async fn replicas_share_the_keys_and_a_lost_secret_is_restored() {
        const SECRET: &str = "/api/v1/namespaces/system/secrets/keys";
        let api = Fake::start().await;
        let settings = Settings {
            session_keys_secret: "keys".into(),
            session_key_lifetime: WEEK,
            namespace: "system".into(),
            owner: Some("outrigger-push".into()),
        };
        let store = Store::new(api.client(), "system", "keys", settings.owner.as_deref());
        let (mut leader, mut follower) = (None, None);
        look(&store, &settings, &mut follower, false).await.expect("made by whoever comes first");
        look(&store, &settings, &mut leader, true).await.expect("read");
        assert!(leader.is_some() && leader == follower);
        api.remove(SECRET);
        look(&store, &settings, &mut follower, false).await.expect("kept");
        assert!(api.get(SECRET).is_none() && leader == follower);
        look(&store, &settings, &mut leader, true).await.expect("restored");
        look(&store, &settings, &mut follower, false).await.expect("read");
        assert!(api.get(SECRET).is_some() && leader == follower);
        let settings = Settings { session_key_lifetime: Duration::ZERO, ..settings };
        look(&store, &settings, &mut leader, true).await.expect("rotated");
        look(&store, &settings, &mut follower, false).await.expect("read");
        assert!(leader == follower && leader.is_some_and(|stored| stored.keys.len() == 2));
    }
}
