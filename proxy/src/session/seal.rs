//! Seals a session with AES-256-GCM and opens it again. What was not sealed by a key of the ring, for this cookie,
//! does not open.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_policy::wire::KeyRing;

use super::{Opened, Session};

const VERSION: u8 = 1;
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
    keys: Vec<(u8, LessSafeKey)>,
    /// Binds what is sealed to the cookie's name: a cookie copied under another name does not open.
    name: String,
}

impl Keys {
    /// The ring's keys for the cookie of this name; `None` for an empty ring.
    pub(super) fn new(ring: &KeyRing, name: &str) -> Option<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let keys: Vec<_> = ring
            .keys
            .iter()
            .filter_map(|key| {
                Some((key.id, LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key.secret).ok()?)))
            })
            .collect();
        let id = NEXT_ID.fetch_add(1, Relaxed);
        (!keys.is_empty()).then(|| Self { id, keys, name: name.to_owned() })
    }

    /// The session as text, under the newest key.
    pub(super) fn seal(&self, session: Session, nonce: [u8; NONCE_LEN]) -> String {
        let (id, key) = &self.keys[0];
        let mut plain = [0; PLAIN];
        plain[..8].copy_from_slice(&session.worker.to_be_bytes());
        plain[8..].copy_from_slice(&session.expires.to_be_bytes());
        let unique = Nonce::assume_unique_for_key(nonce);
        let aad = self.aad(*id);
        let Ok(tag) = key.seal_in_place_separate_tag(unique, Aad::from(aad.as_slice()), &mut plain) else {
            return String::new(); // only for texts of many gigabytes
        };
        let mut sealed = Vec::with_capacity(SEALED);
        sealed.extend_from_slice(&[VERSION, *id]);
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
        if URL_SAFE_NO_PAD.decode_slice(text, &mut sealed).ok()? != SEALED || sealed[0] != VERSION {
            return None;
        }
        let (_, key) = self.keys.iter().find(|(id, _)| *id == sealed[1])?;
        let aad = self.aad(sealed[1]);
        let nonce = Nonce::try_assume_unique_for_key(&sealed[2..2 + NONCE_LEN]).ok()?;
        let body = &mut sealed[2 + NONCE_LEN..SEALED];
        let plain = key.open_in_place(nonce, Aad::from(aad.as_slice()), body).ok()?;
        let (worker, expires) = plain.split_at_checked(8)?;
        Some(Session { worker: number(worker)?, expires: number(expires)? })
    }

    fn aad(&self, id: u8) -> smallvec::SmallVec<[u8; 64]> {
        let mut aad = smallvec::SmallVec::from_slice(&[VERSION, id]);
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
