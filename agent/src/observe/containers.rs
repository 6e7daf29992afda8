//! What container runtimes keep on disk of a container: its name, image and pod.
//!
//! Files are only read, none beyond [`bounded::FILE_BYTES_MAX`], and no runtime is asked: a runtime
//! that hangs delays nobody. Names are looked up a few times, since a cgroup may be made before its
//! runtime has written, and remembered from then on.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use headroom_telemetry::{ContainerNames, Fact, Runtime};
use serde::Deserialize;

use super::{
    bounded::{self, Links},
    cgroup::layout::below,
};

/// Most containers remembered. Beyond it all are looked up again.
const REMEMBERED_MAX: usize = 8_192;

/// Most namespaces of containerd that are searched.
const NAMESPACES_MAX: usize = 16;

/// Looks after which a container without names is given up.
const LOOKS_MAX: u32 = 6;

/// Where containerd keeps the bundles of running containers, by namespace.
pub(super) const CONTAINERD_DIRS: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/k3s/containerd/io.containerd.runtime.v2.task",
];

/// Where CRI-O and podman keep them.
pub(super) const STORAGE_DIRS: [&str; 2] = [
    "/run/containers/storage/overlay-containers",
    "/var/lib/containers/storage/overlay-containers",
];

/// Names of containers, read below a root and remembered.
#[derive(Debug)]
pub struct ContainerFiles {
    root: PathBuf,
    remembered: HashMap<String, Looked>,
}

#[derive(Debug)]
struct Looked {
    names: Fact<ContainerNames>,
    looks: u32,
    next_tick: u64,
}

impl ContainerFiles {
    /// Of the host whose files are below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), remembered: HashMap::new() }
    }

    /// The names of container `id`, 64 hexadecimal digits; why there are none otherwise.
    ///
    /// Reads files at the first call for an id, and at later and later ticks while nothing is
    /// found. `tick` grows by one a period.
    pub fn names(&mut self, id: &str, tick: u64) -> &Fact<ContainerNames> {
        if self.remembered.len() >= REMEMBERED_MAX && !self.remembered.contains_key(id) {
            self.remembered.clear();
        }
        let Self { root, remembered } = self;
        let looked = remembered.entry(id.to_owned()).or_insert_with(|| Looked {
            names: Fact::unknown("not looked up yet"),
            looks: 0,
            next_tick: tick,
        });
        let is_due = looked.looks < LOOKS_MAX && tick >= looked.next_tick;
        if !looked.names.is_known() && is_due {
            looked.names = read_names(root, id);
            looked.looks += 1;
            looked.next_tick = tick + (1 << looked.looks);
        }
        &looked.names
    }
}

impl ContainerFiles {
    /// Why container `id` has no names; `None` when it has, or was never asked for.
    pub fn why_unnamed(&self, id: &str) -> Option<String> {
        self.remembered.get(id)?.names.reason().map(str::to_owned)
    }
}

/// Reads what any runtime says of `id`.
fn read_names(root: &Path, id: &str) -> Fact<ContainerNames> {
    let mut obstacle = None;
    let mut candidates = vec![(
        below(root, format!("/var/lib/docker/containers/{id}/config.v2.json")),
        Kind::Docker,
    )];
    for dir in CONTAINERD_DIRS {
        let namespaces = fs::read_dir(below(root, dir)).into_iter().flatten().flatten();
        candidates.extend(namespaces.take(NAMESPACES_MAX).map(|namespace| {
            (namespace.path().join(id).join("config.json"), Kind::Oci(Runtime::Containerd))
        }));
    }
    for dir in STORAGE_DIRS {
        let path = below(root, format!("{dir}/{id}/userdata/config.json"));
        candidates.push((path, Kind::Oci(Runtime::CriO)));
    }
    for (path, kind) in candidates {
        match bounded::read(&path, Links::Refused) {
            Ok(bytes) => match kind.parse(&bytes) {
                Some(names) if names.texts().next().is_some() => return Fact::Known(names),
                Some(_nameless) => {
                    obstacle
                        .get_or_insert(Fact::absent(format!("{} names nothing", path.display())));
                }
                None => {
                    obstacle = Some(Fact::unknown(format!("{} is not understood", path.display())));
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                obstacle = Some(Fact::unknown(format!("reading {}: {error}", path.display())));
            }
        }
    }
    obstacle.unwrap_or_else(|| {
        Fact::absent("no runtime keeps state of it where this process can see it")
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Docker,
    Oci(Runtime),
}

impl Kind {
    fn parse(self, bytes: &[u8]) -> Option<ContainerNames> {
        match self {
            Self::Docker => docker(bytes),
            Self::Oci(runtime) => oci(bytes, runtime),
        }
    }
}

/// The parts of Docker's `config.v2.json` that name a container.
#[derive(Deserialize)]
struct DockerState {
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Config")]
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Image")]
    image: Option<String>,
    #[serde(rename = "Labels")]
    labels: Option<DockerLabels>,
}

#[derive(Default, Deserialize)]
struct DockerLabels {
    #[serde(rename = "com.docker.compose.project")]
    project: Option<String>,
    #[serde(rename = "com.docker.compose.service")]
    service: Option<String>,
    #[serde(rename = "io.kubernetes.container.name")]
    container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    namespace: Option<String>,
}

fn text(value: Option<String>) -> Option<String> {
    ContainerNames::text(&value?)
}

fn docker(bytes: &[u8]) -> Option<ContainerNames> {
    let state: DockerState = serde_json::from_slice(bytes).ok()?;
    let (image, labels) = state.config.map_or((None, None), |config| (config.image, config.labels));
    let labels = labels.unwrap_or_default();
    let own_name = state.name.map(|name| name.trim_start_matches('/').to_owned());
    Some(ContainerNames {
        runtime: Runtime::Docker,
        container: text(labels.container).or_else(|| text(own_name)),
        image: text(image),
        pod: text(labels.pod),
        namespace: text(labels.namespace),
        compose: text(labels.project).zip(text(labels.service)),
    })
}

/// The parts of an OCI bundle's `config.json` that name a container.
#[derive(Deserialize)]
struct Bundle {
    annotations: Option<Annotations>,
}

/// Annotations of containerd's CRI plugin, of CRI-O, and of podman.
#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.container-type")]
    cri_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    cri_container: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    cri_pod: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    cri_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.image-name")]
    cri_image: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.ContainerType")]
    crio_type: Option<String>,
    #[serde(rename = "io.kubernetes.container.name")]
    crio_container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    crio_pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    crio_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.ImageName")]
    crio_image: Option<String>,
    #[serde(rename = "io.container.manager")]
    manager: Option<String>,
}

fn oci(bytes: &[u8], runtime: Runtime) -> Option<ContainerNames> {
    let bundle: Bundle = serde_json::from_slice(bytes).ok()?;
    let found = bundle.annotations.unwrap_or_default();
    let is_podman = found.manager.as_deref() == Some("libpod");
    let kind = found.cri_type.or(found.crio_type);
    let is_sandbox = kind.as_deref() == Some("sandbox");
    let container = text(found.cri_container.or(found.crio_container));
    Some(ContainerNames {
        runtime: if is_podman { Runtime::Podman } else { runtime },
        // The pause container holds the pod's namespaces and has no name of its own.
        container: if is_sandbox { Some("POD".to_owned()) } else { container },
        image: text(found.cri_image.or(found.crio_image)),
        pod: text(found.cri_pod.or(found.crio_pod)),
        namespace: text(found.cri_namespace.or(found.crio_namespace)),
        compose: None,
    })
}

#[cfg(test)]
#[path = "containers_tests.rs"]
mod tests;
