//! A Secret of the operator's own: made by the first replica that needs it, changed by the lease holder.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

/// The content of a Secret.
pub(crate) type Data = BTreeMap<String, ByteString>;

/// One Secret by name.
#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    namespace: String,
    name: String,
    owner: Option<String>,
}

/// What the Secret held, and which version of it.
pub(crate) struct Stored {
    /// The content.
    pub(crate) data: Data,
    secret: Secret,
}

impl Store {
    /// The Secret of this name. With an owner, the name of a Service, Kubernetes removes the Secret when that is gone.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, owner: Option<&str>) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            owner: owner.map(str::to_owned),
        }
    }

    /// What the Secret holds, if it is there.
    pub(crate) async fn read(&self) -> kube::Result<Option<Stored>> {
        Ok(self.api().get_opt(&self.name).await?.map(Stored::from))
    }

    /// Makes the Secret. Whoever comes first wins: `None` says that another replica did.
    pub(crate) async fn create(&self, data: Data) -> kube::Result<Option<Stored>> {
        let owner = match &self.owner {
            Some(owner) => Some(owner_reference(&self.client, &self.namespace, owner).await?),
            None => None,
        };
        let labels =
            [("app.kubernetes.io/name", "outrigger"), ("app.kubernetes.io/managed-by", "outrigger-operator")];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..Secret::default()
        };
        won(self.api().create(&PostParams::default(), &secret).await)
    }

    /// Replaces the content, unless somebody else did since it was read: then `None`.
    pub(crate) async fn replace(&self, stored: Stored, data: Data) -> kube::Result<Option<Stored>> {
        let secret = Secret { data: Some(data), ..stored.secret };
        won(self.api().replace(&self.name, &PostParams::default(), &secret).await)
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl From<Secret> for Stored {
    fn from(mut secret: Secret) -> Self {
        Self { data: secret.data.take().unwrap_or_default(), secret }
    }
}

fn won(written: kube::Result<Secret>) -> kube::Result<Option<Stored>> {
    match written {
        Ok(secret) => Ok(Some(secret.into())),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None), // AlreadyExists and Conflict
        Err(error) => Err(error),
    }
}

/// The reference that ties an object made at run time to the release: the garbage collector removes it with
/// the Service, so that uninstalling leaves nothing behind.
///
/// A Service and not the Deployment: one deletes a Deployment to recreate it, and the CA must outlive that.
///
/// # Errors
/// The Service cannot be read.
pub async fn owner_reference(
    client: &Client,
    namespace: &str,
    service: &str,
) -> kube::Result<OwnerReference> {
    let service = Api::<Service>::namespaced(client.clone(), namespace).get(service).await?;
    Ok(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.name_any(),
        uid: service.uid().unwrap_or_default(),
        ..OwnerReference::default()
    })
}
