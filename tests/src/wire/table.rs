//! What a proxy did with the request cases, as a line of the table in `docs/conformance.md`.

use super::corpus::Expect;
use super::judge::Kind;
use super::lanes::Verdict;

/// The head of the table.
pub const HEAD: &str = "| | must be refused | forwarded | refused here, left open by the RFCs | forwarded | legal | \
    refused | gave the worker bytes that a strict sender does not write |\n|---|---:|---:|---:|---:|---:|---:|---:|";

/// The line of one proxy. Peers are not judged by the bounds of ours.
pub fn line(name: &str, ours: bool, verdicts: &[Verdict]) -> String {
    let judged: Vec<_> = verdicts
        .iter()
        .filter_map(|verdict| verdict.expected.map(|(expect, own)| (verdict, expect, own)))
        .collect();
    let count = |wanted: Expect, by_own_rule: bool, kinds: &[Kind]| {
        let cases = judged.iter().filter(|(_, expect, own)| *expect == wanted && *own == by_own_rule);
        cases.filter(|(verdict, ..)| kinds.is_empty() || any(verdict, kinds)).count()
    };
    let all = |wanted: Expect, own: bool| count(wanted, own, &[]);
    let forwarded = |own: bool| count(Expect::Reject, own, &[Kind::Forwarded, Kind::Bytes]);
    let bounds = |kinds: &[Kind]| if ours { count(Expect::Accept, true, kinds) } else { 0 };
    let cells = [
        all(Expect::Reject, false),
        forwarded(false),
        all(Expect::Reject, true),
        forwarded(true),
        all(Expect::Accept, false) + bounds(&[]),
        count(Expect::Accept, false, &[Kind::Refused]) + bounds(&[Kind::Refused]),
        verdicts.iter().filter(|verdict| any(verdict, &[Kind::Bytes])).count(),
    ];
    format!("| {name} | {} |", cells.map(|cell| cell.to_string()).join(" | "))
}

fn any(verdict: &Verdict, kinds: &[Kind]) -> bool {
    verdict.deviations.iter().any(|deviation| kinds.contains(&deviation.kind))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::judge::Deviation;

    fn verdict(expect: Expect, own: bool, kinds: &[Kind]) -> Verdict {
        let deviations = kinds.iter().map(|&kind| Deviation { kind, text: String::new() }).collect();
        let (id, evidence) = (String::new(), String::new());
        Verdict {
            id,
            deviations,
            evidence,
            forwarded: true,
            took: Duration::ZERO,
            expected: Some((expect, own)),
        }
    }

    #[test]
    fn a_peer_is_not_judged_by_our_bounds() {
        let verdicts = [
            verdict(Expect::Reject, false, &[Kind::Split, Kind::Forwarded]),
            verdict(Expect::Reject, false, &[Kind::Bytes]),
            verdict(Expect::Reject, true, &[Kind::Forwarded]),
            verdict(Expect::Accept, false, &[Kind::Refused, Kind::Answer]),
            verdict(Expect::Accept, true, &[Kind::Refused]),
            verdict(Expect::Either, false, &[Kind::Bytes]),
        ];
        assert_eq!(line("a", false, &verdicts), "| a | 2 | 2 | 1 | 1 | 1 | 1 | 2 |");
        assert_eq!(line("a", true, &verdicts), "| a | 2 | 2 | 1 | 1 | 2 | 2 | 2 |");
    }
}
