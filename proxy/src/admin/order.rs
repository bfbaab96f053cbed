//! What somebody orders by the API: why, and for how long. An order always expires: what was done by hand must not outlast
//! what was known then.

use std::time::Duration;

use outrigger_policy::units::DurationText;
use serde::Deserialize;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(86_400);
const LONGEST_REASON: usize = 256;

/// An order as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    reason: String,
    expires_in: DurationText,
}

/// An order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// For people.
    pub reason: String,
    /// How long it holds.
    pub holds: Duration,
}

/// Reads the body of a request.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(body: &[u8]) -> Result<Order, String> {
    const FORM: &str = "the body must be such as {\"reason\": \"a leak in v2\", \"expiresIn\": \"10m\"}";
    let Written { reason, expires_in } =
        serde_json::from_slice(body).map_err(|error| format!("{FORM}: {error}"))?;
    check(&reason).map_err(|wrong| format!("reason: {wrong}"))?;
    let holds = holds(&expires_in).map_err(|wrong| format!("expiresIn: {wrong}"))?;
    Ok(Order { reason, holds })
}

/// What is wrong with a reason, if something is.
pub(super) fn check(reason: &str) -> Result<(), String> {
    if (1..=LONGEST_REASON).contains(&reason.chars().count()) && !reason.contains(char::is_control) {
        return Ok(());
    }
    Err(format!("must have 1 to {LONGEST_REASON} characters, and no control characters"))
}

/// How long an order holds, or what is wrong with that.
pub(super) fn holds(expires_in: &DurationText) -> Result<Duration, String> {
    match expires_in.parse() {
        Ok(holds) if (SHORTEST..=LONGEST).contains(&holds) => Ok(holds),
        Ok(_) => Err(format!("must be 1s to 24h, not '{expires_in}'")),
        Err(error) => Err(format!("{error}, not '{expires_in}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_a_reason_and_an_end() {
        let order = read(br#"{"reason": "a new disk", "expiresIn": "10m"}"#);
        assert_eq!(order, Ok(Order { reason: "a new disk".to_owned(), holds: Duration::from_secs(600) }));
        let long = format!(r#"{{"reason": "{}", "expiresIn": "1m"}}"#, "x".repeat(257));
        for (wrong, field) in [
            ("", "the body"),
            ("{}", "the body"),
            (r#"{"reason": "x"}"#, "the body"),
            (r#"{"expiresIn": "1m"}"#, "the body"),
            (r#"{"reason": "x", "expiresIn": "1m", "until": 3}"#, "the body"),
            (r#"{"reason": "", "expiresIn": "1m"}"#, "reason"),
            (r#"{"reason": "a\nb", "expiresIn": "1m"}"#, "reason"),
            (&long, "reason"),
            (r#"{"reason": "x", "expiresIn": "0s"}"#, "expiresIn"),
            (r#"{"reason": "x", "expiresIn": "25h"}"#, "expiresIn"),
            (r#"{"reason": "x", "expiresIn": "soon"}"#, "expiresIn"),
        ] {
            let why = read(wrong.as_bytes()).expect_err(wrong);
            assert!(why.starts_with(field), "{wrong}: {why}");
        }
    }
}
