//! The rules of `sessionPersistence`.

use super::{Check, DAY, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn session(&mut self, at: &str, section: &spec::SessionPersistenceSpec) -> effective::Session {
        let cookie = section.cookie.clone().unwrap_or_default();
        let session = effective::Session {
            cookie: cookie.name.unwrap_or_else(|| "outrigger-session".to_owned()),
            path: cookie.path.unwrap_or_else(|| "/".to_owned()),
            absolute_timeout: self.duration(
                &format!("{at}.absoluteTimeout"),
                section.absolute_timeout.as_ref(),
                DAY,
                [SECOND, 400 * DAY], // browsers cap Max-Age at 400 days (RFC 6265bis)
            ),
            lifetime: cookie.lifetime_type.unwrap_or_default(),
            secure: cookie.secure.unwrap_or_default(),
            same_site: cookie.same_site.unwrap_or_default(),
        };
        self.cookie_rules(&format!("{at}.cookie"), &session);
        session
    }

    fn cookie_rules(&mut self, at: &str, session: &effective::Session) {
        use effective::{CookieSecure, SameSite};
        self.token(&format!("{at}.name"), &session.cookie, 64);
        let always_secure = session.secure == CookieSecure::Always;
        if session.cookie.starts_with("__Host-") && (!always_secure || session.path != "/") {
            self.violation(
                &format!("{at}.name"),
                "with the prefix '__Host-' needs `secure: Always` and `path: /`",
            );
        }
        if session.cookie.starts_with("__Secure-") && !always_secure {
            self.violation(&format!("{at}.name"), "with the prefix '__Secure-' needs `secure: Always`");
        }
        if session.same_site == SameSite::None && !always_secure {
            self.violation(
                &format!("{at}.sameSite"),
                "'None' needs `secure: Always`, or browsers drop the cookie",
            );
        }
        self.path(&format!("{at}.path"), &session.path);
        if session.path.contains([';', ',', ' ']) {
            self.violation(&format!("{at}.path"), "must not contain ';', ',' or a space");
        }
    }
}
