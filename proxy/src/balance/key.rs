//! The key of a request, for strategies that give the same key to the same worker.

use std::net::IpAddr;

use http::header::COOKIE;
use http::request::Parts;
use outrigger_policy::effective::{HashKey, Strategy};

use super::mix;

/// The hash of the request's key under this strategy; `None` when the strategy needs none, or the request has none.
pub fn of(strategy: &Strategy, head: &Parts, client: IpAddr) -> Option<u64> {
    let Strategy::ConsistentHash(settings) = strategy else { return None };
    match &settings.key {
        HashKey::SourceIp => Some(hash(&address(client))),
        HashKey::Header(name) => head.headers.get(name.as_str()).map(|value| hash(value.as_bytes())),
        HashKey::Cookie(name) => cookie(head, name.as_bytes()).map(hash),
        HashKey::QueryParam(name) => query_param(head.uri.query()?, name).map(|value| hash(value.as_bytes())),
        HashKey::Path => Some(hash(head.uri.path().as_bytes())),
    }
}

/// The same in every process and release, as proxies must agree on it: FNV-1a (Fowler, Noll and Vo) and a finalizer.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

/// An IPv6 client holds a /64 at least, and changes its address in it.
fn address(client: IpAddr) -> [u8; 8] {
    match client.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()).to_be_bytes(),
        IpAddr::V6(v6) => ((v6.to_bits() >> 64) as u64).to_be_bytes(),
    }
}

fn cookie<'a>(head: &'a Parts, name: &[u8]) -> Option<&'a [u8]> {
    let fields = head.headers.get_all(COOKIE).iter();
    let pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="));
    values.next().filter(|value| !value.is_empty())
}

fn query_param<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use outrigger_policy::effective::{ConsistentHash, HashAlgorithm};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn key(key: HashKey, uri: &str, headers: &[(&str, &str)], client: IpAddr) -> Option<u64> {
        let settings = ConsistentHash { key, algorithm: HashAlgorithm::Ring(16), balance_factor: None };
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        of(&Strategy::ConsistentHash(settings), &head, client)
    }

    #[test]
    fn the_same_value_has_the_same_hash_wherever_it_stands() {
        let value = Some(hash(b"gold"));
        let header = || HashKey::Header(String::from("x-tier"));
        let cookie = || HashKey::Cookie(String::from("tier"));
        let param = || HashKey::QueryParam(String::from("tier"));
        assert_eq!(key(header(), "/", &[("x-tier", "gold")], HERE), value);
        assert_eq!(key(cookie(), "/", &[("cookie", "a=b; tier=gold")], HERE), value);
        assert_eq!(key(cookie(), "/", &[("cookie", "a=b"), ("cookie", "tier=gold; tier=x")], HERE), value);
        assert_eq!(key(param(), "/?a=b&tier=gold&tier=x", &[], HERE), value);
        for (without, uri, headers) in [
            (header(), "/", &[][..]),
            (cookie(), "/", &[("cookie", "xtier=gold; tier=")]),
            (param(), "/", &[]),
            (param(), "/?tiers=gold&tier", &[]),
        ] {
            assert_eq!(key(without, uri, headers, HERE), None, "{uri} {headers:?}");
        }
    }

    #[test]
    fn the_query_is_no_part_of_the_path() {
        let path = |uri| key(HashKey::Path, uri, &[], HERE);
        assert_eq!(path("/a?x=1"), path("/a?x=2"));
        assert_ne!(path("/a"), path("/b"));
    }

    #[test]
    fn addresses_of_one_holder_are_one_key() {
        let of = |text: &str| key(HashKey::SourceIp, "/", &[], text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn other_strategies_look_at_nothing() {
        let (head, ()) = http::Request::get("/").body(()).expect("a request").into_parts();
        assert_eq!(of(&Strategy::RoundRobin, &head, HERE), None);
    }

    /// Proxies of different releases must agree: a change of these numbers moves every key.
    #[test]
    fn hashes_never_change() {
        assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(hash(b"gold"), mix(hash_by_hand(b"gold")));
    }

    fn hash_by_hand(bytes: &[u8]) -> u64 {
        let mut hash = 14_695_981_039_346_656_037;
        for byte in bytes {
            hash ^= u64::from(*byte);
            hash = u64::wrapping_mul(hash, 1_099_511_628_211);
        }
        hash
    }
}
