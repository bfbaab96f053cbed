//! Which route takes a request: the first whose conditions all hold.

use http::request::Parts;
use outrigger_policy::effective::{PathMatch, RouteMatch};

use crate::snapshot::{Route, Snapshot};

impl Snapshot {
    /// The route of a request. There always is one: the last matches everything.
    pub fn route(&self, head: &Parts) -> &Route {
        let (last, others) =
            self.routes.split_last().unwrap_or_else(|| unreachable!("`default` is always there"));
        others.iter().find(|route| matches(&route.policy.matches, head)).unwrap_or(last)
    }
}

/// Whether every condition holds.
pub fn matches(conditions: &RouteMatch, head: &Parts) -> bool {
    let path = head.uri.path();
    let path_matches = match &conditions.path {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => {
            path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    };
    path_matches
        && conditions.method.as_deref().is_none_or(|method| head.method.as_str() == method)
        && conditions.headers.iter().all(|(name, value)| {
            head.headers.get_all(name.as_str()).iter().any(|found| found.as_bytes() == value.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, path: &str) -> Parts {
        let request = http::Request::builder().method(method).uri(path).header("x-tier", "gold").body(());
        request.expect("valid").into_parts().0
    }

    fn conditions(path: PathMatch) -> RouteMatch {
        RouteMatch { path, method: None, headers: Vec::new() }
    }

    #[test]
    fn a_prefix_matches_whole_segments() {
        let api = conditions(PathMatch::Prefix("/api".to_owned()));
        assert!(matches(&api, &head("GET", "/api")));
        assert!(matches(&api, &head("GET", "/api/v1?x=/apiary")));
        assert!(!matches(&api, &head("GET", "/apiary")));
        assert!(!matches(&api, &head("GET", "/v1/api")));
    }

    #[test]
    fn every_condition_must_hold() {
        let mut all = conditions(PathMatch::Exact("/a".to_owned()));
        all.method = Some("POST".to_owned());
        all.headers = vec![("x-tier".to_owned(), "gold".to_owned())];
        assert!(matches(&all, &head("POST", "/a")));
        assert!(!matches(&all, &head("GET", "/a")));
        assert!(!matches(&all, &head("POST", "/a/b")));
        all.headers[0].1 = "silver".to_owned();
        assert!(!matches(&all, &head("POST", "/a")));
    }
}
