//! Who a client is, as far as hops that may be believed say so.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;
use ipnet::IpNet;

/// The other end of a connection that the proxy accepted: made once for each connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// Whether the connection is TLS.
    pub tls: bool,
    ip: IpAddr,
    text: HeaderValue,
}

impl Peer {
    /// A peer that nothing is known of but its connection.
    pub fn new(address: SocketAddr, tls: bool) -> Self {
        let ip = address.ip().to_canonical();
        let text = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, tls, ip, text }
    }

    /// The peer's address; an IPv4 address is one even on a socket of both families.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The same as text, ready for `X-Forwarded-For`.
    pub fn text(&self) -> &HeaderValue {
        &self.text
    }
}

/// Which hops before the proxy may say who the client is. The default believes nobody.
///
/// A hop is trusted for its place, or for its network: the rightmost hop is the peer itself, the one before it is
/// the last address of the `X-Forwarded-For` that the peer sent, and so on. With a count alone this is Envoy's
/// `numTrustedHops`.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    hops: u8,
    networks: Vec<IpNet>,
}

impl Trust {
    /// Trusts the `hops` nearest hops, and every hop in one of these networks.
    pub fn new(hops: u8, networks: Vec<IpNet>) -> Self {
        Self { hops, networks }
    }

    /// The same trust as seen from behind a sibling, which passes on what it heard.
    pub fn one_hop_later(&self) -> Self {
        Self { hops: self.hops.saturating_add(1), networks: self.networks.clone() }
    }

    /// Whether what this peer says about others is believed.
    pub fn trusts(&self, peer: &Peer) -> bool {
        self.hops > 0 || self.is_trusted(0, peer.ip)
    }

    /// The rightmost address that no trusted hop has: the client.
    ///
    /// `forwarded_for` are the lines of `X-Forwarded-For` as they came. The walk ends at the first member that is
    /// no address: whoever stands left of it cannot be vouched for.
    pub fn client<'v>(&self, peer: &Peer, lines: impl DoubleEndedIterator<Item = &'v HeaderValue>) -> IpAddr {
        let mut client = peer.ip;
        let members = lines.rev().flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        for (place, member) in members.enumerate() {
            if !self.is_trusted(place, client) {
                break;
            }
            let Some(address) = address(member) else { break };
            client = address;
        }
        client
    }

    fn is_trusted(&self, place: usize, address: IpAddr) -> bool {
        place < usize::from(self.hops) || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// One member of `X-Forwarded-For`: an address, for some proxies with a port.
fn address(member: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(member).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let plain = bare.parse::<IpAddr>().ok();
    plain.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip())).map(|ip| ip.to_canonical())
}

/// Who sent a request, after trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The rightmost address that no trusted hop has.
    pub address: IpAddr,
    /// Whether the client speaks TLS: to the proxy, or to a trusted hop that says so.
    pub secure: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trust: &Trust, peer: &str, lines: &[&'static str]) -> String {
        let peer = Peer::new(peer.parse().unwrap(), false);
        let lines: Vec<_> = lines.iter().map(|line| HeaderValue::from_static(line)).collect();
        trust.client(&peer, lines.iter()).to_string()
    }

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|network| network.parse().unwrap()).collect()
    }

    #[test]
    fn nobody_is_believed_by_default() {
        assert_eq!(client(&Trust::default(), "10.0.0.1:9", &["6.6.6.6"]), "10.0.0.1");
    }

    #[test]
    fn hops_are_counted_from_the_right() {
        let lines = ["6.6.6.6, 1.1.1.1", "2.2.2.2"];
        for (hops, expected) in
            [(0, "10.0.0.1"), (1, "2.2.2.2"), (2, "1.1.1.1"), (3, "6.6.6.6"), (9, "6.6.6.6")]
        {
            assert_eq!(client(&Trust::new(hops, Vec::new()), "10.0.0.1:9", &lines), expected, "{hops}");
        }
    }

    #[test]
    fn hops_are_trusted_for_their_network() {
        let trust = Trust::new(0, networks(&["10.0.0.0/8", "fd00::/8"]));
        for (peer, line, expected) in [
            ("10.0.0.1:9", "6.6.6.6, 1.1.1.1, 10.3.3.3", "1.1.1.1"),
            ("10.0.0.1:9", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
            ("10.0.0.1:9", "", "10.0.0.1"),
            ("10.0.0.1:9", "6.6.6.6, unknown", "10.0.0.1"),
            ("10.0.0.1:9", "6.6.6.6, unknown, 10.3.3.3", "10.3.3.3"),
            ("10.0.0.1:9", "1.1.1.1:443", "1.1.1.1"),
            ("10.0.0.1:9", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1:9", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1:9", "[2001:db8::1]:443", "2001:db8::1"),
            ("[fd00::1]:9", "1.1.1.1", "1.1.1.1"),
            ("[::ffff:10.0.0.1]:9", "::ffff:1.1.1.1", "1.1.1.1"),
            ("9.9.9.9:9", "1.1.1.1, 10.3.3.3", "9.9.9.9"),
        ] {
            assert_eq!(client(&trust, peer, &[line.to_owned().leak()]), expected, "{peer} {line}");
        }
    }

    #[test]
    fn peers_are_trusted_for_place_or_network() {
        let peer = Peer::new("10.0.0.1:9".parse().unwrap(), true);
        assert!(!Trust::default().trusts(&peer));
        assert!(Trust::new(1, Vec::new()).trusts(&peer));
        assert!(Trust::new(0, networks(&["10.0.0.0/8"])).trusts(&peer));
        assert!(!Trust::new(0, networks(&["11.0.0.0/8"])).trusts(&peer));
    }

    #[test]
    fn behind_a_sibling_the_client_is_the_same() {
        let sibling = "10.9.9.9:1";
        for trust in [
            Trust::default(),
            Trust::new(1, Vec::new()),
            Trust::new(2, Vec::new()),
            Trust::new(0, networks(&["10.0.0.0/24"])),
        ] {
            for (peer, line) in
                [("10.0.0.1:9", "6.6.6.6, 10.0.0.7"), ("9.9.9.9:9", "6.6.6.6"), ("10.0.0.1:9", "1.1.1.1")]
            {
                let direct = client(&trust, peer, &[line]);
                // What the sibling passes on: the line with its own peer added, or the peer alone.
                let ip = peer.trim_end_matches(":9");
                let believed = trust.trusts(&Peer::new(peer.parse().unwrap(), false));
                let passed = if believed { format!("{line}, {ip}") } else { ip.to_owned() };
                assert_eq!(
                    client(&trust.one_hop_later(), sibling, &[passed.leak()]),
                    direct,
                    "{peer} {line}"
                );
            }
        }
    }

    #[test]
    fn peer_text_is_the_plain_address() {
        let text = |address: &str| Peer::new(address.parse().unwrap(), false).text().clone();
        assert_eq!(text("[::ffff:10.0.0.1]:9"), "10.0.0.1");
        assert_eq!(text("[2001:db8::1]:9"), "2001:db8::1");
    }
}
