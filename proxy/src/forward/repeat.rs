//! Whether a request may be sent once more, and what for.
//!
//! Safe to repeat is what never left, and what an idempotent method asks for (RFC 9110 §9.2.2). A gRPC call is a POST:
//! it is repeated only when it ended with a code that the policy names, which says that its calls may be.

use std::cell::RefCell;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use outrigger_policy::effective::Retry;

use super::Slot;
use super::attempt::Tried;
use crate::body::{Again, RequestBody};
use crate::guard::RawQuery;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// How often a call was made before (gRPC proposal A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// What it takes to send a request once more that was sent already.
pub(super) struct Repeat {
    head: RefCell<Head>,
    body: Again,
    idempotent: bool,
    has_body: bool,
}

/// What the policy may want of a request.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) retry: &'a Retry,
    /// Whether a second request may go beside it.
    pub(super) hedged: bool,
    pub(super) grpc: bool,
}

/// Where the head is. Most requests are sent once only, so it is copied as late as can be.
enum Head {
    /// It is not wanted.
    Never,
    /// In the request.
    InItsSlot,
    Kept(Box<Fields>),
}

/// A request but for its body.
#[derive(Clone)]
pub(super) struct Fields {
    method: Method,
    uri: Uri,
    query: Option<RawQuery>,
    headers: HeaderMap,
}

impl Fields {
    pub(super) fn of(request: &Request<RequestBody>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            query: request.extensions().get().cloned(),
            headers: request.headers().clone(),
        }
    }

    pub(super) fn with(self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        if let Some(query) = self.query {
            request.extensions_mut().insert(query);
        }
        request
    }
}

impl Repeat {
    /// Keeps what is needed, if the request is one that may be repeated and the policy could ask for it.
    pub(super) fn of(request: &mut Request<RequestBody>, Wanted { retry, hedged, grpc }: Wanted<'_>) -> Self {
        let idempotent = is_idempotent(request.method());
        let has_body = request.body().progress().is_some();
        let wanted = match idempotent {
            true => hedged || retry.repeats_sent(),
            false => !retry.grpc_codes.is_empty() && 0 < retry.num_retries && grpc,
        };
        let body = if wanted { request.body_mut().keep(retry.body_buffer) } else { Again::Never };
        let head = match &body {
            Again::Never => Head::Never,
            Again::Empty | Again::Kept(..) if !hedged => Head::InItsSlot,
            Again::Empty | Again::Kept(..) => Head::of(request), // a second request goes beside the first
        };
        Self { head: RefCell::new(head), body, idempotent, has_body }
    }

    /// Whether the request can be sent once more whatever became of the first.
    pub(super) fn is_idempotent(&self) -> bool {
        self.idempotent && self.body.is_possible()
    }

    /// Makes a request whole again whose connection ended before anything came back, where it may be sent once more. Its head
    /// is where it was.
    pub(super) fn renew(&self, request: &mut Request<RequestBody>) -> bool {
        let body = match self.idempotent {
            true if self.has_body => self.body.body(),
            true => Some(RequestBody::empty()),
            false => None,
        };
        body.map(|body| *request.body_mut() = body).is_some()
    }

    /// The request is about to leave its slot. One without a body is kept whatever the policy says.
    pub(super) fn keep(&self, request: &Request<RequestBody>) {
        let mut head = self.head.borrow_mut();
        match *head {
            Head::InItsSlot => *head = Head::of(request),
            Head::Never if !self.has_body => *head = Head::of(request),
            Head::Never | Head::Kept(_) => {}
        }
    }

    /// The request that left, as it was, where it was kept; `unprocessed`: the worker did nothing for it, so its method does not
    /// matter.
    pub(super) fn once_more(&self, unprocessed: bool) -> Option<Request<RequestBody>> {
        let head = self.head.borrow();
        let Head::Kept(fields) = &*head else { return None };
        if !unprocessed && !self.idempotent {
            return None;
        }
        let body = if self.has_body { self.body.body()? } else { RequestBody::empty() };
        Some(Fields::clone(fields).with(body))
    }

    /// Whether it has no body that could be sent in part by two tries at once.
    pub(super) fn is_without_body(&self) -> bool {
        matches!(self.body, Again::Empty)
    }

    /// The request, for its `attempt`th repetition, with the head from its slot if that has not left.
    pub(super) fn request(&self, attempt: u32, slot: &mut Slot) -> Option<Request<RequestBody>> {
        let body = self.body.body()?;
        let mut request = match &*self.head.borrow() {
            Head::Never => return None,
            Head::InItsSlot => slot.take()?.map(|_| body),
            Head::Kept(fields) => Fields::clone(fields).with(body),
        };
        if !self.idempotent {
            request.headers_mut().insert(PREVIOUS_ATTEMPTS, HeaderValue::from(attempt));
        }
        Some(request)
    }

    /// Whether the policy wants another try after this one, and it is safe.
    pub(super) fn is_wanted(&self, retry: &Retry, tried: &Tried) -> bool {
        match tried {
            Tried::Unsent(_) => retry.connect_failure,
            Tried::Lost(_) => retry.reset && self.is_idempotent(),
            Tried::Final(_) => false,
            Tried::Answered(answer) => {
                let status = answer.head.status.as_u16();
                self.is_idempotent() && retry.statuses.binary_search(&status).is_ok()
                    || self.body.is_possible() && ended_with(&retry.grpc_codes, &answer.head.headers)
            }
        }
    }
}

impl Head {
    fn of(request: &Request<RequestBody>) -> Self {
        Self::Kept(Box::new(Fields::of(request)))
    }
}

fn ended_with(codes: &[u8], headers: &HeaderMap) -> bool {
    let code = || headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok();
    !codes.is_empty() && code().is_some_and(|code: u8| codes.binary_search(&code).is_ok())
}

/// RFC 9110 §9.2.2; CONNECT and TRACE do not come this far, and of other methods nothing is known.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// The wait before the `attempt`th repetition, from 1: at random up to a bound that doubles ("Exponential Backoff And
/// Jitter", AWS Architecture Blog, 2015: full jitter). `random` is in 0..1.
pub(super) fn back_off(retry: &Retry, attempt: u32, random: f64) -> Duration {
    let doubled = retry.base_interval.saturating_mul(1 << (attempt - 1).min(16));
    doubled.min(retry.max_interval).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(spec: &str) -> Retry {
        let spec = serde_yaml::from_str(spec).expect("a spec");
        outrigger_policy::compile(&spec).expect("valid").routes[0].retry.clone()
    }

    fn repeat(method: &str, grpc: bool, retry: &Retry) -> Repeat {
        let request = Request::builder().method(method).body(RequestBody::empty());
        Repeat::of(&mut request.expect("valid"), Wanted { retry, hedged: false, grpc })
    }

    fn get() -> Slot {
        Some(Request::get("/a").header("x-a", "1").body(RequestBody::empty()).expect("valid"))
    }

    #[test]
    fn only_idempotent_methods_are_kept() {
        let default = retry("{}");
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
            assert!(repeat(method, false, &default).is_idempotent(), "{method}");
        }
        for method in ["POST", "PATCH", "LOCK", "get"] {
            let repeat = repeat(method, false, &default);
            assert!(!repeat.is_idempotent() && repeat.request(1, &mut get()).is_none(), "{method}");
        }
        for spec in ["retry: {numRetries: 0}", "retry: {retryOn: {triggers: [ConnectFailure]}}"] {
            assert!(repeat("GET", false, &retry(spec)).request(1, &mut get()).is_none(), "nothing is kept");
        }
    }

    #[test]
    fn the_head_is_in_its_slot_or_was_kept() {
        let default = retry("{}");
        let once = repeat("GET", false, &default);
        assert!(once.request(1, &mut None).is_none(), "it was not kept when it left");
        let mut slot = get();
        for attempt in 1..3 {
            slot = once.request(attempt, &mut slot);
            assert_eq!(slot.as_ref().expect("it never left").headers()["x-a"], "1");
        }
        once.keep(&slot.take().expect("a request"));
        for attempt in 3..5 {
            let again = once.request(attempt, &mut None).expect("kept");
            assert_eq!((again.uri().path(), &again.headers()["x-a"]), ("/a", &HeaderValue::from_static("1")));
        }
    }

    #[test]
    fn what_came_back_from_a_closed_connection_is_made_whole_where_it_may_be_repeated() {
        let never = retry("retry: {numRetries: 0}");
        for (method, renewed) in
            [("GET", true), ("HEAD", true), ("PUT", true), ("POST", false), ("LOCK", false)]
        {
            assert_eq!(repeat(method, false, &never).renew(&mut get().expect("one")), renewed, "{method}");
        }
    }

    #[test]
    fn what_a_worker_did_nothing_for_goes_once_more_without_a_retry() {
        let never = retry("retry: {numRetries: 0}");
        for (method, idempotent) in [("GET", true), ("DELETE", true), ("POST", false)] {
            let repeat = repeat(method, false, &never);
            assert!(repeat.once_more(true).is_none(), "it has not left");
            repeat.keep(&Request::builder().method(method).body(RequestBody::empty()).expect("valid"));
            assert_eq!(repeat.once_more(true).expect("kept").method(), method);
            assert_eq!(repeat.once_more(false).is_some(), idempotent, "{method}");
            assert!(repeat.request(1, &mut None).is_none() && !repeat.is_idempotent(), "no retry");
        }
    }

    #[test]
    fn calls_are_kept_where_the_policy_names_a_code() {
        let named = retry("retry: {bodyBuffer: 1000, retryOn: {grpcCodes: [UNAVAILABLE]}}");
        let call = repeat("POST", true, &named);
        assert!(!call.is_idempotent(), "only an answer with the code repeats it");
        call.keep(&Request::new(RequestBody::empty()));
        assert_eq!(call.request(2, &mut None).expect("kept").headers()[PREVIOUS_ATTEMPTS], "2");
        assert!(repeat("POST", false, &named).request(1, &mut get()).is_none());
        let mut headers = HeaderMap::new();
        assert!(!ended_with(&[14], &headers));
        headers.insert(GRPC_STATUS, HeaderValue::from_static("14"));
        assert!(ended_with(&[8, 14], &headers) && !ended_with(&[8], &headers) && !ended_with(&[], &headers));
    }

    #[test]
    fn waits_double_and_are_spread() {
        let default = retry("{}");
        let longest: Vec<_> = (1..=6).map(|attempt| back_off(&default, attempt, 1.0).as_millis()).collect();
        assert_eq!(longest, [25, 50, 100, 200, 250, 250]);
        assert_eq!(back_off(&default, 1, 0.0), Duration::ZERO);
    }
}
