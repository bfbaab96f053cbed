use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::document;

/// An input that takes longer than this, three times in a row and in a debug build, takes too long.
const TOO_LONG: Duration = Duration::from_secs(2);

fn took(text: &str) -> Duration {
    let once = || {
        let begun = Instant::now();
        let _ = document::read(text);
        begun.elapsed()
    };
    let first = once();
    if first < TOO_LONG { first } else { first.min(once()).min(once()) }
}

#[test]
fn a_panic_is_an_error() {
    assert_eq!(contained(|| 1), Ok(1));
    let failed = contained(|| -> u8 { panic!("at byte {}", 3) });
    assert_eq!(failed, Err(String::from("the YAML library failed on it: at byte 3")));
}

#[test]
fn parts_begin_at_markers_alone() {
    let texts = |text: &'static str| {
        parts(text).into_iter().map(|part| (part.text, part.lines_before)).collect::<Vec<_>>()
    };
    assert_eq!(texts("a\n---\nb"), [("a\n", 0), ("---\nb", 1)]);
    assert_eq!(texts("# x\n---\nb"), [("# x\n---\nb", 0)]);
    assert_eq!(texts("a\n...\n%YAML 1.1\n---\nb\n"), [("a\n...\n", 0), ("%YAML 1.1\n---\nb\n", 2)]);
    assert_eq!(texts("a: |\n ---\n b\n----\n---x\n"), [("a: |\n ---\n b\n----\n---x\n", 0)]);
    assert_eq!(texts("\u{feff}---\r\n--- a\n"), [("---\r\n", 0), ("--- a\n", 1)]);
}

/// What grows without end: nesting, aliases of aliases, merge keys of merge keys, and long runs of anything.
#[test]
fn no_text_takes_long_however_it_is_made() {
    let head = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: a}\nspec: ";
    for unit in [
        "[", "{", "{a: ", "- ", "? ", "[{", "!", "!!str ", "&a ", "*a ", "'", "\"", "''", "a\n", "#\n", " ",
        "\t", "\n", "-\n", ":", ": ", ",", "|\n", ">\n", "---\n", "...\n", "%\n", "<<: ", "{<<: ", "\\",
        "\r", "\u{feff}", "é", "[a, ", "a: b\n", "\n ",
    ] {
        for length in [1 << 12, 1 << 16] {
            let text = format!("{head}{}", unit.repeat(length / unit.len()));
            let took = took(&text);
            assert!(took < TOO_LONG, "{unit:?} to {length} bytes: {took:?}");
        }
    }
    for (value, of_others) in [("[", "]"), ("{<<: [", "]}"), ("{l: [", "]}")] {
        let mut bomb = String::from("{a0: &a0 {a: k}");
        for i in 1..30 {
            let others = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!(", a{i}: &a{i} {value}{others}{of_others}"));
        }
        let text = format!("{head}{bomb}}}");
        let violations = document::read(&text).expect_err("too large");
        assert!(violations[0].reason.contains("too large for a policy"), "{violations:?}");
        let took = took(&text);
        assert!(took < 5 * TOO_LONG, "{value}: {took:?}");
    }
    for deep in ["[", "{a: "] {
        let violations = document::read(&format!("{head}{}", deep.repeat(100_000))).expect_err("too deep");
        assert!(violations[0].reason.contains("nested more than 32 deep"), "{violations:?}");
    }
}

/// Mutants of the example policies. `OUTRIGGER_FUZZ` says how many.
#[test]
fn no_mutant_of_a_policy_panics_or_takes_long() {
    let examples: Vec<Vec<u8>> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies"))
            .expect("the examples")
            .map(|entry| std::fs::read(entry.expect("an entry").path()).expect("readable"))
            .collect();
    let count = std::env::var("OUTRIGGER_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000);
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut valid, mut longest) = (0, Duration::ZERO);
    for turn in 0..count {
        let mut bytes = random.choice(&examples).expect("some").clone();
        for _ in 0..random.usize(1..6) {
            mutate(&mut bytes, &examples, &mut random);
        }
        let text = String::from_utf8_lossy(&bytes);
        let begun = Instant::now();
        let read = document::read(&text);
        longest = longest.max(begun.elapsed());
        match read {
            Ok(documents) => {
                assert!(!documents.is_empty(), "seed {seed}, turn {turn}");
                valid += 1;
            }
            Err(violations) => {
                assert!(!violations.is_empty(), "seed {seed}, turn {turn}");
                let failed =
                    violations.iter().find(|violation| violation.reason.contains("the YAML library failed"));
                assert_eq!(failed, None, "seed {seed}, turn {turn}:\n{text}");
            }
        }
        assert!(
            longest < TOO_LONG || took(&text) < TOO_LONG,
            "seed {seed}, turn {turn}: {longest:?}\n{text}"
        );
    }
    println!("{count} mutants, {valid} valid, the longest took {longest:?}");
    assert!(count / 100 < valid && valid < count, "the mutants see both sides: {valid} of {count} are valid");
}

fn mutate(bytes: &mut Vec<u8>, examples: &[Vec<u8>], random: &mut fastrand::Rng) {
    const TOKENS: [&str; 34] = [
        "*a",
        "&a ",
        "<<: ",
        "<<: *a",
        "[",
        "]",
        "{",
        "}",
        "- ",
        "? ",
        ": ",
        "|\n",
        ">-\n",
        "!!str ",
        "!x ",
        "%YAML 1.2\n",
        "\n---\n",
        "\n...\n",
        "\t",
        "\r\n",
        "\u{feff}",
        "'",
        "\"",
        "#",
        "~",
        "null",
        ", ",
        "\\x00",
        "\n",
        "  ",
        "spec:",
        "0o7",
        "1e999",
        ".nan",
    ];
    let at = random.usize(..=bytes.len());
    let end = (at + random.usize(..40)).min(bytes.len());
    match random.u8(..6) {
        0 => drop(bytes.drain(at..end)),
        1 if at < bytes.len() => bytes[at] = random.u8(..),
        2 => {
            let piece = bytes[at..end].to_vec();
            for _ in 0..random.usize(1..50) {
                bytes.splice(at..at, piece.iter().copied());
            }
        }
        3 => {
            let other = random.choice(examples).expect("some");
            let from = random.usize(..=other.len());
            let until = (from + random.usize(..200)).min(other.len());
            bytes.splice(at..at, other[from..until].iter().copied());
        }
        _ => {
            let token = random.choice(TOKENS).expect("some");
            bytes.splice(at..at, token.bytes());
        }
    }
}
