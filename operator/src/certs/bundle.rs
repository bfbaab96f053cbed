//! Keeps the `caBundle` of the webhook configurations what it must be, also when an upgrade of the chart
//! wrote them anew.

use std::fmt::Debug;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::json;

/// Writes the bundle into both configurations where it differs. A configuration without a name is not used.
pub(super) async fn apply(
    client: &Client,
    mutating: Option<&str>,
    validating: Option<&str>,
    bundle: &str,
) -> kube::Result<()> {
    if let Some(name) = mutating {
        let held = |configuration: MutatingWebhookConfiguration| {
            let webhooks = configuration.webhooks.unwrap_or_default().into_iter();
            webhooks.map(|webhook| (webhook.name, webhook.client_config.ca_bundle)).collect()
        };
        write(Api::all(client.clone()), name, bundle, held).await?;
    }
    if let Some(name) = validating {
        let held = |configuration: ValidatingWebhookConfiguration| {
            let webhooks = configuration.webhooks.unwrap_or_default().into_iter();
            webhooks.map(|webhook| (webhook.name, webhook.client_config.ca_bundle)).collect()
        };
        write(Api::all(client.clone()), name, bundle, held).await?;
    }
    Ok(())
}

/// The webhooks of a configuration: their names and the bundles they hold.
type Webhooks = Vec<(String, Option<ByteString>)>;

async fn write<K>(api: Api<K>, name: &str, bundle: &str, held: impl Fn(K) -> Webhooks) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    let Some(configuration) = api.get_opt(name).await? else { return Ok(()) }; // the chart may be half installed
    if let Some(patch) = difference(&held(configuration), bundle) {
        api.patch(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await?;
        tracing::info!(configuration = name, "wrote the CA bundle");
    }
    Ok(())
}

/// The patch that gives every webhook the bundle; `None` when all have it. Each change is bound to the
/// webhook's name: the list may have been reordered since it was read.
fn difference(held: &[(String, Option<ByteString>)], bundle: &str) -> Option<json_patch::Patch> {
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let operations: Vec<_> = held
        .iter()
        .enumerate()
        .filter(|(_, (_, has))| has.as_ref() != Some(&wanted))
        .flat_map(|(i, (name, _))| {
            [
                json!({"op": "test", "path": format!("/webhooks/{i}/name"), "value": name}),
                json!({"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": wanted}),
            ]
        })
        .collect();
    if operations.is_empty() {
        return None;
    }
    serde_json::from_value(operations.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let right = Some(ByteString(b"PEM".to_vec()));
        let wrong = Some(ByteString(b"old".to_vec()));
        let held = [("a".to_owned(), right.clone()), ("b".to_owned(), None), ("c".to_owned(), wrong)];
        let patch = difference(&held, "PEM").expect("differs");
        let mut configuration = json!({"webhooks": [
            {"name": "a", "clientConfig": {"caBundle": "UEVN"}},
            {"name": "b", "clientConfig": {}},
            {"name": "c", "clientConfig": {"caBundle": "b2xk"}},
        ]});
        assert_eq!(patch.0.len(), 4);
        json_patch::patch(&mut configuration, &patch).expect("applies");
        for webhook in configuration["webhooks"].as_array().expect("list") {
            assert_eq!(webhook["clientConfig"]["caBundle"], "UEVN");
        }
        assert_eq!(difference(&[("a".to_owned(), right)], "PEM"), None);
    }

    #[test]
    fn a_list_that_was_reordered_is_not_touched() {
        let patch = difference(&[("a".to_owned(), None)], "PEM").expect("differs");
        let mut configuration = json!({"webhooks": [{"name": "b", "clientConfig": {}}]});
        assert!(json_patch::patch(&mut configuration, &patch).is_err());
    }
}
