//! Which route takes a request: the first whose conditions all hold.

mod index;
mod places;
mod prefixes;

use http::request::Parts;
use outrigger_policy::effective::{PathMatch, RouteMatch};

pub use self::index::Index;
use crate::snapshot::{Route, Snapshot};

impl Snapshot {
    /// The route of a request. There always is one: the last matches everything.
    pub fn route(&self, head: &Parts) -> &Route {
        let (last, others) =
            self.routes.split_last().unwrap_or_else(|| unreachable!("`default` is always there"));
        let first = self.index.first(head, |place| &others[place].policy.matches);
        first.map_or(last, |place| &others[place])
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
    use outrigger_policy::effective::MAX_ROUTES;
    use proptest::prelude::*;

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

    /// One of few, so that random requests often satisfy some of them.
    fn condition() -> impl Strategy<Value = RouteMatch> {
        let path = prop_oneof![
            Just(PathMatch::Any),
            "(/[ab]{0,2}){1,3}".prop_map(PathMatch::Exact),
            "(/[ab]{1,2}){1,3}".prop_map(PathMatch::Prefix),
        ];
        let method = proptest::option::of(prop_oneof!["GET", "POST", "PURGE"]);
        let headers = proptest::collection::vec(("x-[abc]", "[01]"), 0..3);
        (path, method, headers).prop_map(|(path, method, headers)| RouteMatch { path, method, headers })
    }

    fn request() -> impl Strategy<Value = Parts> {
        let headers = proptest::collection::vec(("x-[abcd]", "[012]"), 0..5);
        (prop_oneof!["GET", "POST", "PUT"], "(/[abc]{0,2}){1,4}", headers).prop_map(
            |(method, path, headers)| {
                let request = http::Request::builder().method(method.as_str()).uri(path);
                let add = |request: http::request::Builder, (name, value)| {
                    request.header::<&String, &String>(name, value)
                };
                headers
                    .iter()
                    .map(|(name, value)| (name, value))
                    .fold(request, add)
                    .body(())
                    .expect("valid")
                    .into_parts()
                    .0
            },
        )
    }

    proptest! {
        #[test]
        fn the_index_finds_the_first_route_that_matches(
            routes in proptest::collection::vec(condition(), 0..200),
            requests in proptest::collection::vec(request(), 20),
        ) {
            let routes: Vec<_> = routes.iter().collect();
            let index = Index::new(&routes);
            for head in requests {
                let expected = routes.iter().position(|route| matches(route, &head));
                prop_assert_eq!(index.first(&head, |place| routes[place]), expected, "{:?}", head);
            }
        }
    }

    /// Of a thousand routes that differ in one condition, one alone is asked.
    #[test]
    fn of_a_thousand_routes_few_are_asked() {
        let by_path = |i| conditions(PathMatch::Prefix(format!("/tenants/{i}")));
        let by_header = |i: usize| RouteMatch {
            headers: vec![("x-tier".to_owned(), if i == 500 { "gold".to_owned() } else { format!("t{i}") })],
            ..conditions(PathMatch::Any)
        };
        let by_method = |i: usize| RouteMatch {
            method: Some(if i == 500 { "GET".to_owned() } else { format!("M{i}") }),
            ..conditions(PathMatch::Any)
        };
        let asked = |routes: &[RouteMatch]| {
            let routes: Vec<_> = routes.iter().collect();
            let asked = std::cell::Cell::new(0);
            let first = Index::new(&routes).first(&head("GET", "/tenants/500/orders"), |place| {
                asked.set(asked.get() + 1);
                routes[place]
            });
            (first, asked.get())
        };
        for kind in [&by_path as &dyn Fn(usize) -> RouteMatch, &by_header, &by_method] {
            assert_eq!(asked(&(0..MAX_ROUTES).map(kind).collect::<Vec<_>>()), (Some(500), 1));
        }
    }

    #[test]
    fn a_request_without_a_path_satisfies_no_condition_on_it() {
        let routes = [conditions(PathMatch::Prefix("/a".to_owned())), conditions(PathMatch::Any)];
        let mut asterisk = head("OPTIONS", "/a");
        asterisk.uri = http::Uri::from_static("*");
        assert_eq!(
            Index::new(&routes.iter().collect::<Vec<_>>()).first(&asterisk, |place| &routes[place]),
            Some(1)
        );
        assert_eq!(Index::new(&[]).first(&asterisk, |_| unreachable!("there is none")), None);
    }
}
