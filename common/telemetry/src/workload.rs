//! Who is measured: a cgroup, and the name that outlives it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{identity, printable, printable_within};

/// What kind of thing runs in the cgroup, told from its path.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// A cgroup nobody we know made.
    Cgroup,
    /// A container of Docker, containerd, CRI-O or podman.
    Container,
    /// A systemd service, scope or slice.
    Unit,
}

/// A workload as it exists now on one host.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Workload {
    /// Cgroup path below the hierarchy's root, beginning with `/`. The same in every hierarchy.
    pub path: String,
    /// What it is.
    pub kind: WorkloadKind,
    /// Short name for people: pod and container, container id, unit name or last path component.
    /// Safe to print.
    pub name: String,
    /// The name that survives restarts. Safe to print.
    pub model_key: ModelKey,
    /// What the container's runtime calls it; `None` where it is no container or nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<ContainerNames>,
}

/// Who runs a container.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd, for Kubernetes or alone.
    Containerd,
    /// CRI-O.
    CriO,
    /// podman.
    Podman,
}

impl Runtime {
    /// Name in model keys and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
        }
    }
}

/// What a container is called. Every text is safe to print and at most
/// [`ContainerNames::TEXT_BYTES_MAX`] bytes; `None` is not told.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ContainerNames {
    /// Who says so.
    pub runtime: Runtime,
    /// The container's own name.
    pub container: Option<String>,
    /// The image it was made of, as it was asked for.
    pub image: Option<String>,
    /// Name of the Kubernetes pod.
    pub pod: Option<String>,
    /// Namespace of the pod.
    pub namespace: Option<String>,
    /// Project and service of Docker Compose.
    pub compose: Option<(String, String)>,
}

impl ContainerNames {
    /// Longest text kept, bytes.
    pub const TEXT_BYTES_MAX: usize = 253;

    /// Names of which nothing is known yet but who tells them.
    pub fn of(runtime: Runtime) -> Self {
        Self { runtime, container: None, image: None, pod: None, namespace: None, compose: None }
    }

    /// `text` as it may be kept here; `None` when nothing is left.
    pub fn text(text: &str) -> Option<String> {
        let text = printable_within(text.trim(), Self::TEXT_BYTES_MAX);
        (!text.is_empty()).then_some(text)
    }

    /// Every text in it.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let compose = self.compose.iter().flat_map(|(project, service)| [project, service]);
        let named = [&self.container, &self.image, &self.pod, &self.namespace];
        named.into_iter().flatten().chain(compose).map(String::as_str)
    }

    /// The name that the container's successor will have too; `None` when there is none.
    fn stable(&self) -> Option<String> {
        if let (Some(namespace), Some(pod), Some(container)) =
            (&self.namespace, &self.pod, &self.container)
        {
            return Some(format!("k8s:{namespace}/{}/{container}", identity::pod_owner(pod)));
        }
        if let Some((project, service)) = &self.compose {
            return Some(format!("docker:{project}/{service}"));
        }
        let is_chosen = |name: &&String| !is_generated_name(name);
        if let Some(name) = self.container.as_ref().filter(is_chosen) {
            return Some(format!("{}:{name}", self.runtime.name()));
        }
        self.image.as_deref().map(|image| format!("image:{}", image_name(image)))
    }

    /// What people call it; `None` when it has no name.
    fn shown(&self) -> Option<String> {
        let container = self.container.as_deref()?;
        Some(match &self.pod {
            Some(pod) => format!("{pod}/{container}"),
            None => container.to_owned(),
        })
    }
}

/// Docker and podman give a container without a name two words and perhaps a digit.
fn is_generated_name(name: &str) -> bool {
    let words = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_word = |word: &str| word.len() > 2 && word.bytes().all(|b| b.is_ascii_lowercase());
    words.split_once('_').is_some_and(|(first, second)| is_word(first) && is_word(second))
}

/// An image without tag and digest, which change with every release.
fn image_name(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _digest)| name);
    match image.rsplit_once(':') {
        // A colon before the last slash is the port of the registry.
        Some((name, tag)) if !tag.contains('/') && !name.is_empty() => name,
        _ => image,
    }
}

/// Names what a workload *is*, so that its history is there when it comes back.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ModelKey(pub String);

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Workload {
    /// Identity from a cgroup path alone.
    ///
    /// Recognises systemd units (`*.service`, `*.scope`, `*.slice`), and containers by a
    /// 64-digit hexadecimal id in any component, with or without the runtime's prefix and
    /// `.scope`. Anything else is a plain cgroup whose model key is its path. What is generated
    /// anew at every start is left out of keys, see [`identity::stable_unit`].
    pub fn from_path(path: &str) -> Self {
        Self::named(path, None)
    }

    /// As [`Workload::from_path`], with what the runtime of the container calls it. Names of a path
    /// that is no container are left out.
    pub fn named(path: &str, names: Option<ContainerNames>) -> Self {
        if let Some(found) = identity::container_in(path) {
            let own_key = names.as_ref().and_then(ContainerNames::stable);
            let own_key = own_key.unwrap_or_else(|| format!("container:{}", found.id));
            let own_name = names.as_ref().and_then(ContainerNames::shown);
            let within = printable(found.within);
            let key = format!("{own_key}{}", identity::stable_path(&within));
            return Self {
                path: path.to_owned(),
                kind: WorkloadKind::Container,
                name: format!("{}{within}", own_name.as_deref().unwrap_or(found.id)),
                model_key: ModelKey(key),
                names,
            };
        }
        let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/");
        let is_unit = [".service", ".scope", ".slice"].iter().any(|suffix| last.ends_with(suffix));
        let (kind, key) = if is_unit {
            (WorkloadKind::Unit, format!("unit:{}", identity::stable_unit(&printable(last))))
        } else if identity::pod_uid(path).is_some() {
            (WorkloadKind::Cgroup, format!("cgroup:{}", identity::stable_path(&printable(path))))
        } else {
            (WorkloadKind::Cgroup, format!("cgroup:{}", printable(path)))
        };
        let name = printable(last).into_owned();
        Self { path: path.to_owned(), kind, name, model_key: ModelKey(key), names: None }
    }
}

#[cfg(test)]
mod tests {
    use super::{ContainerNames, Runtime, Workload, WorkloadKind};

    #[test]
    fn containers_keep_their_whole_id_at_any_depth() {
        let id = "b4d6".repeat(16);
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{id}.scope"
            ),
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/crio-{id}.scope"),
        ] {
            let workload = Workload::from_path(&path);
            assert_eq!(workload.kind, WorkloadKind::Container, "{path}");
            assert_eq!(workload.name, id, "{path}");
        }
    }

    #[test]
    fn units_are_named_by_their_unit() {
        let workload = Workload::from_path("/system.slice/nginx.service");
        assert_eq!(workload.kind, WorkloadKind::Unit);
        assert_eq!(workload.model_key.to_string(), "unit:nginx.service");
    }

    fn key(path: &str, names: ContainerNames) -> String {
        Workload::named(path, Some(names)).model_key.0
    }

    #[test]
    fn a_container_that_comes_back_has_the_key_it_had() {
        let (before, after) = ("a1".repeat(32), "b2".repeat(32));
        let k8s = |pod: &str| ContainerNames {
            container: Some("app".to_owned()),
            pod: Some(pod.to_owned()),
            namespace: Some("shop".to_owned()),
            ..ContainerNames::of(Runtime::Containerd)
        };
        let first = key(&format!("/kubepods/pod1/{before}"), k8s("web-7d4b9c6f5d-x7k2p"));
        assert_eq!(first, "k8s:shop/web/app");
        assert_eq!(first, key(&format!("/kubepods/pod2/{after}"), k8s("web-5c689d88bb-qqs9m")));
        let docker = |container: &str| ContainerNames {
            container: ContainerNames::text(container),
            image: ContainerNames::text("registry:5000/team/nginx:1.25@sha256:0"),
            ..ContainerNames::of(Runtime::Docker)
        };
        let path = format!("/docker/{before}");
        assert_eq!(key(&path, docker("web")), "docker:web");
        assert_eq!(key(&path, docker("silly_hopper3")), "image:registry:5000/team/nginx");
        let compose = Some(("shop".to_owned(), "web".to_owned()));
        assert_eq!(
            key(&path, ContainerNames { compose, ..docker("shop-web-1") }),
            "docker:shop/web"
        );
        let inner = format!("{path}/system.slice/run-u7.service");
        assert_eq!(key(&inner, docker("web")), "docker:web/system.slice/run-*.service");
        assert_eq!(Workload::named(&path, Some(docker("web"))).name, "web");
        assert_eq!(Workload::from_path(&path).model_key.0, format!("container:{before}"));
    }

    #[test]
    fn names_that_would_move_a_cursor_are_kept_out_of_names_and_keys() {
        let long = "x".repeat(240);
        let path = format!("/a\u{1b}[2J\n{long}");
        let workload = Workload::from_path(&path);
        assert_eq!(workload.path, path, "the path is what the kernel calls it");
        for shown in [&workload.name, &workload.model_key.0] {
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
        let text = ContainerNames::text(&format!("\u{7}{}", "é".repeat(1_000))).unwrap();
        assert!(text.len() <= ContainerNames::TEXT_BYTES_MAX && text.starts_with("\\u{7}"));
        assert_eq!(ContainerNames::text(" \n"), None);
    }

    #[test]
    fn hostile_names_do_not_panic() {
        for path in
            ["", "/", "//", "/é", "/\u{1f980}.scope", "/-", &format!("/é{}", "a".repeat(63))]
        {
            let _identity = Workload::from_path(path);
        }
    }
}
