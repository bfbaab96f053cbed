//! Sticky sessions, as a proxy keeps them.

use std::time::Duration;

use super::{CookieLifetime, CookieSecure, SameSite};

/// Sticky sessions by cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cookie's name.
    pub cookie: String,
    /// The cookie's path.
    pub path: String,
    /// How long a session lasts from its first request.
    pub absolute_timeout: Duration,
    /// How long the browser keeps the cookie.
    pub lifetime: CookieLifetime,
    /// When the cookie has `Secure`.
    pub secure: CookieSecure,
    /// The cookie's `SameSite`.
    pub same_site: SameSite,
}
