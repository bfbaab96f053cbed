//! The proxy's reader, with the guard behind it.

use std::net::SocketAddr;

use http::request::Parts;
use outrigger_proxy::client::{Peer, Trust};
use outrigger_proxy::guard::{self, RawQuery};
use outrigger_proxy::http1::server::transcript::{self, Exchange};

use super::{Read, Reading, comparable, sorted};

/// What the proxy makes of bytes that come in these pieces: the requests that it would forward.
pub fn read(pieces: &[&[u8]]) -> Reading {
    let (exchanges, mut refusal) = transcript::read(pieces);
    let mut requests = Vec::new();
    for exchange in exchanges {
        let keep_alive = exchange.keep_alive;
        match accepted(exchange) {
            Ok(read) => requests.push(read),
            Err(why) => {
                refusal = Some(why);
                break;
            }
        }
        if !keep_alive {
            refusal = Some(String::from("the connection is closed"));
            break;
        }
    }
    Reading { requests, refusal }
}

fn accepted(exchange: Exchange) -> Result<Read, String> {
    let read = Read {
        method: exchange.head.method.to_string(),
        target: target(&exchange.head),
        fields: sorted(exchange.head.headers.iter()),
        trailers: sorted(exchange.trailers.iter()),
        body: exchange.body,
    };
    let told = exchange.head.headers.contains_key("transfer-encoding");
    let body_ended = read.body.is_empty() && !told;
    let peer = Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), false);
    let trust = Trust::default();
    let context = guard::Context { peer: &peer, trust: &trust, sibling: false, random: 0 };
    let mut head = exchange.head;
    guard::request(&mut head, body_ended, &context).map_err(|rejection| rejection.message().to_owned())?;
    Ok(read)
}

fn target(head: &Parts) -> String {
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let mut text = path.to_owned();
    if let (Some(raw), Some(end)) = (head.extensions.get::<RawQuery>(), path.find('?')) {
        text = format!("{}{}", &path[..end], String::from_utf8_lossy(&raw.0));
    }
    match (head.uri.scheme_str(), head.uri.authority()) {
        (Some(scheme), Some(authority)) => comparable(&format!("{scheme}://{authority}{text}")),
        _ => text,
    }
}
