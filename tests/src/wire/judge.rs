//! The verdict on one case: what the client saw and what the worker received, against what the corpus expects.

use super::corpus::{Case, Expect, Hostile, Outcome, Seen as Wanted};
use super::grammar::show;
use super::recorder::Recorded;
use super::response::bad_trailers;
use super::strict::Message;
use super::{client, h2};

/// What a client saw, over either protocol.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub statuses: Vec<u16>,
    pub bodies: Vec<Vec<u8>>,
    /// All field names, lower case.
    pub names: Vec<String>,
    /// The connection or the stream ended.
    pub ended: bool,
    /// The answer broke off after it began.
    pub cut: bool,
    pub faults: Vec<String>,
}

impl From<&client::Seen> for Answer {
    fn from(seen: &client::Seen) -> Self {
        let responses = &seen.responses;
        let mut faults: Vec<_> = seen.violations.iter().map(ToString::to_string).collect();
        for name in responses.iter().flat_map(bad_trailers) {
            faults.push(format!("{name} in the trailers"));
        }
        Self {
            statuses: responses.iter().map(|response| response.status).collect(),
            bodies: responses.iter().map(|response| response.body.clone()).collect(),
            names: responses
                .iter()
                .flat_map(|response| response.fields.iter().chain(&response.trailers))
                .map(|field| field.name.to_ascii_lowercase())
                .collect(),
            ended: seen.closed,
            cut: seen.closed && seen.partial > 0,
            faults,
        }
    }
}

impl From<&h2::Seen> for Answer {
    fn from(seen: &h2::Seen) -> Self {
        let complete = seen.complete();
        let names = seen.fields.iter().chain(&seen.trailers);
        Self {
            statuses: seen.status.filter(|_| complete).into_iter().collect(),
            bodies: complete.then(|| seen.body.clone()).into_iter().collect(),
            names: names.map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect(),
            ended: (seen.refused() || seen.ended) && !complete,
            cut: seen.cut(),
            faults: seen.garbled.clone().into_iter().collect(),
        }
    }
}

/// What deviates from the case's expectation; empty when nothing does.
pub fn request(case: &Case, answer: &Answer, recorded: &[Recorded]) -> Vec<String> {
    let mut deviations = on_the_wire(case, recorded);
    deviations.extend(answer.faults.iter().map(|fault| format!("client received: {fault}")));
    let messages: Vec<_> =
        recorded.iter().flat_map(|recorded| &recorded.messages).filter(is_of_case).collect();
    if !answer.ended && answer.statuses.is_empty() {
        deviations.push(String::from("no answer and no close"));
    }
    if case.close && !answer.ended {
        deviations.push(String::from("connection left open"));
    }
    match case.expect {
        Expect::Reject => {
            if !messages.is_empty() {
                deviations.push(format!("{} complete messages reached the worker", messages.len()));
            }
            deviations.extend(refusal_fault(case, answer));
        }
        Expect::Either if messages.is_empty() => deviations.extend(either_fault(answer)),
        Expect::Either => {}
        Expect::Accept => deviations.extend(accept_faults(case, answer, &messages)),
    }
    deviations
}

fn is_of_case(message: &&Message) -> bool {
    !message.target.starts_with("/probe/")
}

fn on_the_wire(case: &Case, recorded: &[Recorded]) -> Vec<String> {
    let mut deviations = Vec::new();
    for connection in recorded {
        for violation in &connection.violations {
            deviations.push(format!("worker received: {violation}"));
        }
        if connection.partial > 0 && !connection.closed {
            deviations.push(String::from("part of a message on an open upstream connection"));
        }
        for needle in &case.never {
            if connection.bytes.windows(needle.0.len()).any(|window| window == needle.0) {
                deviations.push(format!("worker received `{}`", show(&needle.0)));
            }
        }
        if connection.messages.iter().any(|message| message.target.starts_with("/smuggled")) {
            deviations.push(String::from("a smuggled request reached the worker"));
        }
    }
    deviations
}

fn refusal_fault(case: &Case, answer: &Answer) -> Option<String> {
    let allowed = if case.status.is_empty() { &[400][..] } else { &case.status };
    let status = answer.statuses.first()?;
    (!allowed.contains(status)).then(|| format!("answered {status}, not one of {allowed:?}"))
}

fn either_fault(answer: &Answer) -> Option<String> {
    let status = answer.statuses.first()?;
    (*status < 400).then(|| format!("answered {status} though nothing was forwarded"))
}

fn accept_faults(case: &Case, answer: &Answer, messages: &[&Message]) -> Vec<String> {
    let wanted = if case.status.is_empty() { &[200][..] } else { &case.status };
    let mut deviations = Vec::new();
    let answers = case.sees.len().max(1);
    if answer.statuses.len() != answers || !answer.statuses.iter().all(|status| wanted.contains(status)) {
        deviations.push(format!("answers {:?} instead of {answers} of {wanted:?}", answer.statuses));
    }
    if messages.len() != answers {
        deviations.push(format!("worker received {} messages instead of {answers}", messages.len()));
    }
    for (wanted, message) in case.sees.iter().zip(messages) {
        deviations.extend(message_faults(wanted, message));
    }
    deviations
}

fn message_faults(wanted: &Wanted, message: &Message) -> Vec<String> {
    let mut faults = Vec::new();
    if message.method != wanted.method || message.target.as_bytes() != wanted.target.0 {
        faults.push(format!("worker received {} {}", message.method, message.target));
    }
    if message.body != wanted.body.0 {
        faults.push(format!("body differs: {}", show(&message.body)));
    }
    let holds = |fields: &[super::grammar::Field], name: &str, value: &[u8]| {
        fields.iter().any(|field| field.is(name) && field.value == value)
    };
    for (name, value) in &wanted.fields {
        if !holds(&message.fields, name, &value.0) {
            faults.push(format!("worker misses {name}: {}", show(&value.0)));
        }
    }
    for (name, value) in &wanted.trailers {
        if !holds(&message.trailers, name, &value.0) {
            faults.push(format!("worker misses the trailer {name}: {}", show(&value.0)));
        }
    }
    for name in &wanted.absent {
        if message.fields.iter().chain(&message.trailers).any(|field| field.is(name)) {
            faults.push(format!("worker received {name}"));
        }
    }
    faults
}

/// What deviates in the answer to a client whose worker was hostile.
pub fn response(case: &Hostile, answer: &Answer) -> Vec<String> {
    let mut deviations: Vec<_> =
        answer.faults.iter().map(|fault| format!("client received: {fault}")).collect();
    let found = match answer.statuses.as_slice() {
        [] if answer.cut => Some(Outcome::Truncated),
        [] if answer.ended => {
            deviations.push(String::from("no status line"));
            None
        }
        [] => {
            deviations.push(String::from("no answer and no close"));
            None
        }
        [502] if case.status != Some(502) => Some(Outcome::BadGateway),
        [_] => Some(Outcome::Clean),
        many => {
            deviations.push(format!("{} answers to one request", many.len()));
            None
        }
    };
    // an answer of the proxy's own is never a lie about the message
    let allowed = |found| {
        case.expect.contains(&found)
            || (found == Outcome::BadGateway && case.expect.contains(&Outcome::Truncated))
    };
    if let Some(found) = found.filter(|&found| !allowed(found)) {
        deviations.push(format!("{found:?} (status {:?}) instead of {:?}", answer.statuses, case.expect));
    }
    if found == Some(Outcome::Clean) {
        deviations.extend(clean_faults(case, answer));
    }
    deviations
}

fn clean_faults(case: &Hostile, answer: &Answer) -> Vec<String> {
    let mut faults = Vec::new();
    if case.expect.contains(&Outcome::Clean) && answer.statuses != [case.status.unwrap_or(200)] {
        faults.push(format!("status {:?}", answer.statuses));
    }
    if case.expect.contains(&Outcome::Clean) && answer.bodies.first() != Some(&case.body.0) {
        faults.push(format!("body differs: {}", show(answer.bodies.first().map_or(b"", |body| body))));
    }
    for name in &case.absent {
        if answer.names.contains(name) {
            faults.push(format!("client received {name}"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::strict::messages;

    fn case(text: &str) -> Case {
        serde_yaml::from_str(&format!("{{id: x, rfc: x, why: x, {text}}}")).unwrap()
    }

    fn worker(bytes: &[u8]) -> Vec<Recorded> {
        let messages = messages(bytes).unwrap();
        vec![Recorded { bytes: bytes.to_vec(), messages, ..Recorded::default() }]
    }

    fn answered(status: u16) -> Answer {
        Answer { statuses: vec![status], ..Answer::default() }
    }

    const FORWARDED: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nx: 6.6.6.6\r\n\r\n";

    #[test]
    fn rejection() {
        let case = case("expect: reject, status: [400, 501]");
        assert!(request(&case, &answered(501), &[]).is_empty());
        assert_eq!(request(&case, &answered(200), &[]).len(), 1);
        assert_eq!(request(&case, &answered(400), &worker(FORWARDED)).len(), 1);
        assert_eq!(request(&case, &Answer::default(), &[]), ["no answer and no close"]);
        assert!(request(&case, &Answer { ended: true, ..Answer::default() }, &[]).is_empty());
    }

    #[test]
    fn acceptance() {
        let case = case("expect: accept, sees: [{method: GET, target: /a, absent: [x]}], never: ['6.6.6.6']");
        let found = request(&case, &answered(200), &worker(FORWARDED));
        assert_eq!(found, ["worker received `6.6.6.6`", "worker received x"]);
    }

    #[test]
    fn a_truncation_must_not_look_complete() {
        let hostile: Hostile =
            serde_yaml::from_str("{id: x, rfc: x, why: x, raw: [''], expect: [truncated]}").unwrap();
        let cut = Answer { ended: true, cut: true, ..Answer::default() };
        assert!(response(&hostile, &cut).is_empty() && response(&hostile, &answered(502)).is_empty());
        assert_eq!(response(&hostile, &answered(200)).len(), 1);
    }
}
