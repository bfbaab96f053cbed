//! Units as people write them: Gateway API durations (`250ms`, `1h30m`), decimal numbers.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The pattern of a Gateway API duration (GEP-2257).
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A duration in Gateway API form (GEP-2257): one to four pairs of a number and `h`, `m`, `s` or `ms`.
///
/// What was written is kept when it does not parse, so that `compile` can name the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurationText(pub String);

/// Why a text is no duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be a duration such as '250ms', '10s' or '1h30m'")]
pub struct NotADuration;

impl DurationText {
    /// The duration meant, or why there is none.
    pub fn parse(&self) -> Result<Duration, NotADuration> {
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        for pairs in 0.. {
            if rest.is_empty() {
                return if pairs == 0 { Err(NotADuration) } else { Ok(total) };
            }
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || 5 < digits || pairs == 4 {
                return Err(NotADuration);
            }
            let number = u64::from_str(&rest[..digits]).map_err(|_| NotADuration)?;
            rest = &rest[digits..];
            let (unit, seconds_millis) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))
                .ok_or(NotADuration)?;
            total += Duration::from_millis(number * seconds_millis);
            rest = &rest[unit.len()..];
        }
        Err(NotADuration)
    }
}

impl From<Duration> for DurationText {
    fn from(duration: Duration) -> Self {
        let millis = duration.as_millis();
        Self(if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") })
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 32 })
    }
}

/// A decimal number. Two are equal when they are the same to the last bit; a document has no NaN.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub f64);

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Decimal {}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Duration> {
        DurationText(text.to_owned()).parse().ok()
    }

    #[test]
    fn gateway_api_durations_parse() {
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        assert_eq!(parse("1h2m3s4ms"), Some(Duration::from_millis(3_723_004)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "-1s", "1.5s", "100000s", "1h1h1h1h1h", "1 s", "1d", "1s "] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_printed_parses_back() {
        for millis in [0, 1, 999, 1000, 1500, 86_400_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(DurationText::from(duration).parse(), Ok(duration));
        }
    }
}
