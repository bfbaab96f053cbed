//! The session cookie: found among a request's cookies, and written with the attributes of the policy.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use outrigger_policy::effective::{self, CookieLifetime, CookieSecure, SameSite};
use outrigger_policy::wire::KeyRing;

use super::seal::{ENCODED, Keys};
use super::{Opened, Session};

/// Clocks of proxies may differ by so much.
const SKEW: Duration = Duration::from_secs(300);

/// The session cookie of a route.
pub struct Cookie {
    settings: effective::Session,
    keys: Keys,
}

impl Cookie {
    /// The cookie of these settings; `None` without a key to seal it.
    pub fn new(settings: &effective::Session, keys: &KeyRing) -> Option<Self> {
        Some(Self { settings: settings.clone(), keys: Keys::new(keys, &settings.cookie)? })
    }

    /// The session of a request. Whatever is wrong with its cookie, it then has none; of several cookies of the name
    /// the first that opens counts.
    pub fn read(&self, headers: &HeaderMap, unix_now: u64, opened: &mut Opened) -> Option<Session> {
        for field in headers.get_all(header::COOKIE) {
            let mut pairs = field.as_bytes();
            loop {
                pairs = pairs.trim_ascii_start();
                let session = self.sealed(pairs).and_then(|text| self.keys.open_again(text, opened));
                if let Some(session) = session.filter(|session| self.in_force(*session, unix_now)) {
                    return Some(session);
                }
                let Some(end) = pairs.iter().position(|byte| *byte == b';') else { break };
                pairs = &pairs[end + 1..];
            }
        }
        None
    }

    /// What may be a sealed session, where the first of these pairs is the cookie.
    fn sealed<'h>(&self, pairs: &'h [u8]) -> Option<&'h [u8]> {
        let value = pairs.strip_prefix(self.settings.cookie.as_bytes())?.strip_prefix(b"=")?;
        let (text, rest) = value.split_at_checked(ENCODED)?;
        matches!(rest.trim_ascii_start(), [] | [b';', ..]).then_some(text)
    }

    /// A session may not end later than one that began now: the timeout may have become shorter.
    fn in_force(&self, session: Session, unix_now: u64) -> bool {
        let longest = self.settings.absolute_timeout + SKEW;
        unix_now < session.expires && session.expires <= unix_now + longest.as_secs()
    }

    /// A session that begins now.
    pub fn start(&self, worker: u64, unix_now: u64) -> Session {
        Session { worker, expires: unix_now + self.settings.absolute_timeout.as_secs() }
    }

    /// The `Set-Cookie` field (RFC 6265bis). The nonce must be random.
    pub fn write(&self, session: Session, secure: bool, nonce: [u8; 12], unix_now: u64) -> HeaderValue {
        let settings = &self.settings;
        let mut text = String::with_capacity(160);
        text.push_str(&settings.cookie);
        text.push('=');
        text.push_str(&self.keys.seal(session, nonce));
        text.push_str("; Path=");
        text.push_str(&settings.path);
        text.push_str("; HttpOnly; SameSite=");
        text.push_str(match settings.same_site {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        });
        match settings.secure {
            CookieSecure::Always => text.push_str("; Secure"),
            CookieSecure::Auto if secure => text.push_str("; Secure"),
            CookieSecure::Auto | CookieSecure::Never => {}
        }
        if settings.lifetime == CookieLifetime::Permanent {
            let _ = write!(text, "; Max-Age={}", session.expires.saturating_sub(unix_now)); // a String takes it
        }
        // The policy allows only characters that a field may have, so this never falls back.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::wire::SessionKey;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn cookie() -> Cookie {
        let settings = effective::Session {
            cookie: "s".into(),
            path: "/a".into(),
            absolute_timeout: Duration::from_secs(3600),
            lifetime: CookieLifetime::Permanent,
            secure: CookieSecure::Auto,
            same_site: SameSite::Strict,
        };
        let keys = KeyRing { keys: vec![SessionKey { id: 1, secret: [5; 32] }] };
        Cookie::new(&settings, &keys).expect("there is a key")
    }

    fn headers(fields: &[&str]) -> HeaderMap {
        fields.iter().map(|field| (header::COOKIE, HeaderValue::from_str(field).expect("a value"))).collect()
    }

    fn read(cookie: &Cookie, fields: &[&str], now: u64) -> Option<Session> {
        cookie.read(&headers(fields), now, &mut Opened::default())
    }

    fn value(cookie: &Cookie, session: Session) -> String {
        let field = cookie.write(session, false, [1; 12], NOW);
        field.to_str().expect("text").split(';').next().expect("a pair").to_owned()
    }

    #[test]
    fn the_attributes_are_those_of_the_policy() {
        let cookie = cookie();
        let session = cookie.start(7, NOW);
        let field = cookie.write(session, true, [1; 12], NOW + 600);
        let field = field.to_str().expect("text");
        assert!(field.ends_with("; Path=/a; HttpOnly; SameSite=Strict; Secure; Max-Age=3000"), "{field}");
        assert!(!cookie.write(session, false, [1; 12], NOW).to_str().expect("text").contains("Secure"));
    }

    #[test]
    fn it_is_found_among_others() {
        let cookie = cookie();
        let session = cookie.start(7, NOW);
        let pair = value(&cookie, session);
        for fields in [
            &[&*format!("a=b; {pair}; c=d")][..],
            &["a=b", &format!("x=y;{pair}")],
            &[&format!("s=forged; {pair}")],
            &[&format!("s=; s; ;;  {pair} ")],
        ] {
            assert_eq!(read(&cookie, fields, NOW), Some(session), "{fields:?}");
        }
        for longer in [format!("{pair}x"), format!("{pair} x"), format!("{pair}=;")] {
            assert_eq!(read(&cookie, &[&longer], NOW), None, "{longer}");
        }
        for fields in [&[][..], &["a=b"], &[&format!("x{pair}")], &["s=forged"], &["s"]] {
            assert_eq!(read(&cookie, fields, NOW), None, "{fields:?}");
        }
    }

    #[test]
    fn a_session_ends() {
        let cookie = cookie();
        let pair = value(&cookie, cookie.start(7, NOW));
        let mut opened = Opened::default();
        assert!(cookie.read(&headers(&[&pair]), NOW + 3599, &mut opened).is_some());
        assert!(cookie.read(&headers(&[&pair]), NOW + 3600, &mut opened).is_none(), "though it is known");
        let endless = value(&cookie, Session { worker: 7, expires: u64::MAX });
        assert!(read(&cookie, &[&endless], NOW).is_none());
    }
}
