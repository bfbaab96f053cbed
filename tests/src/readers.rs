//! Readers of HTTP/1.1 requests, to compare: the proxy's, one by the grammar of the RFCs, hyper's, and Node's (llhttp).
//! Whatever the proxy takes for a request the others must take for the same.

use std::fmt;

pub mod library;
pub mod mutate;
pub mod node;
pub mod ours;
pub mod recipient;

/// One request, as a reader understood it.
#[derive(Clone, PartialEq, Eq)]
pub struct Read {
    pub method: String,
    /// As it was sent; of an absolute target scheme and host in lower case, and a path.
    pub target: String,
    /// Names in lower case and values, by name; those of one name as they came.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)?;
        for (name, value) in self.fields.iter().chain(&self.trailers) {
            write!(f, " | {name}: {}", value.escape_ascii())?;
        }
        write!(f, " | {}", self.body.escape_ascii())
    }
}

/// What a reader made of some bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The whole requests with which they begin.
    pub requests: Vec<Read>,
    /// Why what follows is none, where that was said.
    pub refusal: Option<String>,
}

/// The target in the form in which it is compared.
pub fn comparable(target: &str) -> String {
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let Some(scheme) = scheme else { return target.to_owned() };
    let rest = &target[scheme.len()..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = (rest[..end].to_ascii_lowercase(), &rest[end..]);
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}{authority}{slash}{path}")
}

/// Fields in the order in which they are compared.
pub fn sorted<N: AsRef<str>, V: AsRef<[u8]>>(
    fields: impl IntoIterator<Item = (N, V)>,
) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| (name.as_ref().to_ascii_lowercase(), value.as_ref().to_vec()))
        .collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}
