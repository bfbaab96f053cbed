//! The push client: takes policy from the operator, says what became of it and how the workers are, and never stops
//! trying.
//!
//! Nothing here is waited for by a request. While the operator is away the policy in force stays, for ever.

mod certify;
mod connect;
mod lines;
mod reports;
mod status;

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use outrigger_policy::Violation;
use outrigger_policy::siblings::NotApplicable;
use outrigger_policy::wire::{ACK_PATH, Ack, FromOperator, Hello, PROTOCOL, STREAM_PATH, Update};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use self::certify::Certificate;
use self::connect::Link;
use self::lines::Lines;
pub use self::status::{Status, View};
use super::report::Observer;
use super::{Control, last_good};
use crate::backoff::Backoff;
use crate::essential;
use crate::snapshot::Source;

/// How long the operator has for its first update until the last good policy is taken from disk.
const FIRST_UPDATE: Duration = Duration::from_secs(1);
/// The waits between two connections, each spread over its whole length.
const RECONNECT: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(15)];
/// After a stream of this length the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(30);
/// How long an answer's head may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the stream may be silent before the `Welcome`.
const WELCOME: Duration = Duration::from_secs(10);
/// No operator keeps a proxy away for longer.
const LONGEST_AWAY: Duration = Duration::from_secs(300);
/// More violations than this are not told.
const VIOLATIONS: usize = 100;

/// Where the operator is and who this proxy is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT`.
    pub operator: String,
    /// The certificates, in PEM, to trust until the operator names others.
    pub ca_pem: String,
    /// The file with the proxy's token; it is read anew for each request, because tokens are replaced.
    pub token_file: PathBuf,
    /// Where the last good policy is kept.
    pub state_dir: Option<PathBuf>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Connect(#[from] connect::Error),
    #[error("cannot read the token {path}: {source}")]
    Token { path: PathBuf, source: std::io::Error },
    #[error("the operator answers {path} with {status}: {text}")]
    Refused { path: &'static str, status: StatusCode, text: String, retry_after: Option<Duration> },
    #[error(transparent)]
    Line(#[from] lines::Error),
    #[error("nothing came for {}s", .0.as_secs())]
    Silent(Duration),
    #[error("the operator closed the stream")]
    Closed,
    #[error("the list of siblings is asked for anew: {0}")]
    Siblings(#[from] NotApplicable),
    #[error("the operator says goodbye: {reason}")]
    Goaway { reason: String, retry_after: Duration },
}

impl Error {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Goaway { retry_after, .. } => Some((*retry_after).min(LONGEST_AWAY)),
            Self::Refused { retry_after, .. } => retry_after.map(|after| after.min(LONGEST_AWAY)),
            _ => None,
        }
    }
}

/// Keeps what the operator says in force. Never ends.
pub async fn run(control: Arc<Control>, settings: Settings, status: Arc<Status>) {
    status.start();
    let bundle = match &settings.state_dir {
        None => None,
        Some(dir) => on_disk(dir, last_good::load_trust_bundle).await.unwrap_or_else(|error| {
            tracing::error!(%error, "the trust bundle on disk is ignored");
            None
        }),
    };
    let from_disk = start_from_disk(&control, settings.state_dir.as_deref());
    let certificate = Certificate::default();
    let client = Client {
        control: &control,
        settings: &settings,
        status: &status,
        bundle,
        certificate,
        welcomed: None,
    };
    tokio::join!(from_disk, client.connect_for_ever());
}

/// Where the operator does not answer, the policy that was in force before this process goes on.
async fn start_from_disk(control: &Control, state_dir: Option<&Path>) {
    let Some(dir) = state_dir else { return };
    let mut changes = control.changes();
    let from_operator = async {
        while control.snapshot().source != Source::Operator {
            if changes.changed().await.is_err() {
                break; // the sender lives as long as `control`
            }
        }
    };
    if timeout(FIRST_UPDATE, from_operator).await.is_ok() {
        return;
    }
    let update = match on_disk(dir, last_good::load).await {
        Ok(Some(update)) => update,
        Ok(None) => return tracing::warn!("no operator yet, and no policy on disk"),
        Err(error) => return tracing::error!(%error, "no operator, and the policy on disk is ignored"),
    };
    if control.snapshot().source == Source::Operator {
        return; // it came while the file was read
    }
    match control.apply(&update, Source::Disk) {
        Ok(_) => tracing::warn!(version = update.version, "no operator: the last good policy is in force"),
        Err(violations) => log_violations(&update.version, &violations),
    }
}

struct Client<'a> {
    control: &'a Control,
    settings: &'a Settings,
    status: &'a Status,
    /// What the operator last said to trust.
    bundle: Option<String>,
    /// The certificate for siblings, and when the next is due.
    certificate: Certificate,
    /// When the stream in use began well.
    welcomed: Option<Instant>,
}

impl Client<'_> {
    async fn connect_for_ever(mut self) {
        let [first, longest] = RECONNECT;
        let mut backoff = Backoff::new(first, longest);
        let observer = RefCell::default();
        loop {
            self.welcomed = None;
            let Err(error) = self.follow(&observer).await;
            self.status.lost(&error);
            if self.welcomed.is_some_and(|since| HEALTHY <= since.elapsed()) {
                backoff.reset();
            }
            let spread = backoff.wait_spread(fastrand::f64());
            let wait = error.retry_after().unwrap_or_default().max(spread);
            tracing::warn!(%error, retry_seconds = wait.as_secs_f64(), "no stream from the operator; the policy in force stays");
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection, from its start to its end.
    async fn follow(&mut self, observer: &RefCell<Observer>) -> Result<Infallible, Error> {
        let (control, settings) = (self.control, self.settings);
        let roots = [self.settings.ca_pem.as_str(), self.bundle.as_deref().unwrap_or_default()];
        let link = Link::connect(&settings.operator, &roots).await?;
        let hello = Hello {
            protocol: PROTOCOL,
            proxy_version: String::from(env!("CARGO_PKG_VERSION")),
            holds: self.holds(),
            siblings: self.control.snapshot().siblings.version().map(ToOwned::to_owned),
        };
        let response = post(settings, &link, STREAM_PATH, &hello).await?;
        let lines = Lines::new(response.into_body());
        tokio::select! {
            ended = self.take_lines(&link, lines, hello.holds.as_deref()) => ended,
            () = reports::send(&link, control, settings, observer) => Err(Error::Closed), // it never returns
        }
    }

    /// Does what the operator says, until the stream ends.
    async fn take_lines(
        &mut self,
        link: &Link,
        mut lines: Lines<Incoming>,
        said: Option<&str>,
    ) -> Result<Infallible, Error> {
        let mut patience = WELCOME;
        loop {
            let next = tokio::select! {
                next = timeout(patience, lines.next()) => next.map_err(|_| Error::Silent(patience))?,
                () = self.certificate.due() => {
                    self.certify(link).await?;
                    continue;
                }
            };
            let line = next?.ok_or(Error::Closed)?;
            match parse(&line) {
                Line::Message(FromOperator::Welcome { replica, heartbeat_seconds, trust_bundle }) => {
                    patience = Duration::from_secs(u64::from(heartbeat_seconds.clamp(1, 3600)) * 3);
                    self.welcome(replica, trust_bundle).await;
                }
                Line::Message(FromOperator::Update(update)) => self.take(link, &update).await?,
                Line::Message(FromOperator::Siblings(change)) => {
                    self.control.change_siblings(change)?;
                    self.certificate.wanted();
                }
                Line::Message(FromOperator::Heartbeat) => self.confirm(said),
                Line::Message(FromOperator::Goaway { reason, retry_after_millis }) => {
                    let retry_after = Duration::from_millis(retry_after_millis);
                    return Err(Error::Goaway { reason, retry_after });
                }
                Line::UnreadableUpdate(version, violation) => {
                    self.control.refuse(std::slice::from_ref(&violation));
                    self.answer(link, &version, vec![violation]).await?;
                }
                Line::Unknown(error) => {
                    tracing::warn!(error, "a line of the operator is not understood, and passed over");
                }
            }
        }
    }

    /// The version in force, if an operator gave it, now or before a restart.
    fn holds(&self) -> Option<String> {
        let snapshot = self.control.snapshot();
        matches!(snapshot.source, Source::Operator | Source::Disk).then(|| snapshot.version.clone())
    }

    async fn welcome(&mut self, replica: String, trust_bundle: String) {
        tracing::info!(replica, "the operator's stream is open");
        self.welcomed = Some(Instant::now());
        self.status.welcomed(replica);
        if self.bundle.as_ref() == Some(&trust_bundle) {
            return;
        }
        if let Err(error) = connect::roots(&[&trust_bundle]) {
            return tracing::error!(%error, "the operator's trust bundle is ignored");
        }
        self.bundle = Some(trust_bundle.clone());
        self.install_certificate(); // siblings' may come from another CA from now on
        if let Some(dir) = &self.settings.state_dir {
            let stored = on_disk(dir, move |dir| last_good::store_trust_bundle(dir, &trust_bundle)).await;
            if let Err(error) = stored {
                tracing::warn!(%error, "the trust bundle cannot be kept");
            }
        }
    }

    async fn take(&self, link: &Link, update: &Update) -> Result<(), Error> {
        match self.control.apply(update, Source::Operator) {
            Ok(changed) => {
                if changed {
                    tracing::info!(version = update.version, "policy applied");
                }
                self.answer(link, &update.version, Vec::new()).await?;
                self.keep(update).await;
                Ok(())
            }
            Err(violations) => self.answer(link, &update.version, violations).await,
        }
    }

    /// The operator sent no update before its first heartbeat: it has the version that was taken from disk too.
    fn confirm(&self, said: Option<&str>) {
        let snapshot = self.control.snapshot();
        if snapshot.source == Source::Disk && said == Some(snapshot.version.as_str()) {
            let confirmed = self.control.apply(&snapshot.update(), Source::Operator);
            if let Err(violations) = confirmed {
                log_violations(&snapshot.version, &violations);
            }
        }
    }

    async fn answer(&self, link: &Link, version: &str, mut violations: Vec<Violation>) -> Result<(), Error> {
        log_violations(version, &violations);
        violations.truncate(VIOLATIONS);
        self.status.answered(violations.is_empty());
        post(self.settings, link, ACK_PATH, &Ack { version: version.to_owned(), violations }).await?;
        Ok(())
    }

    async fn keep(&self, update: &Update) {
        let Some(dir) = &self.settings.state_dir else { return };
        let update = update.clone();
        if let Err(error) = on_disk(dir, move |dir| last_good::store(dir, &update)).await {
            tracing::warn!(%error, "the policy cannot be kept on disk");
        }
    }
}

/// Sends a message as this proxy.
async fn post(
    settings: &Settings,
    link: &Link,
    path: &'static str,
    message: &impl serde::Serialize,
) -> Result<connect::Response, Error> {
    let file = &settings.token_file;
    let token = tokio::fs::read_to_string(file)
        .await
        .map_err(|source| Error::Token { path: file.clone(), source })?;
    let message = serde_json::to_vec(message).unwrap_or_default(); // plain data always serializes
    let answer = timeout(ANSWER, link.post(path, token.trim(), message)).await;
    let response = answer.map_err(|_| Error::Silent(ANSWER))??;
    if response.status().is_success() {
        return Ok(response);
    }
    let retry_after = connect::retry_after(&response);
    let status = response.status();
    let text = timeout(ANSWER, connect::short_text(response.into_body())).await.unwrap_or_default();
    Err(Error::Refused { path, status, text, retry_after })
}

/// What a line of the stream is.
enum Line {
    Message(FromOperator),
    /// An update that a newer operator wrote: it has to be refused, not passed over.
    UnreadableUpdate(String, Violation),
    Unknown(String),
}

fn parse(line: &[u8]) -> Line {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type")]
        kind: String,
        version: Option<String>,
    }
    let error = match serde_json::from_slice(line) {
        Ok(message) => return Line::Message(message),
        Err(error) => error.to_string(),
    };
    match serde_json::from_slice(line) {
        Ok(Envelope { kind, version: Some(version) }) if kind == "update" => {
            let reason = format!("this release of the proxy cannot read it: {error}");
            Line::UnreadableUpdate(version, Violation { path: String::from("spec"), reason })
        }
        _ => Line::Unknown(error),
    }
}

fn log_violations(version: &str, violations: &[Violation]) {
    for Violation { path, reason } in violations {
        tracing::error!(version, field = path, reason, "policy refused; nothing changes");
    }
}

async fn on_disk<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<T, last_good::Error> + Send + 'static,
) -> Result<T, last_good::Error> {
    let owned = dir.to_owned();
    match essential::joined(tokio::task::spawn_blocking(move || work(&owned)).await) {
        Some(result) => result,
        // The runtime is going away: it polls nothing any more.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
