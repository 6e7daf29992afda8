//! Who a series of another system is about: a host, and the workload as the live agent would name it.
//!
//! Model keys come out of [`Workload::named`], the code the agent names with, so that what is imported
//! and what is measured later are the same workload. Owner labels (`kube_pod_owner`) are not asked:
//! the agent does not see them either, and a key that only an import has would never meet a live one.

use std::collections::BTreeMap;

use headroom_telemetry::{ContainerNames, Runtime, Workload, identity};
use sha2::{Digest as _, Sha256};

use super::query::{LabelNames, Level};

/// Longest host name made, bytes.
const HOST_BYTES_MAX: usize = 200;

/// Labels of one series.
pub(super) type Labels = BTreeMap<String, String>;

/// Who a series is about.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Who {
    /// A workload on a host.
    Workload(Box<Workload>),
    /// Whatever runs in a pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
}

/// Tells the host; `missing` where no label does.
pub(super) fn host(labels: &Labels, names: &LabelNames, prefix: &str, missing: &str) -> String {
    let told = first(labels, &names.host).unwrap_or(missing);
    // An instance is a host and the port of its exporter.
    let told = match told.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => told,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain: String = told
        .trim_matches(['[', ']'])
        .chars()
        .map(|c| if is_plain(c) { c } else { '-' })
        .take(HOST_BYTES_MAX)
        .collect();
    format!("{prefix}{plain}")
}

/// Tells who `labels` are about.
///
/// # Errors
///
/// The name of a label that is needed and is not there.
pub(super) fn who(labels: &Labels, names: &LabelNames, level: Level) -> Result<Who, String> {
    let need =
        |candidates: &[String]| first(labels, candidates).ok_or_else(|| candidates.join(" or "));
    match level {
        Level::Host => Ok(Who::Workload(Box::new(Workload::from_path("/")))),
        Level::Pod => Ok(Who::Pod {
            namespace: need(&names.namespace)?.to_owned(),
            pod: need(&names.pod)?.to_owned(),
        }),
        Level::Container => {
            let (namespace, pod) = (need(&names.namespace)?, need(&names.pod)?);
            let container = need(&names.container)?;
            let path = container_path(labels, names, &[namespace, pod, container]);
            let told = ContainerNames {
                container: ContainerNames::text(container),
                pod: ContainerNames::text(pod),
                namespace: ContainerNames::text(namespace),
                image: first(labels, &names.image).and_then(ContainerNames::text),
                ..ContainerNames::of(runtime(&path, Runtime::Containerd))
            };
            Ok(Who::Workload(Box::new(Workload::named(&path, Some(told)))))
        }
        Level::Cgroup => cgroup(labels, names),
    }
}

/// A cgroup by its path; a container without one by its name.
fn cgroup(labels: &Labels, names: &LabelNames) -> Result<Who, String> {
    let path = first(labels, &names.path).filter(|path| path.starts_with('/'));
    let is_container = path.is_none_or(|path| identity::container_in(path).is_some());
    if let Some(path) = path.filter(|_| !is_container) {
        return Ok(Who::Workload(Box::new(Workload::from_path(path))));
    }
    let container = first(labels, &names.container);
    let image = first(labels, &names.image);
    if path.is_none() && container.is_none() {
        return Err([&names.path[..], &names.container[..]].concat().join(" or "));
    }
    let path = container_path(labels, names, &[container.unwrap_or_default()]);
    let compose = first(labels, &names.compose_project)
        .and_then(ContainerNames::text)
        .zip(first(labels, &names.compose_service).and_then(ContainerNames::text));
    let told = ContainerNames {
        container: container.and_then(ContainerNames::text),
        image: image.and_then(ContainerNames::text),
        compose,
        ..ContainerNames::of(runtime(&path, Runtime::Docker))
    };
    Ok(Who::Workload(Box::new(Workload::named(&path, Some(told)))))
}

/// The path of a container's cgroup. Where the source dropped it, one is made of a digest of its
/// names: it is where no cgroup is, and it is recognised as a container's.
fn container_path(labels: &Labels, names: &LabelNames, told: &[&str]) -> String {
    let path = first(labels, &names.path).filter(|path| identity::container_in(path).is_some());
    path.map_or_else(|| format!("/imported/{}", digest(told)), str::to_owned)
}

fn digest(told: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for text in told {
        hasher.update(text.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn runtime(path: &str, otherwise: Runtime) -> Runtime {
    [
        ("cri-containerd", Runtime::Containerd),
        ("crio-", Runtime::CriO),
        ("libpod-", Runtime::Podman),
        ("docker", Runtime::Docker),
    ]
    .into_iter()
    .find_map(|(part, runtime)| path.contains(part).then_some(runtime))
    .unwrap_or(otherwise)
}

/// The first of these labels that is there and not empty.
fn first<'a>(labels: &'a Labels, candidates: &[String]) -> Option<&'a str> {
    let there = candidates.iter().filter_map(|name| labels.get(name));
    there.map(String::as_str).find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{ContainerNames, Runtime, Workload};

    use super::{LabelNames, Labels, Level, Who, host, who};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn workload(pairs: &[(&str, &str)], level: Level) -> Workload {
        match who(&labels(pairs), &LabelNames::default(), level).unwrap() {
            Who::Workload(workload) => *workload,
            Who::Pod { .. } => panic!("a pod"),
        }
    }

    #[test]
    fn a_container_of_a_pod_is_who_the_agent_says_it_is() {
        let id = "b4d6".repeat(16);
        let path = format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope");
        let pod = "web-7d4b9c6f5d-x7k2p";
        let of_agent = Workload::named(
            &path,
            Some(ContainerNames {
                container: Some("app".to_owned()),
                image: Some("nginx:1".to_owned()),
                pod: Some(pod.to_owned()),
                namespace: Some("shop".to_owned()),
                ..ContainerNames::of(Runtime::Containerd)
            }),
        );
        let names = [("namespace", "shop"), ("pod", pod), ("container", "app")];
        let with_id = [&names[..], &[("id", &path), ("image", "nginx:1")]].concat();
        assert_eq!(workload(&with_id, Level::Container), of_agent);
        let without_id = workload(&names, Level::Container);
        assert_eq!(without_id.model_key, of_agent.model_key);
        assert_eq!(without_id.model_key.0, "k8s:shop/web/app");
        assert_eq!(without_id.name, of_agent.name);
        let other = [names[0], ("pod", "web-7d4b9c6f5d-qqs9m"), names[2]];
        assert_ne!(workload(&other, Level::Container).path, without_id.path);
    }

    #[test]
    fn cgroups_are_units_or_containers_with_their_names() {
        let unit = workload(&[("id", "/system.slice/nginx.service")], Level::Cgroup);
        assert_eq!(unit, Workload::from_path("/system.slice/nginx.service"));
        let web = workload(&[("container_name", "web"), ("cpu", "cpu-total")], Level::Cgroup);
        assert_eq!(web.model_key.0, "docker:web");
        let compose = [
            ("name", "shop-web-1"),
            ("container_label_com_docker_compose_project", "shop"),
            ("container_label_com_docker_compose_service", "web"),
        ];
        assert_eq!(workload(&compose, Level::Cgroup).model_key.0, "docker:shop/web");
    }

    #[test]
    fn what_no_label_tells_is_an_error_that_names_the_label() {
        let error = who(&labels(&[("pod", "a")]), &LabelNames::default(), Level::Container);
        assert!(error.unwrap_err().contains("namespace"));
        let names = LabelNames::default();
        assert_eq!(
            host(&labels(&[("instance", "10.0.0.1:9100")]), &names, "p-", "x"),
            "p-10.0.0.1"
        );
        assert_eq!(host(&labels(&[("node", "a/../b\u{1b}")]), &names, "p-", "x"), "p-a-..-b-");
        assert_eq!(host(&labels(&[]), &names, "p-", "default"), "p-default");
    }
}
