//! The cookies that one data thread opened of late. A client sends the same one with each request, and to find it here
//! costs less than to open it again.

use super::Session;
use super::seal::ENCODED;

const PLACES: usize = 256;

/// A cookie's text.
pub(super) type Text = [u8; ENCODED];

/// What was opened, and what with: each text has one place, and the last to come has it.
#[derive(Default)]
pub struct Opened {
    /// None of them before the first cookie.
    places: Vec<Option<Place>>,
}

#[derive(Clone, Copy)]
struct Place {
    keys: u64,
    text: Text,
    session: Session,
}

impl Opened {
    /// The session that these keys found in this text.
    pub(super) fn find(&self, keys: u64, text: &Text) -> Option<Session> {
        let place = self.places.get(place_of(text))?.as_ref()?;
        (place.keys == keys && place.text == *text).then_some(place.session)
    }

    /// These keys found this session in this text.
    pub(super) fn keep(&mut self, keys: u64, text: &Text, session: Session) {
        self.places.resize(PLACES, None);
        self.places[place_of(text)] = Some(Place { keys, text: *text, session });
    }
}

/// The end of a text is of its seal's tag, and so as good as random.
fn place_of(text: &Text) -> usize {
    let end = text.last_chunk().map_or(0, |end| u64::from_le_bytes(*end));
    (end.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PLACES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_by_its_own_keys_only() {
        let mut opened = Opened::default();
        let session = Session { worker: 7, expires: 9 };
        let (text, mut other) = ([b'a'; ENCODED], [b'a'; ENCODED]);
        other[0] = b'b'; // of the same place
        assert_eq!(opened.find(1, &text), None);
        opened.keep(1, &text, session);
        assert_eq!(opened.find(1, &text), Some(session));
        assert_eq!((opened.find(2, &text), opened.find(1, &other)), (None, None));
        opened.keep(1, &other, Session { worker: 8, ..session });
        assert_eq!(opened.find(1, &text), None, "the other has its place");
    }

    #[test]
    fn texts_spread_over_the_places() {
        let places: std::collections::BTreeSet<_> = (0..4096)
            .map(|_| std::array::from_fn(|_| b"ABCDwxyz0189-_"[fastrand::usize(..14)]))
            .map(|text| place_of(&text))
            .collect();
        assert!(PLACES * 9 / 10 < places.len() && places.iter().all(|place| *place < PLACES));
    }
}
