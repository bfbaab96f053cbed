//! Who may read `/api/`.

use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use http::{HeaderMap, StatusCode};

use super::Admin;

/// Why somebody may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("a bearer token is needed")]
    NoToken,
    #[error("this is not the token")]
    WrongToken,
    #[error("closed: there is no token in the file of --admin-token-file")]
    NoTokenInFile,
    #[error("closed: the process was started without --admin-token-file, and without --admin-open")]
    Closed,
    #[error("open to this machine only")]
    NotLoopback,
}

impl Denied {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::NoTokenInFile | Self::Closed | Self::NotLoopback => StatusCode::FORBIDDEN,
        }
    }
}

impl Admin {
    pub(super) fn access(&self, headers: &HeaderMap, client: IpAddr) -> Result<(), Denied> {
        match &self.token {
            Some(token) => {
                let given = bearer(headers).ok_or(Denied::NoToken)?;
                let token = token().ok_or(Denied::NoTokenInFile)?;
                if is_same(given, &token) { Ok(()) } else { Err(Denied::WrongToken) }
            }
            None if !self.open_on_loopback => Err(Denied::Closed),
            // A web page can make a browser on this machine ask, but not with a name that is this machine's.
            None if client.to_canonical().is_loopback() && names_loopback(headers) => Ok(()),
            None => Err(Denied::NotLoopback),
        }
    }
}

/// In a time that tells nothing of the token, nor how long it is: digests are compared.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let [given, token] = [given, token].map(|text| digest::digest(&digest::SHA256, text));
    verify_slices_are_equal(given.as_ref(), token.as_ref()).is_ok()
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let authority = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let Some(authority) = authority else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
