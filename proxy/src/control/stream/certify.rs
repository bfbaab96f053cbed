//! The certificate for siblings: asked for when there are some, and renewed as long as the stream is open.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use outrigger_policy::siblings::{self, CERTIFY_PATH, CertificateRequest};
use rcgen::KeyPair;
use tokio::time::timeout;

use super::connect::Link;
use super::{ANSWER, Client, Error, post};
use crate::siblings::signing_request;

/// How long the next request waits after one that was refused.
const AGAIN: Duration = Duration::from_secs(30);
/// No certificate is longer.
const LONGEST: usize = 64 << 10;

/// What is held, and when the next is due.
#[derive(Default)]
pub(super) struct Certificate {
    held: Option<Held>,
    /// `None`: there are no siblings to show one to.
    next: Option<Instant>,
}

struct Held {
    key: KeyPair,
    signed: siblings::Certificate,
    /// When it was signed.
    since: Instant,
}

impl Certificate {
    /// There are siblings.
    pub(super) fn wanted(&mut self) {
        self.next.get_or_insert_with(Instant::now);
    }

    /// Returns when the next one is due.
    pub(super) async fn due(&self) {
        match self.next {
            Some(next) => tokio::time::sleep_until(next.into()).await,
            None => std::future::pending().await,
        }
    }
}

impl Client<'_> {
    /// Asks for a certificate. That it is refused ends no stream: the policy comes all the same.
    pub(super) async fn certify(&mut self, link: &Link) -> Result<(), Error> {
        let asked = Instant::now();
        self.certificate.next = Some(asked + AGAIN);
        let (key, csr) = match signing_request() {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "siblings cannot be reached");
                return Ok(());
            }
        };
        let response = match post(self.settings, link, CERTIFY_PATH, &CertificateRequest { csr }).await {
            Ok(response) => response,
            Err(error @ Error::Refused { .. }) => {
                tracing::warn!(%error, "no certificate: siblings cannot be reached");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let body = timeout(ANSWER, Limited::new(response.into_body(), LONGEST).collect()).await;
        let body = body.map_err(|_| Error::Silent(ANSWER))?;
        let signed: Option<siblings::Certificate> =
            body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
        let Some(signed) = signed else {
            tracing::error!("the operator's answer is no certificate: siblings cannot be reached");
            return Ok(());
        };
        let renew_after = Duration::from_secs(signed.renew_after_seconds.max(AGAIN.as_secs()));
        self.certificate.held = Some(Held { key, signed, since: asked });
        if self.install_certificate() {
            self.certificate.next = Some(asked + renew_after);
            tracing::info!(renew_after_seconds = renew_after.as_secs(), "certified for siblings");
        }
        Ok(())
    }

    /// Shows siblings what is held, and trusts the CAs that the operator named last. Whether it is of use.
    pub(super) fn install_certificate(&self) -> bool {
        let Some(Held { key, signed, since }) = &self.certificate.held else { return false };
        let roots = self.bundle.as_deref().unwrap_or(&self.settings.ca_pem);
        let snapshot = self.control.snapshot();
        match snapshot.siblings.identity().install(key, signed, roots, *since) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "the certificate is of no use: the one before stays");
                false
            }
        }
    }
}
