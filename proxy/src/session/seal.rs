//! Seals a session with AES-256-GCM-SIV (RFC 8452) and opens it again. What was not sealed by a key of the ring, for this
//! cookie, does not open. Cookies of releases before, sealed with AES-256-GCM, still do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{
    AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_policy::wire::{KeyRing, SessionKey};

use super::{Opened, Session};

/// Sealed with AES-256-GCM by the key of the ring: opened only.
const GCM: u8 = 1;
/// Sealed with AES-256-GCM-SIV by a key that is derived from it.
const GCM_SIV: u8 = 2;
const SALT: &[u8] = b"outrigger session cookies, AES-256-GCM-SIV";
const TAG: usize = 16;
const PLAIN: usize = 16;
/// Version, key id, nonce, the sealed session, its tag.
const SEALED: usize = 2 + NONCE_LEN + PLAIN + TAG;
/// What `SEALED` bytes are in base64 without padding.
pub(super) const ENCODED: usize = (SEALED * 4).div_ceil(3);

/// The keys of one cookie.
pub(super) struct Keys {
    /// No other's.
    id: u64,
    /// Newest first; never empty.
    keys: Vec<Key>,
    /// Binds what is sealed to the cookie's name: a cookie copied under another name does not open.
    name: String,
}

/// A key of the ring, for each version of what is sealed.
struct Key {
    id: u8,
    gcm: LessSafeKey,
    gcm_siv: LessSafeKey,
}

impl Key {
    fn new(key: &SessionKey) -> Option<Self> {
        let made = |algorithm: &'static Algorithm, secret: &[u8; 32]| {
            Some(LessSafeKey::new(UnboundKey::new(algorithm, secret).ok()?))
        };
        let mut derived = [0; 32];
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(&key.secret);
        extracted.expand(&[], HKDF_SHA256).and_then(|okm| okm.fill(&mut derived)).ok()?;
        Some(Self {
            id: key.id,
            gcm: made(&AES_256_GCM, &key.secret)?,
            gcm_siv: made(&AES_256_GCM_SIV, &derived)?,
        })
    }
}

impl Keys {
    /// The ring's keys for the cookie of this name; `None` for an empty ring.
    pub(super) fn new(ring: &KeyRing, name: &str) -> Option<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let keys: Vec<_> = ring.keys.iter().filter_map(Key::new).collect();
        let id = NEXT_ID.fetch_add(1, Relaxed);
        (!keys.is_empty()).then(|| Self { id, keys, name: name.to_owned() })
    }

    /// The session as text, under the newest key. The nonce should be random; one that comes twice tells no more than
    /// whether two cookies hold the same session.
    pub(super) fn seal(&self, session: Session, nonce: [u8; NONCE_LEN]) -> String {
        let key = &self.keys[0];
        let mut plain = [0; PLAIN];
        plain[..8].copy_from_slice(&session.worker.to_be_bytes());
        plain[8..].copy_from_slice(&session.expires.to_be_bytes());
        let unique = Nonce::assume_unique_for_key(nonce);
        let aad = self.aad(GCM_SIV, key.id);
        let Ok(tag) = key.gcm_siv.seal_in_place_separate_tag(unique, Aad::from(aad.as_slice()), &mut plain)
        else {
            return String::new(); // only for texts of many gigabytes
        };
        let mut sealed = Vec::with_capacity(SEALED);
        sealed.extend_from_slice(&[GCM_SIV, key.id]);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&plain);
        sealed.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The session that a text seals, if it does: known, where it was opened of late.
    pub(super) fn open_again(&self, text: &[u8], opened: &mut Opened) -> Option<Session> {
        let text = text.try_into().ok()?;
        opened.find(self.id, text).or_else(|| {
            let session = self.open(text)?;
            opened.keep(self.id, text, session);
            Some(session)
        })
    }

    /// The session that a text seals, if it does.
    pub(super) fn open(&self, text: &[u8]) -> Option<Session> {
        if text.len() != ENCODED {
            return None;
        }
        let mut sealed = [0; SEALED + 2];
        if URL_SAFE_NO_PAD.decode_slice(text, &mut sealed).ok()? != SEALED {
            return None;
        }
        let [version, id] = [sealed[0], sealed[1]];
        let key = self.keys.iter().find(|key| key.id == id)?;
        let key = match version {
            GCM => &key.gcm,
            GCM_SIV => &key.gcm_siv,
            _ => return None,
        };
        let aad = self.aad(version, id);
        let nonce = Nonce::try_assume_unique_for_key(&sealed[2..2 + NONCE_LEN]).ok()?;
        let body = &mut sealed[2 + NONCE_LEN..SEALED];
        let plain = key.open_in_place(nonce, Aad::from(aad.as_slice()), body).ok()?;
        let (worker, expires) = plain.split_at_checked(8)?;
        Some(Session { worker: number(worker)?, expires: number(expires)? })
    }

    fn aad(&self, version: u8, id: u8) -> smallvec::SmallVec<[u8; 64]> {
        let mut aad = smallvec::SmallVec::from_slice(&[version, id]);
        aad.extend_from_slice(self.name.as_bytes());
        aad
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use outrigger_policy::wire::SessionKey;
    use proptest::prelude::*;

    use super::*;

    fn ring(ids: &[u8]) -> KeyRing {
        KeyRing { keys: ids.iter().map(|id| SessionKey { id: *id, secret: [*id; 32] }).collect() }
    }

    fn keys(ids: &[u8]) -> Keys {
        Keys::new(&ring(ids), "session").expect("keys")
    }

    const SESSION: Session = Session { worker: 7, expires: 1_800_000_000 };

    #[test]
    fn an_older_key_still_opens_and_a_stranger_does_not() {
        let sealed = keys(&[1]).seal(SESSION, [9; 12]);
        assert_eq!(keys(&[2, 1]).open(sealed.as_bytes()), Some(SESSION));
        assert_eq!(keys(&[2]).open(sealed.as_bytes()), None);
        let stranger = KeyRing { keys: vec![SessionKey { id: 1, secret: [8; 32] }] };
        assert_eq!(Keys::new(&stranger, "session").expect("keys").open(sealed.as_bytes()), None);
        assert_eq!(Keys::new(&ring(&[1]), "other").expect("keys").open(sealed.as_bytes()), None);
        assert!(Keys::new(&KeyRing::default(), "session").is_none());
    }

    /// Computed with another implementation (Python's `cryptography`): the cookies of all releases are formats that
    /// clients keep.
    #[test]
    fn the_formats_are_those_of_the_standards() {
        let keys = keys(&[1]);
        let of_before = "AQEJCQkJCQkJCQkJCQnEDyfOzjAGxn9USk_FlFcX90stWJG9Vs7K-PZ5LyKGsQ";
        let now = "AgEJCQkJCQkJCQkJCQk1VPkpvrDFGYVc1lN9plKOdmio0heHr2snLpVDj-kL6A";
        assert_eq!(keys.open(of_before.as_bytes()), Some(SESSION), "AES-256-GCM");
        assert_eq!(keys.seal(SESSION, [9; 12]), now, "AES-256-GCM-SIV");
        assert_eq!(keys.open(now.as_bytes()), Some(SESSION));
        for (version, text) in [("Ag", of_before), ("AQ", now), ("Aw", now)] {
            let other = [version, &text[2..]].concat();
            assert_eq!(keys.open(other.as_bytes()), None, "a seal is of one version");
        }
    }

    /// With AES-GCM the difference of two texts, and with it the key of the tags, is there to read.
    #[test]
    fn a_nonce_that_comes_twice_tells_nothing_of_two_sessions() {
        let keys = keys(&[1]);
        let sealed = |worker| {
            let text = keys.seal(Session { worker, ..SESSION }, [9; 12]);
            URL_SAFE_NO_PAD.decode(text).expect("base64")[2 + NONCE_LEN..][..PLAIN].to_vec()
        };
        let (one, two) = (sealed(1), sealed(2));
        let difference: Vec<_> = one.iter().zip(&two).map(|(one, two)| one ^ two).collect();
        let zeros = difference.iter().filter(|byte| **byte == 0).count();
        assert!(zeros < 4, "{difference:?}: AES-GCM gives 1 ^ 2 in one byte, and fifteen zeros");
    }

    #[test]
    fn what_was_opened_is_known_to_the_keys_that_opened_it() {
        let (keys, mut opened) = (keys(&[1]), Opened::default());
        let sealed = keys.seal(SESSION, [9; 12]);
        for _ in 0..2 {
            assert_eq!(keys.open_again(sealed.as_bytes(), &mut opened), Some(SESSION));
        }
        let stranger = KeyRing { keys: vec![SessionKey { id: 1, secret: [8; 32] }] };
        let stranger = Keys::new(&stranger, "session").expect("keys");
        assert_eq!(stranger.open_again(sealed.as_bytes(), &mut opened), None);
        assert_eq!(keys.open_again(&sealed.as_bytes()[1..], &mut opened), None);
    }

    #[test]
    fn nothing_forged_opens() {
        let keys = keys(&[1]);
        let sealed = keys.seal(SESSION, [9; 12]).into_bytes();
        let mut accepted = 0;
        for _ in 0..100_000 {
            let mut forged = sealed.clone();
            let place = fastrand::usize(..forged.len());
            let other =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[fastrand::usize(..64)];
            if forged[place] != other {
                forged[place] = other;
                accepted += usize::from(keys.open(&forged).is_some());
            }
            let random: Vec<u8> = (0..ENCODED).map(|_| b"ABCDwxyz0189-_"[fastrand::usize(..14)]).collect();
            accepted += usize::from(keys.open(&random).is_some());
        }
        assert_eq!(accepted, 0);
        for length in 0..sealed.len() {
            assert_eq!(keys.open(&sealed[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(worker: u64, expires: u64, nonce: [u8; 12]) {
            let keys = keys(&[3]);
            let session = Session { worker, expires };
            prop_assert_eq!(keys.open(keys.seal(session, nonce).as_bytes()), Some(session));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            prop_assert_eq!(keys(&[3]).open(&bytes), None);
        }
    }
}
