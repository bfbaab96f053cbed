//! What the fields of one message say together: its rules (RFC 9113 §8.2 and §8.3) and how much they are.

use super::hpack::{Field, Flaw, Malformed, Name, Table, Target};
use crate::guard::MAX_HEADERS;
use crate::http1::MAX_HEAD_BYTES;
use crate::rejection::Rejection;

/// Fields of so many bytes end the connection: no answer is worth reading them. `h2` is told the same number, and never sees
/// a head that reaches it.
pub(super) const MOST_BYTES: usize = 4 * MAX_HEAD_BYTES;

/// The fields of a message, as far as they were read.
#[derive(Default)]
pub(super) struct Block {
    /// Whether they follow a body.
    trailers: bool,
    begun: bool,
    /// The pseudo-header fields that were there, a bit each.
    pseudo: u8,
    /// Whether a field that is none was there.
    regular: bool,
    fields: usize,
    cookies: usize,
    bytes: usize,
    fault: Option<Fault>,
    /// The target, where it was masked.
    target: Option<Target>,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// For one of its fields.
    Field(Flaw),
    /// A pseudo-header field that is there twice, or behind other fields.
    Pseudo,
    /// More of it than the proxy takes.
    TooLarge,
}

impl Fault {
    /// The refusal of a request with this fault.
    pub(super) fn rejection(self) -> Rejection {
        Rejection::BadRequest(match self {
            Self::TooLarge => return Rejection::HeadersTooLarge,
            Self::Pseudo => "a pseudo-header field is repeated or not before all others",
            Self::Field(Flaw::Space) => "a field value has white space around it",
            Self::Field(Flaw::Fragment) => "the target has a fragment",
            Self::Field(Flaw::Scheme) => "the target's scheme is neither http nor https",
            Self::Field(Flaw::Connection) => "connection-specific fields have no place in HTTP/2",
            Self::Field(Flaw::Query) => "the target has bytes that must be encoded",
            Self::Field(Flaw::Te) => "te other than 'trailers'",
        })
    }
}

impl Block {
    /// Nothing of a head yet, or of what follows a body.
    pub(super) fn new(trailers: bool) -> Self {
        Self { trailers, ..Self::default() }
    }

    /// Whether the fields follow a body.
    pub(super) fn is_trailers(&self) -> bool {
        self.trailers
    }

    /// Reads as many whole fields as `bytes` begin with, and says how many bytes those have. What is masked in them, `h2` sees
    /// masked.
    pub(super) fn read(&mut self, bytes: &mut [u8], table: &mut Table) -> Result<usize, Malformed> {
        let mut begun = self.begun;
        let read = table.read(bytes, &mut begun, |field, target| {
            self.take(field);
            if target.is_some() {
                self.target = target;
            }
        });
        self.begun = begun;
        read
    }

    /// The same of bytes that `h2` has in part already: they cannot be masked.
    pub(super) fn read_apart(&mut self, bytes: &mut [u8], table: &mut Table) -> Result<usize, Malformed> {
        let read = self.read(bytes, table)?;
        if self.target.take().is_some() && self.fault.is_none() {
            self.fault = Some(Fault::Field(Flaw::Query));
        }
        Ok(read)
    }

    /// The target, where it was masked.
    pub(super) fn target(&mut self) -> Option<Target> {
        self.target.take()
    }

    fn take(&mut self, field: Field) {
        self.bytes += field.bytes();
        let place = match field.name {
            Name::Method => 1,
            Name::Scheme => 1 << 1,
            Name::Authority => 1 << 2,
            Name::Path => 1 << 3,
            Name::Pseudo => 1 << 4,
            Name::Cookie | Name::Te | Name::Connection | Name::Other => 0,
        };
        let misplaced = place != 0 && (self.trailers || self.regular || self.pseudo & place != 0);
        self.pseudo |= place;
        self.regular |= place == 0;
        if field.name == Name::Cookie {
            self.cookies += 1;
        } else {
            self.fields += usize::from(place == 0);
        }
        if self.fault.is_none() {
            self.fault = if misplaced { Some(Fault::Pseudo) } else { field.flaw.map(Fault::Field) };
        }
    }

    /// How much was read, in the measure of `SETTINGS_MAX_HEADER_LIST_SIZE` (RFC 9113 §6.5.2).
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is wrong with the message, once all of it was read.
    pub(super) fn fault(&self) -> Option<Fault> {
        // The parts of a cookie are one field, which they become before the fields are counted.
        let fields = self.fields + usize::from(self.cookies != 0);
        let too_many = !self.trailers && MAX_HEADERS < fields; // of trailers, so many are none
        let too_large = too_many || MAX_HEAD_BYTES < self.bytes;
        self.fault.or(too_large.then_some(Fault::TooLarge))
    }

    /// About how much memory the fields take until the request has been answered.
    pub(super) fn memory(&self) -> usize {
        /// Of a field in a map, besides its text.
        const FIELD: usize = 128;
        self.bytes + FIELD * (self.fields + self.cookies)
    }
}
