//! A worker for machines without Node: the same paths as `deploy/workers/server.js`, as far as the demo shows them.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "an example for people")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve());
}

async fn serve() {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8081);
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("PORT is free");
    println!("{{\"message\":\"worker listening\",\"port\":{port}}}");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = |name: &str| -> Option<u64> {
        let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
    };
    let status = match request.uri().path() {
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(query("ms").unwrap_or(1000).min(60_000))).await;
            StatusCode::OK
        }
        "/fail" => {
            let status = query("status").and_then(|status| u16::try_from(status).ok());
            status
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        }
        _ => StatusCode::OK,
    };
    let name = std::env::var("WORKER_NAME").unwrap_or_else(|_| "worker".to_owned());
    let text = format!("{{\"worker\":\"{name}\",\"pid\":{}}}\n", std::process::id());
    let answer = Response::builder().status(status).header("content-type", "application/json");
    Ok(answer.body(Full::new(Bytes::from(text))).expect("a valid answer"))
}
