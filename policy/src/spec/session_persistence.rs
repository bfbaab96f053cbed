//! `sessionPersistence`: sticky sessions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DurationText;

/// Sticky sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistenceSpec {
    /// How the session is carried. Default `Cookie`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<SessionPersistenceType>,
    /// How long a session may last from its first request: 1s to 400 days. Default `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<DurationText>,
    /// The cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<CookieSpec>,
}

/// How a session is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionPersistenceType {
    /// In a cookie that is encrypted and authenticated (AES-256-GCM-SIV); the proxy stores nothing.
    #[default]
    Cookie,
}

/// The session cookie. It always has `HttpOnly`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieSpec {
    /// The cookie's name. Default `outrigger-session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The cookie's path. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether the browser keeps the cookie until it is closed (`Session`) or until the session
    /// ends (`Permanent`). Default `Session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_type: Option<CookieLifetime>,
    /// Whether the cookie is for requests over TLS only. `Auto`, the default, sets `Secure` when the
    /// request came over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<CookieSecure>,
    /// The cookie's `SameSite` attribute. Default `Lax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_site: Option<SameSite>,
}

/// How long a browser keeps the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// Until the browser is closed.
    #[default]
    Session,
    /// Until the session's absolute timeout.
    Permanent,
}

/// When the cookie has `Secure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieSecure {
    /// When the request came over TLS, as the proxy or a trusted hop before it saw.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The cookie's `SameSite` attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SameSite {
    /// Sent with top-level navigation from other sites.
    #[default]
    Lax,
    /// Sent from the same site only.
    Strict,
    /// Sent from everywhere; needs `secure: Always`.
    None,
}
