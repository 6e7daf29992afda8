//! Who is measured: a cgroup, and the name that outlives it.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Short name for people: container id, unit name or last path component.
    pub name: String,
    /// The name that survives restarts.
    pub model_key: ModelKey,
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
    /// 64-digit hexadecimal id as the last component with or without the runtime's prefix and
    /// `.scope`. Anything else is a plain cgroup whose model key is its path.
    pub fn from_path(path: &str) -> Self {
        let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/");
        if let Some(id) = container_id(last) {
            return Self {
                path: path.to_owned(),
                kind: WorkloadKind::Container,
                name: id.to_owned(),
                model_key: ModelKey(format!("container:{id}")),
            };
        }
        let is_unit = [".service", ".scope", ".slice"].iter().any(|suffix| last.ends_with(suffix));
        let (kind, key) = if is_unit {
            (WorkloadKind::Unit, format!("unit:{last}"))
        } else {
            (WorkloadKind::Cgroup, format!("cgroup:{path}"))
        };
        Self { path: path.to_owned(), kind, name: last.to_owned(), model_key: ModelKey(key) }
    }
}

/// The 64-digit container id in a cgroup directory name, if it has one.
fn container_id(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let start = stem.len().checked_sub(64)?;
    let id = stem.get(start..)?;
    let prefix_ends_cleanly = start == 0 || stem[..start].ends_with(['-', ':']);
    let is_hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (prefix_ends_cleanly && is_hex).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::{Workload, WorkloadKind};

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

    #[test]
    fn hostile_names_do_not_panic() {
        for path in
            ["", "/", "//", "/é", "/\u{1f980}.scope", "/-", &format!("/é{}", "a".repeat(63))]
        {
            let _identity = Workload::from_path(path);
        }
    }
}
