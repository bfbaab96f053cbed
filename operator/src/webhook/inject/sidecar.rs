//! The proxy's container and volumes. They pass the `restricted` Pod Security Standard.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
    HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, Probe, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use outrigger_policy::wire::AUDIENCE;

use super::{CONTAINER, SIBLING_PORT_NAME, Settings, Worker};

const STATE_VOLUME: &str = "outrigger-state";
const STATE_DIRECTORY: &str = "/var/lib/outrigger";
const TOKEN_VOLUME: &str = "outrigger-token";
const TOKEN_DIRECTORY: &str = "/var/run/secrets/outrigger.dev";
const ADMIN_PORT_NAME: &str = "outrigger-admin";
/// Where the image has the proxy.
const PROGRAM: &str = "/usr/local/bin/outrigger-proxy";
/// The user `nonroot` of the image.
const USER: i64 = 65532;

pub(super) fn container(settings: &Settings, workers: &[Worker], trust_bundle: &str) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.proxy_image.clone()),
        image_pull_policy: Some(settings.proxy_image_pull_policy.clone()),
        args: Some(vec!["serve".to_owned()]),
        restart_policy: Some("Always".to_owned()), // a native sidecar: it starts before the workers and ends after them
        ports: Some(vec![
            port("outrigger", settings.proxy_port),
            port(ADMIN_PORT_NAME, settings.proxy_admin_port),
            port(SIBLING_PORT_NAME, settings.proxy_sibling_port),
        ]),
        env: Some(environment(settings, workers, trust_bundle)),
        lifecycle: Some(drain_first()),
        // The workers start only once this has passed, so it must not wait for them.
        startup_probe: Some(probe("/livez", 1, 120)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        resources: resources(settings),
        security_context: Some(security_context()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            VolumeMount {
                name: STATE_VOLUME.to_owned(),
                mount_path: STATE_DIRECTORY.to_owned(),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: TOKEN_VOLUME.to_owned(),
                mount_path: TOKEN_DIRECTORY.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

pub(super) fn volumes() -> [Volume; 2] {
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(3600),
        path: "token".to_owned(),
    };
    let token = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    [
        Volume {
            name: STATE_VOLUME.to_owned(),
            // A last good policy is far smaller; the limit is there for what nobody thought of.
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity("64Mi".to_owned())),
                medium: None,
            }),
            ..Volume::default()
        },
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![token]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

fn environment(settings: &Settings, workers: &[Worker], trust_bundle: &str) -> Vec<EnvVar> {
    let workers: Vec<_> =
        workers.iter().map(|Worker { name, port }| format!("{name}=127.0.0.1:{port}")).collect();
    let field = |name: &str, path: &str| {
        let selector = ObjectFieldSelector { field_path: path.to_owned(), api_version: None };
        let source = EnvVarSource { field_ref: Some(selector), ..EnvVarSource::default() };
        EnvVar { name: name.to_owned(), value_from: Some(source), value: None }
    };
    let value =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    let mut environment = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("NODE_NAME", "spec.nodeName"),
        field("OUTRIGGER_INSTANCE", "metadata.uid"),
        value("OUTRIGGER_WORKERS", workers.join(",")),
        value("OUTRIGGER_LISTEN", format!("0.0.0.0:{}", settings.proxy_port)),
        value("OUTRIGGER_ADMIN_LISTEN", format!("0.0.0.0:{}", settings.proxy_admin_port)),
        value("OUTRIGGER_SIBLING_LISTEN", format!("0.0.0.0:{}", settings.proxy_sibling_port)),
        value("OUTRIGGER_OPERATOR", settings.push_address.clone()),
        value("OUTRIGGER_OPERATOR_CA", trust_bundle.to_owned()),
        value("OUTRIGGER_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/token")),
        value("OUTRIGGER_STATE_DIR", STATE_DIRECTORY.to_owned()),
        value("OUTRIGGER_LOG", settings.proxy_log.clone()),
    ];
    let optional = [
        ("OUTRIGGER_TRUSTED_HOPS", &settings.proxy_trusted_hops),
        ("OUTRIGGER_TRUSTED_NETWORKS", &settings.proxy_trusted_networks),
        ("OUTRIGGER_MAX_CONNECTIONS", &settings.proxy_max_connections),
    ];
    let set = optional.into_iter().filter(|(_, text)| !text.is_empty());
    environment.extend(set.map(|(name, text)| value(name, text.clone())));
    environment
}

fn resources(settings: &Settings) -> Option<ResourceRequirements> {
    let amounts = |cpu: &str, memory: &str| {
        let amounts: BTreeMap<_, _> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter(|(_, amount)| !amount.is_empty())
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    Some(ResourceRequirements {
        requests: amounts(&settings.proxy_cpu_request, &settings.proxy_memory_request),
        limits: amounts(&settings.proxy_cpu_limit, &settings.proxy_memory_limit),
        claims: None,
    })
}

fn security_context() -> SecurityContext {
    SecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        read_only_root_filesystem: Some(true),
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A native sidecar gets its SIGTERM only after the workers have ended: too late to send the clients of kept
/// connections elsewhere. The hooks of all containers run at once when the pod begins to end, so it drains then.
fn drain_first() -> Lifecycle {
    let command = vec![PROGRAM.to_owned(), "drain".to_owned()];
    let exec = Some(ExecAction { command: Some(command) });
    let handler = LifecycleHandler { exec, ..LifecycleHandler::default() };
    Lifecycle { pre_stop: Some(handler), ..Lifecycle::default() }
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
