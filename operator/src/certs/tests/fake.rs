//! As much of an API server as the Secrets and webhook configurations need: objects by path, resource
//! versions, conflicts, JSON patches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[derive(Clone)]
pub(crate) struct Fake {
    address: SocketAddr,
    objects: Objects,
}

type Objects = Arc<Mutex<HashMap<String, Value>>>;

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let objects = Objects::default();
        let held = objects.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let held = held.clone();
                let service = service_fn(move |request| answer(request, held.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        let fake = Self { address, objects };
        fake.put(
            "/api/v1/namespaces/system/services/outrigger-push",
            json!({"metadata": {"name": "outrigger-push", "uid": "service-uid"}}),
        );
        for kind in ["mutating", "validating"] {
            let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/outrigger");
            let webhook = json!({"name": "a.outrigger.dev", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]});
            fake.put(&path, json!({"metadata": {"name": "outrigger"}, "webhooks": [webhook]}));
        }
        fake
    }

    pub(crate) fn client(&self) -> kube::Client {
        let uri = format!("http://{}", self.address).parse().expect("a URI");
        kube::Client::try_from(kube::Config::new(uri)).expect("a client")
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().get(path).cloned()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.objects.lock().insert(path.to_owned(), object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.objects.lock().remove(path);
    }
}

async fn answer(request: Request<Incoming>, objects: Objects) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut objects = objects.lock();
    let (code, object) = match method {
        Method::GET => objects.get(&path).map_or((404, Value::Null), |object| (200, object.clone())),
        Method::POST => {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().expect("a name"));
            if objects.contains_key(&path) {
                (409, Value::Null)
            } else {
                (201, store(&mut objects, path, body))
            }
        }
        Method::PUT => {
            let held = objects.get(&path).map(|object| object["metadata"]["resourceVersion"].clone());
            if held.as_ref() == Some(&body["metadata"]["resourceVersion"]) {
                (200, store(&mut objects, path, body))
            } else {
                (409, Value::Null)
            }
        }
        _ => {
            let mut object = objects[&path].clone();
            let patch: json_patch::Patch = serde_json::from_value(body).expect("a JSON patch");
            json_patch::patch(&mut object, &patch).expect("applies");
            (200, store(&mut objects, path, object))
        }
    };
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    let object = if object.is_null() {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": ""})
    } else {
        object
    };
    let response = Response::builder().status(code).body(Full::from(object.to_string()));
    Ok(response.expect("a response"))
}

fn store(objects: &mut HashMap<String, Value>, path: String, mut object: Value) -> Value {
    let version = objects.get(&path).map_or(0, |held| {
        held["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    });
    object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
    objects.insert(path, object.clone());
    object
}
