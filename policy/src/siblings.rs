//! What a proxy learns of the pods beside its own, and how it proves to them that it is one of them.
//!
//! The list of siblings comes with the push: whole at first, then as differences. Its version is the hash of its
//! content, so a stream of another replica goes on where the last one ended. The certificate is asked for: a
//! `POST /push/v1/certify` with a signing request, whose key never leaves the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The path that takes a `CertificateRequest`.
pub const CERTIFY_PATH: &str = "/push/v1/certify";

/// The domain of the names in siblings' certificates. It is never looked up.
const DOMAIN: &str = "siblings.outrigger.dev";

/// One pod of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sibling {
    /// The pod's UID.
    pub instance: String,
    /// The pod's name, for logs and for people.
    pub pod: String,
    /// Where its proxy takes requests of siblings.
    pub address: SocketAddr,
    /// The zone of its node; empty where the node names none. All those are one zone.
    pub zone: String,
    /// Whether its proxy serves: not stopping, and with a usable worker.
    pub ready: bool,
    /// The names of its workers.
    pub workers: Vec<String>,
    /// Its version, where a canary tells pods apart and the pod has the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The workload that its certificate is for. Absent: that of the proxy that reads this, as where one controller
    /// made all pods of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

/// What changes in a list of siblings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingsChange {
    /// The version that it changes; absent: the list is whole, and replaces whatever was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The version that it makes.
    pub version: String,
    /// Siblings that are new or changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upsert: Vec<Sibling>,
    /// The instances that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// All pods that serve for each other, the proxy's own among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Siblings {
    version: String,
    members: BTreeMap<String, Sibling>,
}

/// Why a change cannot be applied: the list must be had whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApplicable {
    /// It changes another list.
    #[error("the change is of version {0}, which is not held")]
    Base(String),
    /// The result is not what it says.
    #[error("the changed list is version {found}, not {said}")]
    Version {
        /// What the change says it makes.
        said: String,
        /// What it made.
        found: String,
    },
}

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// A certificate signing request (PKCS #10) in PEM. Only its key counts: who asks is known from the token.
    pub csr: String,
}

/// A certificate for the sibling port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// The certificate, in PEM.
    pub certificate: String,
    /// The workload that it is for, as `workload_name` takes it.
    pub workload: String,
    /// In how many seconds another should be asked for.
    pub renew_after_seconds: u64,
    /// In how many seconds it expires.
    pub expires_after_seconds: u64,
}

impl Siblings {
    /// The list of these.
    pub fn new(members: impl IntoIterator<Item = Sibling>) -> Self {
        let members = members.into_iter().map(|sibling| (sibling.instance.clone(), sibling)).collect();
        let mut siblings = Self { version: String::new(), members };
        siblings.version = siblings.hash();
        siblings
    }

    /// The hash of the content. That of the default is empty: nothing was ever said.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The members, by instance.
    pub fn members(&self) -> impl Iterator<Item = &Sibling> {
        self.members.values()
    }

    /// One of them.
    pub fn get(&self, instance: &str) -> Option<&Sibling> {
        self.members.get(instance)
    }

    /// The workloads that the certificates of members are for, as far as they are said, each once.
    pub fn workloads(&self) -> BTreeSet<&str> {
        self.members.values().filter_map(|sibling| sibling.workload.as_deref()).collect()
    }

    /// What makes this list of `base`; of nothing: all of it.
    pub fn change_from(&self, base: Option<&Self>) -> SiblingsChange {
        let empty = BTreeMap::new();
        let before = base.map_or(&empty, |base| &base.members);
        let new = self.members.values().filter(|sibling| before.get(&sibling.instance) != Some(sibling));
        let gone = before.keys().filter(|instance| !self.members.contains_key(*instance));
        SiblingsChange {
            base: base.map(|base| base.version.clone()),
            version: self.version.clone(),
            upsert: new.cloned().collect(),
            remove: gone.cloned().collect(),
        }
    }

    /// The list after a change.
    ///
    /// # Errors
    /// It is a change of another list. This one then stays, and the whole list must be asked for.
    pub fn after(&self, change: SiblingsChange) -> Result<Self, NotApplicable> {
        let mut members = match change.base {
            None => BTreeMap::new(),
            Some(base) if base == self.version => self.members.clone(),
            Some(base) => return Err(NotApplicable::Base(base)),
        };
        for instance in &change.remove {
            members.remove(instance);
        }
        members.extend(change.upsert.into_iter().map(|sibling| (sibling.instance.clone(), sibling)));
        let mut next = Self { version: String::new(), members };
        next.version = next.hash();
        if next.version != change.version {
            return Err(NotApplicable::Version { said: change.version, found: next.version });
        }
        Ok(next)
    }

    fn hash(&self) -> String {
        let members: Vec<_> = self.members.values().collect();
        let content = serde_json::to_vec(&members).unwrap_or_default(); // plain data always serializes
        short_hash(&content)
    }
}

/// What tells a workload from all others, from the parts of its name.
pub fn workload_id(parts: &[&str]) -> String {
    // No part holds a zero byte, so two lists of parts never look the same.
    let hash = digest::digest(&digest::SHA256, parts.join("\0").as_bytes());
    hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that the certificates of all proxies of a workload have.
pub fn workload_name(workload: &str) -> String {
    format!("{workload}.{DOMAIN}")
}

/// The name that the certificate of one proxy has, and no other: that of its pod and workload.
pub fn instance_name(workload: &str, instance: &str) -> String {
    format!("{instance}.{workload}.{DOMAIN}")
}

fn short_hash(content: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(&digest::digest(&digest::SHA256, content).as_ref()[..16])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sibling(i: u8, ready: bool, zone: u8) -> Sibling {
        Sibling {
            instance: format!("uid-{i}"),
            pod: format!("web-{i}"),
            address: SocketAddr::from(([10, 0, 0, i], 8001)),
            zone: format!("zone-{zone}"),
            ready,
            workers: vec![String::from("worker-a")],
            version: (zone != 0).then(|| format!("v{zone}")),
            workload: ready.then(|| format!("w{zone}")),
        }
    }

    fn lists() -> impl Strategy<Value = Siblings> {
        prop::collection::vec((0..12u8, any::<bool>(), 0..3u8), 0..12).prop_map(|members| {
            Siblings::new(members.into_iter().map(|(i, ready, zone)| sibling(i, ready, zone)))
        })
    }

    proptest! {
        /// Whatever lists came before, differences lead to the same list as having it whole.
        #[test]
        fn differences_lead_where_the_whole_leads(all in prop::collection::vec(lists(), 1..8)) {
            let mut held = Siblings::default().after(all[0].change_from(None)).expect("a whole list applies");
            for pair in all.windows(2) {
                let change = pair[1].change_from(Some(&pair[0]));
                let line = serde_json::to_string(&change).expect("serializes");
                let change: SiblingsChange = serde_json::from_str(&line).expect("reads back");
                held = held.after(change).expect("a change of what is held applies");
                prop_assert_eq!(&held, &pair[1]);
                let whole = Siblings::default().after(pair[1].change_from(None)).expect("applies");
                prop_assert_eq!(&held, &whole);
            }
        }

        /// A change of another list is refused, unless both are the same.
        #[test]
        fn a_change_of_another_list_is_refused(one in lists(), two in lists(), three in lists()) {
            let applied = one.after(three.change_from(Some(&two)));
            prop_assert_eq!(applied.is_ok(), one == two);
        }
    }

    #[test]
    fn a_change_says_no_more_than_what_changes() {
        let before = Siblings::new([sibling(1, true, 0), sibling(2, true, 0), sibling(3, true, 0)]);
        let after = Siblings::new([sibling(1, true, 0), sibling(2, false, 0), sibling(4, true, 0)]);
        let change = after.change_from(Some(&before));
        let upserted: Vec<_> = change.upsert.iter().map(|sibling| sibling.pod.as_str()).collect();
        assert_eq!((upserted, change.remove), (vec!["web-2", "web-4"], vec![String::from("uid-3")]));
        assert!(matches!(
            before.after(SiblingsChange { version: String::from("x"), ..SiblingsChange::default() }),
            Err(NotApplicable::Version { .. })
        ));
    }

    #[test]
    fn workloads_are_told_apart() {
        let id = workload_id(&["shop", "Deployment", "web"]);
        assert_eq!(id.len(), 32);
        assert_ne!(id, workload_id(&["shop", "Deployment", "we", "b"]));
        assert_ne!(id, workload_id(&["shop", "StatefulSet", "web"]));
        assert!(instance_name(&id, "3b0f").ends_with(&workload_name(&id)));
    }
}
