//! What is known of who manages a cgroup: what its path says by itself, and what owners answer.

use headroom_telemetry::{
    Fact,
    identity::{container_in, pod_uid},
};

/// What a path says by itself; a claim, which the owner named has to confirm.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Claim<'a> {
    /// The unit whose name the last component is.
    pub unit: Option<&'a str>,
    /// The container whose own cgroup this is.
    pub container: Option<ContainerClaim<'a>>,
    /// Whether it is a pod's, a container of one, or one of kubelet's own slices.
    pub kubernetes: bool,
}

/// A container by its path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContainerClaim<'a> {
    /// Its id, 64 hexadecimal digits.
    pub id: &'a str,
    /// The engine that names cgroups like this one.
    pub engine: Engine,
}

/// Who names a container's cgroup so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// `docker-ID.scope`, `/docker/ID`.
    Docker,
    /// `libpod-ID.scope`, `libpod-ID`.
    Podman,
    /// An id and nothing else, below a parent that somebody chose.
    Any,
}

/// What owners answer about one cgroup.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Whether the controllers are in the unified hierarchy, v2.
    pub is_unified: bool,
    /// The unit that systemd says the cgroup belongs to, directly or further up.
    pub unit: Fact<UnitFacts>,
    /// The container as Docker knows it.
    pub docker: Fact<ContainerFacts>,
    /// The container as podman knows it.
    pub podman: Fact<ContainerFacts>,
}

/// A unit of the system's service manager.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnitFacts {
    /// Its name.
    pub name: String,
    /// Its cgroup below the hierarchy's root.
    pub control_group: String,
    /// Whether it was left the tree below its cgroup.
    pub delegates: bool,
}

/// A container as its engine knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContainerFacts {
    /// Its id.
    pub id: String,
    /// The Swarm task it runs for.
    pub swarm_task: Option<String>,
}

impl<'a> Claim<'a> {
    /// What `path` says by itself.
    pub fn of(path: &'a str) -> Self {
        let name = path.rsplit('/').next().unwrap_or("");
        let suffixes = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
        let unit =
            suffixes.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix));
        let container = container_in(path).filter(|found| found.within.is_empty());
        let parent = path[..path.len() - name.len()].trim_end_matches('/');
        let kubernetes =
            path.split('/').any(|part| part.contains("kubepods")) || pod_uid(path).is_some();
        Self {
            unit: unit.then_some(name),
            container: container
                .map(|found| ContainerClaim { id: found.id, engine: engine_of(name, parent) }),
            kubernetes,
        }
    }

    /// Whether nobody but the kernel could have made it what it is: there is no owner to look for.
    pub fn is_plain(&self) -> bool {
        self.unit.is_none() && self.container.is_none() && !self.kubernetes
    }
}

fn engine_of(name: &str, parent: &str) -> Engine {
    if name.starts_with("docker-") || parent.ends_with("/docker") {
        Engine::Docker
    } else if name.starts_with("libpod-") {
        Engine::Podman
    } else {
        Engine::Any
    }
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::{Claim, Engine};

    #[test]
    fn a_path_says_who_may_own_it() {
        let id = "a1".repeat(32);
        let engine = |path: &str| Claim::of(path).container.map(|container| container.engine);
        assert_eq!(engine(&format!("/system.slice/docker-{id}.scope")), Some(Engine::Docker));
        assert_eq!(engine(&format!("/docker/{id}")), Some(Engine::Docker));
        assert_eq!(engine(&format!("/machine.slice/libpod-{id}.scope")), Some(Engine::Podman));
        assert_eq!(engine(&format!("/default/{id}")), Some(Engine::Any));
        assert_eq!(engine(&format!("/machine.slice/libpod-{id}.scope/container")), None);
        assert_eq!(Claim::of("/system.slice/a.service").unit, Some("a.service"));
        assert_eq!(Claim::of("/system.slice").unit, Some("system.slice"));
        assert_eq!(Claim::of("/a/.slice").unit, None);
        assert!(Claim::of("/").is_plain() && Claim::of("/a/b").is_plain());
    }

    #[test]
    fn kubernetes_is_told_by_either_driver() {
        for path in [
            "/kubepods.slice",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/burstable/pod1b4e28ba-2fa1-11d2-883f-0016d3cca427",
            "/kubelet.slice/kubelet-kubepods.slice/x",
        ] {
            assert!(Claim::of(path).kubernetes, "{path}");
        }
        assert!(!Claim::of("/system.slice/kube-thing.service").kubernetes);
    }

    proptest! {
        #[test]
        fn any_path_says_something_or_nothing(path in "(/|é|[a-f0-9]{64}|docker-|\\.scope|pod){0,9}") {
            Claim::of(&path);
        }
    }
}
