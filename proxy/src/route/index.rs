//! Finds the first route that takes a request without asking each of a thousand.
//!
//! For every kind of condition a table leads from the request's value to the set of routes that it satisfies. What is in
//! all the sets is asked in full, first route first. The method is that of Lakshman and Stiliadis, "High-Speed
//! Policy-based Packet Forwarding Using Efficient Multi-dimensional Range Matching" (SIGCOMM 1998). Of each route one
//! header is in a table, the one whose name most routes have; a further one is looked at when the route is asked.

use std::collections::HashMap;

use http::HeaderName;
use http::request::Parts;
use outrigger_policy::effective::{PathMatch, Policy, RouteMatch};

use super::matches;
use super::places::{Candidates, Places};
use super::prefixes::Prefixes;

/// Leads from a request to the routes that may take it.
pub struct Index {
    routes: usize,
    /// Routes without a condition on the path.
    any_path: Places,
    exact: HashMap<Box<str>, Places>,
    prefixes: Prefixes,
    /// `None` where no route has a condition on the method.
    methods: Option<Values>,
    headers: Vec<(HeaderName, Values)>,
}

/// The routes by the value that one condition wants.
struct Values {
    /// Routes without this condition.
    others: Places,
    wanted: HashMap<Box<[u8]>, Places>,
}

impl Values {
    fn new<'a>(wanted: impl Iterator<Item = Option<&'a str>> + Clone) -> Self {
        let none = Places::none(wanted.clone().count());
        let mut values = Self { others: none.clone(), wanted: HashMap::new() };
        for (place, value) in wanted.enumerate() {
            match value {
                None => values.others.insert(place),
                Some(value) => {
                    let places = values.wanted.entry(value.as_bytes().into());
                    places.or_insert_with(|| none.clone()).insert(place);
                }
            }
        }
        values
    }

    /// The routes that one of these values satisfies.
    fn of<'a>(&self, found: impl Iterator<Item = &'a [u8]>) -> Candidates {
        let mut candidates = Candidates::of(&self.others);
        found.filter_map(|value| self.wanted.get(value)).for_each(|places| candidates.add(places));
        candidates
    }
}

impl Index {
    /// Of all routes of a policy but the last, which is for what no other takes.
    pub fn of(policy: &Policy) -> Self {
        let others = policy.routes.split_last().map_or(&[][..], |(_, others)| others);
        Self::new(&others.iter().map(|route| &route.matches).collect::<Vec<_>>())
    }

    /// Of the conditions of all routes, in their order.
    pub fn new(routes: &[&RouteMatch]) -> Self {
        let none = Places::none(routes.len());
        let mut any_path = none.clone();
        let (mut exact, mut prefixes) = (HashMap::new(), HashMap::new());
        for (place, route) in routes.iter().enumerate() {
            match &route.path {
                PathMatch::Any => &mut any_path,
                PathMatch::Exact(path) => exact.entry(path.as_str().into()).or_insert_with(|| none.clone()),
                PathMatch::Prefix(prefix) => prefixes.entry(prefix.as_str()).or_insert_with(|| none.clone()),
            }
            .insert(place);
        }
        let methods = routes.iter().map(|route| route.method.as_deref());
        Self {
            routes: routes.len(),
            prefixes: Prefixes::new(prefixes.into_iter(), &any_path),
            methods: methods.clone().any(|method| method.is_some()).then(|| Values::new(methods)),
            headers: headers(routes),
            any_path,
            exact,
        }
    }

    /// The place of the first route whose conditions all hold. `routes` are those that the index is of.
    pub fn first<'a>(&self, head: &Parts, conditions: impl Fn(usize) -> &'a RouteMatch) -> Option<usize> {
        if self.routes == 0 {
            return None;
        }
        let path = head.uri.path();
        let mut candidates = Candidates::of(self.prefixes.of(path.as_bytes()).unwrap_or(&self.any_path));
        if let Some(places) = self.exact.get(path) {
            candidates.add(places);
        }
        if let Some(methods) = &self.methods {
            candidates.keep(&methods.of(std::iter::once(head.method.as_str().as_bytes())));
        }
        for (name, values) in &self.headers {
            if candidates.is_empty() {
                return None;
            }
            candidates.keep(&values.of(head.headers.get_all(name).iter().map(http::HeaderValue::as_bytes)));
        }
        candidates.first(|place| matches(conditions(place), head))
    }
}

/// A table for each name that stands for a route: of the names of its conditions the one that most routes have.
fn headers(routes: &[&RouteMatch]) -> Vec<(HeaderName, Values)> {
    let mut having: HashMap<&str, usize> = HashMap::new();
    for (name, _) in routes.iter().flat_map(|route| &route.headers) {
        *having.entry(name).or_default() += 1;
    }
    let rank = |name: &str| (having[name], std::cmp::Reverse(name.to_owned()));
    let chosen: Vec<Option<&(String, String)>> =
        routes.iter().map(|route| route.headers.iter().max_by_key(|(name, _)| rank(name))).collect();
    let mut names: Vec<&str> = chosen.iter().flatten().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let table = |name: &str| {
        let values =
            chosen.iter().map(|chosen| chosen.filter(|(of, _)| of == name).map(|(_, value)| value.as_str()));
        Some((name.parse().ok()?, Values::new(values)))
    };
    names.into_iter().filter_map(table).collect()
}
