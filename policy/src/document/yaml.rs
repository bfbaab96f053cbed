//! YAML within bounds: whatever a text says, reading it ends soon, with a value or with an error that has its place.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Options, budget, options, with_deserializer_from_str_with_options};

use crate::compile::Violation;

/// How deep lists and mappings may be nested. The deepest field of a policy is on level 9.
const DEPTH: usize = 32;
/// How many scalars, lists and mappings a document may have, aliases replaced by what they stand for.
const NODES: usize = 100_000;
/// How many aliases, anchors and merge keys a document may have of each.
const REFERENCES: usize = 10_000;

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    text: &'a str,
    /// How many lines of the whole text come before it.
    lines_before: usize,
}

/// Splits a text where its documents begin. By YAML's grammar a line that begins with `---` or `...` and white space can be
/// nothing else, not even within a quoted text.
pub(super) fn parts(text: &str) -> Vec<Part<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut begin, mut lines_before, mut at) = (0, 0, 0);
    let mut begun = false; // content or a `---` was seen: the next `---` begins another document
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if begun && is_marker(line, "---") {
            parts.push(Part { text: &text[begin..at], lines_before });
            (begin, lines_before) = (at, number);
        }
        at += line.len();
        if is_marker(line, "...") {
            parts.push(Part { text: &text[begin..at], lines_before });
            (begin, lines_before, begun) = (at, number + 1, false);
        } else {
            begun |= !line.trim_start().is_empty() && !line.starts_with(['#', '%']);
        }
    }
    parts.push(Part { text: &text[begin..], lines_before });
    parts
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Part<'_> {
    /// Reads it as a `T`.
    ///
    /// # Errors
    /// What is wrong, and where: the path of the field, or the line where there is none.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Violation> {
        let mut path = String::new();
        let read = contained(|| {
            with_deserializer_from_str_with_options(self.text, within_bounds(), |yaml| {
                serde_path_to_error::deserialize(yaml).map_err(|error| {
                    path = known(&error.path().to_string());
                    error.into_inner()
                })
            })
        });
        match read {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.violation(path, &error)),
            Err(reason) => Err(Violation { path: format!("line {}", self.lines_before + 1), reason }),
        }
    }

    fn violation(&self, path: String, error: &Error) -> Violation {
        let mut reason = reason(error);
        let mut place = String::new();
        if let Some(location) = error.location() {
            let suffix = format!(" at line {}, column {}", location.line(), location.column());
            reason = reason.replace(&suffix, "");
            let line = self.lines_before + usize::try_from(location.line()).unwrap_or_default();
            place = format!("line {line}, column {}", location.column());
        }
        match path.as_str() {
            "" | "." => Violation { path: place, reason },
            _ if place.is_empty() => Violation { path, reason },
            _ => Violation { path, reason: format!("{reason} ({place})") },
        }
    }
}

/// The path as far as it is known: a key that could not be read is a `?` in it.
fn known(path: &str) -> String {
    path.split('?').next().unwrap_or_default().trim_end_matches('.').to_owned()
}

fn reason(error: &Error) -> String {
    match error.without_snippet() {
        Error::AliasError { error, .. } => reason(error),
        Error::DuplicateMappingKey { key, .. } => {
            format!("'{}' is there twice", key.as_deref().unwrap_or("a key"))
        }
        Error::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => {
            format!("must be a whole number{}", if ty.starts_with('u') { ", and not negative" } else { "" })
        }
        Error::Unexpected { expected, .. } => format!("must be a {}", expected.trim_end_matches(" start")),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            format!("it is nested more than {DEPTH} deep")
        }
        Error::Budget { breach, .. } => {
            format!("it is too large for a policy, aliases replaced by what they stand for ({breach:?})")
        }
        Error::MultipleDocuments { .. } => "something follows the end of the document".to_owned(),
        Error::QuotingRequired { value, .. } => {
            format!("'{value}' would be a number or a boolean to other tools: a text must be quoted here")
        }
        other => match other.to_string() {
            parser if parser.starts_with("recursion limit exceeded") => {
                format!("it is nested more than {DEPTH} deep")
            }
            text => text,
        },
    }
}

/// As `kubectl` reads it: merge keys, YAML 1.1's booleans and octal numbers. What has two readings is refused.
fn within_bounds() -> Options {
    options! {
        budget: budget! {
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_nodes: NODES,
            max_aliases: REFERENCES,
            max_anchors: REFERENCES,
            max_merge_keys: REFERENCES,
            enforce_alias_anchor_ratio: false,
        },
        legacy_octal_numbers: true,
        no_schema: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// A panic of the library is an error of its input: whoever edits a file must not end what serves requests.
fn contained<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read))
        .map_err(|panic| format!("the YAML library failed on it: {}", said(&panic)))
}

fn said(panic: &Box<dyn Any + Send>) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests;
