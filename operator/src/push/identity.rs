//! Who is calling: a ServiceAccount token, judged by the API server, and the pod it is bound to.
//!
//! Nothing a client says about itself is used. The token names the pod and its UID; the pod comes from this
//! replica's own watch.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_policy::wire::AUDIENCE;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Duration, Instant, timeout};

use crate::controller::observe::{Observed, PodFacts};
use crate::metrics::{Metrics, ReviewResult};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// How long a good token is believed without asking again.
const GOOD: Duration = Duration::from_secs(300);
/// How long a bad one is refused without asking again.
const BAD: Duration = Duration::from_secs(10);
/// The most tokens remembered.
const REMEMBERED: usize = 20_000;
/// The longest token read.
const LONGEST: usize = 8 << 10;
/// Reviews in flight at once: a fleet that connects anew must not be a flood to the API server.
const REVIEWS: usize = 50;
/// The same for one address: a pod has one proxy, and a replica one connection to each other.
const REVIEWS_OF_ONE: usize = 4;
/// How long a caller waits for its review, queue included.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the watch may be behind a pod that connects as soon as it runs.
const LAG: Duration = Duration::from_secs(2);

/// Asks the API server about a token.
pub trait Review: Send + Sync + 'static {
    /// What the token says of itself. It proves nothing, but what says nothing good of itself need not be reviewed.
    fn claims(&self, token: &str) -> Option<Claims> {
        claims(token)
    }

    /// What the API server says of this token for the audience `outrigger.dev`.
    fn review(&self, token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>>;
}

/// Why a caller is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Authorization: Bearer` with something that could be a token.
    #[error("a ServiceAccount token is needed: 'Authorization: Bearer …'")]
    NoToken,
    /// The API server does not take it for a valid token.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// It is valid for somebody else.
    #[error("the token is not for the audience '{AUDIENCE}'")]
    Audience,
    /// It is no ServiceAccount's.
    #[error("the token is not of a ServiceAccount but of '{0}'")]
    NotAServiceAccount(String),
    /// It is not bound to a pod.
    #[error("the token is not bound to a pod")]
    NotAPod,
    /// The pod is not there, or has no proxy.
    #[error("there is no pod '{0}' with this UID and the label 'outrigger.dev/injected: \"true\"'")]
    UnknownPod(String),
    /// It is not the operator's own.
    #[error("'{0}' is not the operator")]
    NotAReplica(String),
    /// The API server could not be asked; the caller may be right.
    #[error("tokens cannot be reviewed at the moment")]
    Unavailable,
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The ServiceAccount's namespace.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// Name and UID of the pod it is bound to.
    pub pod: Option<(String, String)>,
}

/// What a ServiceAccount token says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whether it is for `outrigger.dev`.
    pub for_us: bool,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
    /// The ServiceAccount's namespace.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// Name and UID of the pod it is bound to.
    pub pod: Option<(String, String)>,
}

/// Judges callers.
pub struct Identity {
    review: Box<dyn Review>,
    observed: Observed,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    reviews: Reviews,
    metrics: Arc<Metrics>,
}

struct Remembered {
    until: Instant,
    verdict: Result<Bearer, Refusal>,
}

/// Reviews by the API server.
pub struct ApiServer(pub Client);

impl Review for ApiServer {
    fn review(&self, token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        Box::pin(async move {
            let api: Api<TokenReview> = Api::all(self.0.clone());
            let review = api.create(&PostParams::default(), &review).await?;
            Ok(review.status.unwrap_or_default())
        })
    }
}

// === impl Identity ===

impl Identity {
    /// Judges by these reviews and these pods.
    pub fn new(review: impl Review, observed: Observed, metrics: Arc<Metrics>) -> Self {
        let (reviews, remembered) = (Reviews::default(), Mutex::default());
        Self { review: Box::new(review), observed, remembered, reviews, metrics }
    }

    /// The pod whose proxy is calling from this address.
    ///
    /// # Errors
    /// Why it is not to be believed.
    pub async fn proxy(&self, headers: &HeaderMap, from: IpAddr) -> Result<Arc<PodFacts>, Refusal> {
        let token = token(headers)?;
        let claims = self.claims(token)?;
        let (name, uid) = claims.pod.as_ref().ok_or(Refusal::NotAPod)?;
        let pod = self.known(&claims.namespace, name, uid).await?;
        let bearer = self.bearer(token, from).await?;
        match &bearer.pod {
            None => Err(Refusal::NotAPod),
            // What the token proves, and not what it says.
            Some((name, uid))
                if *pod.name != **name || *pod.uid != **uid || pod.namespace != bearer.namespace =>
            {
                Err(Refusal::UnknownPod(format!("{}/{name}", bearer.namespace)))
            }
            Some(_) if pod.service_account != bearer.service_account => {
                Err(Refusal::UnknownPod(format!("{}/{name}", bearer.namespace)))
            }
            Some(_) => Ok(pod),
        }
    }

    /// The pod of this name and UID, as soon as the watch has it.
    async fn known(&self, namespace: &str, name: &str, uid: &str) -> Result<Arc<PodFacts>, Refusal> {
        let known = || self.observed.pod(namespace, name).filter(|pod| *pod.uid == *uid);
        let mut changes = self.observed.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(pod) = known() {
                    return Some(pod);
                }
                changes.changed().await.ok()?;
            }
        };
        let unknown = || Refusal::UnknownPod(format!("{namespace}/{name}"));
        timeout(LAG, wait).await.ok().flatten().ok_or_else(unknown)
    }

    /// Whether the caller is a replica of the operator, told by its ServiceAccount.
    ///
    /// # Errors
    /// Why it is not to be believed.
    pub async fn replica(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        (namespace, service_account): (&str, &str),
    ) -> Result<(), Refusal> {
        let token = token(headers)?;
        let claims = self.claims(token)?;
        let not = |namespace: &str, account: &str| Refusal::NotAReplica(format!("{namespace}/{account}"));
        if (claims.namespace.as_str(), claims.service_account.as_str()) != (namespace, service_account) {
            return Err(not(&claims.namespace, &claims.service_account));
        }
        let bearer = self.bearer(token, from).await?;
        match bearer.namespace == namespace && bearer.service_account == service_account {
            true => Ok(()),
            false => Err(not(&bearer.namespace, &bearer.service_account)),
        }
    }

    /// What a token says of itself, where that could be good: no other takes up the API server's time.
    fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        let none = || Refusal::Invalid("it is no ServiceAccount token".to_owned());
        let claims = self.review.claims(token).ok_or_else(none)?;
        match claims {
            Claims { for_us: false, .. } => Err(Refusal::Audience),
            Claims { expires, .. } if expires <= Timestamp::now().as_second() => {
                Err(Refusal::Invalid("it has expired".to_owned()))
            }
            claims => Ok(claims),
        }
    }

    async fn bearer(&self, token: &str, from: IpAddr) -> Result<Bearer, Refusal> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.recall(&hash) {
            self.metrics.count_review(ReviewResult::Cached);
            return known;
        }
        let asked = timeout(PATIENCE, async {
            let _slot = self.reviews.slot(from).await?;
            Some(self.review.review(token).await)
        });
        let status = match asked.await.ok().flatten() {
            Some(Ok(status)) => status,
            failed => {
                let error = failed.and_then(Result::err);
                tracing::warn!(error = error.map(tracing::field::display), "cannot review a token");
                self.metrics.count_review(ReviewResult::Failed);
                return Err(Refusal::Unavailable);
            }
        };
        let verdict = judge(&status);
        let result = if verdict.is_ok() { ReviewResult::Accepted } else { ReviewResult::Refused };
        self.metrics.count_review(result);
        let now = Timestamp::now().as_second();
        self.remember(hash, verdict.clone(), Instant::now() + lifetime(&verdict, token, now));
        verdict
    }

    fn recall(&self, hash: &[u8; 32]) -> Option<Result<Bearer, Refusal>> {
        let remembered = self.remembered.lock();
        let known = remembered.get(hash).filter(|known| Instant::now() < known.until)?;
        Some(known.verdict.clone())
    }

    fn remember(&self, hash: [u8; 32], verdict: Result<Bearer, Refusal>, until: Instant) {
        let mut remembered = self.remembered.lock();
        if REMEMBERED <= remembered.len() {
            let now = Instant::now();
            remembered.retain(|_, known| now < known.until);
        }
        if remembered.len() < REMEMBERED {
            remembered.insert(hash, Remembered { until, verdict }); // when full: ask again next time
        }
    }
}

/// Reviews in flight: so many at once, and so many for one address, so that nobody's bad tokens keep others waiting.
struct Reviews {
    all: Semaphore,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One review that is wanted or in flight.
struct Slot<'a> {
    reviews: &'a Reviews,
    from: IpAddr,
    all: Option<SemaphorePermit<'a>>,
}

impl Default for Reviews {
    fn default() -> Self {
        Self { all: Semaphore::new(REVIEWS), by_address: Mutex::default() }
    }
}

impl Reviews {
    /// Waits for a slot; `None` when this address has all of its own in use.
    async fn slot(&self, from: IpAddr) -> Option<Slot<'_>> {
        let in_flight = {
            let mut by_address = self.by_address.lock();
            let in_flight = by_address.entry(from).or_default();
            *in_flight += 1;
            *in_flight
        };
        let mut slot = Slot { reviews: self, from, all: None };
        if REVIEWS_OF_ONE < in_flight {
            return None;
        }
        slot.all = Some(self.all.acquire().await.ok()?);
        Some(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.all = None;
        if let Entry::Occupied(mut in_flight) = self.reviews.by_address.lock().entry(self.from) {
            *in_flight.get_mut() -= 1;
            if *in_flight.get() == 0 {
                in_flight.remove();
            }
        }
    }
}

fn token(headers: &http::HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get(http::header::AUTHORIZATION).ok_or(Refusal::NoToken)?;
    let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    token.filter(|token| !token.is_empty() && token.len() <= LONGEST).ok_or(Refusal::NoToken)
}

/// What the API server's answer proves.
fn judge(status: &TokenReviewStatus) -> Result<Bearer, Refusal> {
    if status.authenticated != Some(true) {
        let error = status.error.clone().unwrap_or_else(|| "it was not accepted".to_owned());
        return Err(Refusal::Invalid(error));
    }
    // An API server that knows nothing of audiences would accept any token: it leaves the list out.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Refusal::Audience);
    }
    let user = status.user.clone().unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return Err(Refusal::NotAServiceAccount(username));
    };
    let extra = user.extra.unwrap_or_default();
    let only = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    Ok(Bearer {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: only(POD_NAME).zip(only(POD_UID)),
    })
}

/// How long a verdict is believed: a good one no longer than the token is valid.
fn lifetime(verdict: &Result<Bearer, Refusal>, token: &str, now: i64) -> Duration {
    if verdict.is_err() {
        return BAD;
    }
    let Some(expires) = expiry(token) else { return BAD };
    let left = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
    GOOD.min(Duration::from_secs(left))
}

/// When a JWT ends, in seconds since 1970. Only asked of tokens that the API server vouched for.
fn expiry(token: &str) -> Option<i64> {
    payload(token)?.get("exp")?.as_i64()
}

/// The payload of a JWT, whoever signed it.
fn payload(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// What a token of a ServiceAccount says of itself; `None` where it is no such token.
fn claims(token: &str) -> Option<Claims> {
    let payload = payload(token)?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let bound = payload.get("kubernetes.io")?;
    let audiences = payload.get("aud")?;
    let pod = bound.get("pod").and_then(|pod| Some((text(pod.get("name")?)?, text(pod.get("uid")?)?)));
    Some(Claims {
        for_us: audiences.as_array().is_some_and(|all| all.iter().any(|one| one == AUDIENCE))
            || audiences == AUDIENCE,
        expires: payload.get("exp")?.as_i64()?,
        namespace: text(bound.get("namespace")?)?,
        service_account: text(bound.get("serviceaccount")?.get("name")?)?,
        pod,
    })
}

#[cfg(test)]
mod tests;
