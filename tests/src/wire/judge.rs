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

/// In which way a case went wrong. The order is that of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One request became several.
    Split,
    /// The worker received bytes that a strict sender does not write.
    Bytes,
    /// The worker received what must be refused.
    Forwarded,
    /// What is legal was refused.
    Refused,
    /// The worker received what is not for it, or not what was sent.
    Content,
    /// The client was told something else than the case says.
    Answer,
}

/// One way in which a case went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    pub kind: Kind,
    pub text: String,
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn deviation(kind: Kind, text: impl Into<String>) -> Deviation {
    Deviation { kind, text: text.into() }
}

/// What the client was told amiss.
pub fn told(text: impl Into<String>) -> Deviation {
    deviation(Kind::Answer, text)
}

/// What deviates from the case's expectation; empty when nothing does.
pub fn request(case: &Case, answer: &Answer, recorded: &[Recorded]) -> Vec<Deviation> {
    let mut deviations = on_the_wire(case, recorded);
    deviations.extend(answer.faults.iter().map(|fault| told(format!("client received: {fault}"))));
    let messages: Vec<_> =
        recorded.iter().flat_map(|recorded| &recorded.messages).filter(is_of_case).collect();
    if !answer.ended && answer.statuses.is_empty() {
        deviations.push(told("no answer and no close"));
    }
    if case.close && !answer.ended {
        deviations.push(told("connection left open"));
    }
    let refused = answer.statuses.len() > messages.len();
    if refused && !answer.names.iter().any(|name| name == "proxy-status") {
        deviations.push(told("refused without Proxy-Status"));
    }
    match case.expect {
        Expect::Reject => deviations.extend(reject_faults(case, answer, &messages)),
        Expect::Either => deviations.extend(either_faults(case, answer, &messages)),
        Expect::Accept => deviations.extend(accept_faults(case, answer, &messages)),
    }
    deviations
}

fn is_of_case(message: &&Message) -> bool {
    !message.target.starts_with("/probe/")
}

fn on_the_wire(case: &Case, recorded: &[Recorded]) -> Vec<Deviation> {
    let mut deviations = Vec::new();
    for connection in recorded {
        for violation in &connection.violations {
            deviations.push(deviation(Kind::Bytes, format!("worker received: {violation}")));
        }
        if connection.partial > 0 && !connection.closed {
            deviations.push(deviation(Kind::Content, "part of a message on an open upstream connection"));
        }
        for leak in connection.messages.iter().flat_map(|message| &message.leaks) {
            deviations.push(deviation(Kind::Content, format!("worker received: {leak}")));
        }
        for needle in &case.never {
            if connection.bytes.windows(needle.0.len()).any(|window| window == needle.0) {
                deviations.push(deviation(Kind::Content, format!("worker received `{}`", show(&needle.0))));
            }
        }
        if connection.messages.iter().any(|message| message.target.starts_with("/smuggled")) {
            deviations.push(deviation(Kind::Split, "a smuggled request reached the worker"));
        }
    }
    deviations
}

/// What comes before the refused request is served, and nothing after it.
fn reject_faults(case: &Case, answer: &Answer, messages: &[&Message]) -> Vec<Deviation> {
    let mut deviations = Vec::new();
    let served = case.sees.len();
    if messages.len() > served {
        let text = format!("{} complete messages reached the worker", messages.len());
        deviations.push(deviation(Kind::Forwarded, text));
    }
    if messages.len() < served {
        deviations.push(deviation(Kind::Refused, format!("worker received {} messages", messages.len())));
    }
    for (wanted, message) in case.sees.iter().zip(messages) {
        deviations.extend(message_faults(wanted, message));
    }
    deviations.extend(answer.statuses.get(served).and_then(|status| status_fault(case, *status)));
    if answer.statuses.len() > served + 1 {
        deviations.push(told(format!("answered again after a refusal: {:?}", answer.statuses)));
    }
    deviations
}

fn status_fault(case: &Case, status: u16) -> Option<Deviation> {
    let allowed = if case.status.is_empty() { &[400][..] } else { &case.status };
    (!allowed.contains(&status)).then(|| told(format!("answered {status}, not one of {allowed:?}")))
}

fn either_faults(case: &Case, answer: &Answer, messages: &[&Message]) -> Option<Deviation> {
    if messages.len() > case.most {
        return Some(deviation(Kind::Split, format!("worker received {} messages", messages.len())));
    }
    let status = *answer.statuses.first().filter(|_| messages.is_empty())?;
    if case.status.is_empty() {
        return (status < 400).then(|| told(format!("answered {status} though nothing was forwarded")));
    }
    status_fault(case, status)
}

fn accept_faults(case: &Case, answer: &Answer, messages: &[&Message]) -> Vec<Deviation> {
    let wanted = if case.status.is_empty() { &[200][..] } else { &case.status };
    let mut deviations = Vec::new();
    let answers = case.sees.len().max(1);
    if answer.statuses.len() != answers || !answer.statuses.iter().all(|status| wanted.contains(status)) {
        deviations.push(told(format!("answers {:?} instead of {answers} of {wanted:?}", answer.statuses)));
    }
    if messages.len() != answers {
        let kind = if messages.len() < answers { Kind::Refused } else { Kind::Split };
        let text = format!("worker received {} messages instead of {answers}", messages.len());
        deviations.push(deviation(kind, text));
    }
    for (wanted, message) in case.sees.iter().zip(messages) {
        deviations.extend(message_faults(wanted, message));
    }
    deviations
}

fn message_faults(wanted: &Wanted, message: &Message) -> Vec<Deviation> {
    let mut faults = Vec::new();
    if message.method.as_bytes() != wanted.method.0 || message.target.as_bytes() != wanted.target.0 {
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
    faults.into_iter().map(|fault| deviation(Kind::Content, fault)).collect()
}

/// What deviates in the answer to a client whose worker was hostile.
pub fn response(case: &Hostile, answer: &Answer) -> Vec<Deviation> {
    response_faults(case, answer).into_iter().map(told).collect()
}

fn response_faults(case: &Hostile, answer: &Answer) -> Vec<String> {
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

    fn texts(deviations: &[Deviation]) -> Vec<&str> {
        deviations.iter().map(|deviation| deviation.text.as_str()).collect()
    }

    fn answered(status: u16) -> Answer {
        let names = if status < 400 { Vec::new() } else { vec![String::from("proxy-status")] };
        Answer { statuses: vec![status], names, ..Answer::default() }
    }

    const FORWARDED: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nx: 6.6.6.6\r\n\r\n";

    #[test]
    fn rejection() {
        let case = case("expect: reject, status: [400, 501]");
        assert!(request(&case, &answered(501), &[]).is_empty());
        assert_eq!(request(&case, &answered(200), &[]).len(), 2);
        let bare = Answer { names: Vec::new(), ..answered(501) };
        assert_eq!(texts(&request(&case, &bare, &[])), ["refused without Proxy-Status"]);
        assert_eq!(request(&case, &answered(400), &worker(FORWARDED)).len(), 1);
        assert_eq!(texts(&request(&case, &Answer::default(), &[])), ["no answer and no close"]);
        assert!(request(&case, &Answer { ended: true, ..Answer::default() }, &[]).is_empty());
    }

    #[test]
    fn acceptance() {
        let case = case("expect: accept, sees: [{method: GET, target: /a, absent: [x]}], never: ['6.6.6.6']");
        let found = request(&case, &answered(200), &worker(FORWARDED));
        assert_eq!(texts(&found), ["worker received `6.6.6.6`", "worker received x"]);
    }

    #[test]
    fn what_comes_before_a_refusal_is_served() {
        let case = case("expect: reject, sees: [{method: GET, target: /a}]");
        let both = Answer { statuses: vec![200, 400], ..answered(400) };
        assert!(request(&case, &both, &worker(FORWARDED)).is_empty());
        assert_eq!(request(&case, &answered(400), &[])[0].kind, Kind::Refused);
        let again = Answer { statuses: vec![200, 400, 400], ..answered(400) };
        assert_eq!(request(&case, &again, &worker(FORWARDED))[0].kind, Kind::Answer);
        let twice = worker(&FORWARDED.repeat(2));
        assert_eq!(request(&case, &both, &twice)[0].kind, Kind::Forwarded);
    }

    #[test]
    fn what_may_pass_or_not_passes_once() {
        let case = case("expect: either, status: [417]");
        assert!(request(&case, &answered(200), &worker(FORWARDED)).is_empty());
        assert!(request(&case, &answered(417), &[]).is_empty());
        assert_eq!(request(&case, &answered(400), &[])[0].kind, Kind::Answer);
        assert_eq!(request(&case, &answered(200), &worker(&FORWARDED.repeat(2)))[0].kind, Kind::Split);
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
