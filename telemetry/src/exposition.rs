//! The two text formats of metrics, and which of them a scraper asks for.

use http::HeaderMap;
use http::header::ACCEPT;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Text,
}

/// How well a media range of an `Accept` field matches: the range that says more counts (RFC 9110 §12.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Anything,
    AnySubtype,
    Type,
    TypeAndVersion,
}

/// What a scraper thinks of a format.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Preference {
    by: Match,
    /// From 0, which is "not this", to 1.
    quality: f32,
}

impl Format {
    /// The format that the `Accept` of a request prefers. OpenMetrics is for those who name it; whoever accepts
    /// anything, nothing that there is, or says nothing gets the text format, which everybody reads.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let fields = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok());
        let ranges: Vec<_> = fields.flat_map(|field| field.split(',')).collect();
        let preference = |format: Self| {
            let matches = ranges.iter().filter_map(|range| format.preference(range));
            matches.max_by_key(|preference| preference.by)
        };
        let quality =
            |preference: Option<Preference>| preference.map_or(0.0, |preference| preference.quality);
        let (open, text) = (preference(Self::OpenMetrics), preference(Self::Text));
        let is_named = open.is_some_and(|open| Match::Type <= open.by);
        let (of_open, of_text) = (quality(open), quality(text));
        let is_open = of_text < of_open || of_text == of_open && is_named && 0.0 < of_open;
        if is_open { Self::OpenMetrics } else { Self::Text }
    }

    /// What a media range with its parameters says of this format, if it matches.
    fn preference(self, range: &str) -> Option<Preference> {
        let (of_type, subtype, its_version) = match self {
            Self::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
            Self::Text => ("text", "plain", "0.0.4"),
        };
        let mut parts = range.split(';').map(str::trim);
        let (range_type, range_subtype) = parts.next()?.split_once('/')?;
        let mut by = match (range_type, range_subtype) {
            ("*", "*") => Match::Anything,
            (found, "*") if found.eq_ignore_ascii_case(of_type) => Match::AnySubtype,
            (found, sub) if found.eq_ignore_ascii_case(of_type) && sub.eq_ignore_ascii_case(subtype) => {
                Match::Type
            }
            _ => return None,
        };
        let mut quality = 1.0;
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = value.trim().trim_matches('"');
            if name.trim().eq_ignore_ascii_case("q") {
                quality = value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?;
            } else if name.trim().eq_ignore_ascii_case("version") {
                if value != its_version {
                    return None;
                }
                by = Match::TypeAndVersion;
            } // others, such as Prometheus's `escaping`, change nothing for names without special characters
        }
        Some(Preference { by, quality })
    }

    /// The `Content-Type` of a page in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A page of OpenMetrics in this format.
    pub fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => to_text(&open_metrics),
        }
    }
}

/// The same families and samples as text 0.0.4: there a counter has its suffix in its name, and there are no units and
/// no mark of the end.
fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None; // until the type of its family is known
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wanted(accept: &[&'static str]) -> Format {
        Format::wanted(&accept.iter().map(|field| (ACCEPT, HeaderValue::from_static(field))).collect())
    }

    #[test]
    fn the_format_is_what_the_scraper_prefers() {
        for open in [
            // Prometheus 2 and 3
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=1",
            "application/openmetrics-text, text/plain",
            "application/openmetrics-text;q=0.2, text/plain;q=0.1",
            "application/*, text/plain;q=0.5",
            "application/openmetrics-text, */*",
        ] {
            assert_eq!(wanted(&[open]), Format::OpenMetrics, "{open}");
        }
        for text in [
            "*/*",
            "text/plain",
            "text/*, application/*;q=0.9",
            "text/plain;version=0.0.4, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0, */*;q=0.1",
            "application/openmetrics-text;version=1.0.0;q=0, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=2",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "",
            ",;/",
        ] {
            assert_eq!(wanted(&[text]), Format::Text, "{text}");
        }
        assert_eq!(wanted(&[]), Format::Text);
        assert_eq!(wanted(&["text/plain;q=0.5", "application/openmetrics-text"]), Format::OpenMetrics);
    }

    #[test]
    fn the_text_format_has_counters_by_their_full_names_and_no_units() {
        let open = "# HELP a Things\n# TYPE a counter\na_total{x=\"# TYPE\"} 1\n\
                    # HELP b_seconds Time\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                    b_seconds_sum 1.5\nb_seconds_count 1\nb_seconds_bucket{le=\"+Inf\"} 1\n\
                    # HELP c State\n# TYPE c gauge\nc 1\n# EOF\n";
        let text = "# HELP a_total Things\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n\
                    # HELP b_seconds Time\n# TYPE b_seconds histogram\n\
                    b_seconds_sum 1.5\nb_seconds_count 1\nb_seconds_bucket{le=\"+Inf\"} 1\n\
                    # HELP c State\n# TYPE c gauge\nc 1\n";
        assert_eq!(Format::Text.of(open.to_owned()), text);
        assert_eq!(Format::OpenMetrics.of(open.to_owned()), open);
    }
}
