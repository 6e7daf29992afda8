//! Who is asked to change a limit, and what giving it back takes; pure.

use std::fmt;

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::{Fact, Resource};
use serde::{Deserialize, Serialize};

use super::facts::{Claim, ContainerFacts, Engine, Facts};
use crate::observe::cgroup::weights::Weigher;

/// Who holds a limit and is asked to change it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Owner {
    /// A unit of the system's service manager, at run time only.
    Systemd {
        /// The unit's name.
        unit: String,
    },
    /// A container of the node's Docker Engine.
    Docker {
        /// Its id.
        id: String,
        /// The Swarm task it runs for.
        swarm_task: Option<String>,
    },
    /// A container of podman's service.
    Podman {
        /// Its id.
        id: String,
    },
}

/// Which service an owner is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// systemd.
    Systemd,
    /// Docker Engine.
    Docker,
    /// podman.
    Podman,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Systemd, Self::Docker, Self::Podman];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

impl Owner {
    /// Which service it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Systemd { .. } => Kind::Systemd,
            Self::Docker { .. } => Kind::Docker,
            Self::Podman { .. } => Kind::Podman,
        }
    }

    /// The nearest value at or above `limit` that the owner keeps as it is told.
    ///
    /// runc and crun hand a quota to systemd in whole percent of a CPU, rounded up.
    pub fn keeps(&self, knob: Knob, limit: Limit) -> Limit {
        match (self, limit) {
            (Self::Docker { .. } | Self::Podman { .. }, Limit::At(cores))
                if knob.resource() == Some(Resource::Cpu) =>
            {
                // What is a whole percent but for the last bits of its number stays.
                Limit::At((cores * 100.0 - 1e-6).ceil() / 100.0)
            }
            _ => limit,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &str| id.chars().take(12).collect::<String>();
        match self {
            Self::Systemd { unit } => write!(f, "systemd unit {unit}"),
            Self::Docker { id, swarm_task: None } => write!(f, "Docker container {}", short(id)),
            Self::Docker { id, swarm_task: Some(task) } => {
                write!(f, "Docker container {} of Swarm task {}", short(id), short(task))
            }
            Self::Podman { id } => write!(f, "podman container {}", short(id)),
        }
    }
}

/// Why a limit is not changed at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NoRoute {
    /// The kubelet's, and the guard's rule does not say that it may be changed.
    Kubernetes,
    /// An owner that should know did not say.
    Unknown(String),
}

/// Who is asked to change `knob` of the cgroup at `path`; `None` is nobody: the file is written.
///
/// A container's engine comes first, because it writes over what others tell systemd; systemd
/// next, for units and for what an engine does not know of, such as `memory.high`.
///
/// # Errors
/// When it must not be changed, or an owner that may well be the one cannot be asked.
pub fn route(
    path: &str,
    facts: &Facts,
    knob: Knob,
    kubernetes_allowed: bool,
) -> Result<Option<Owner>, NoRoute> {
    let claim = Claim::of(path);
    if claim.kubernetes && !kubernetes_allowed {
        return Err(NoRoute::Kubernetes);
    }
    if let Some(owner) = engine_route(&claim, facts, knob)? {
        return Ok(Some(owner));
    }
    if claim.unit.is_none() || !models(Kind::Systemd, knob) {
        return Ok(None);
    }
    // Its properties have the scale of v2.
    if matches!(knob, Knob::CpuWeight | Knob::IoWeight) && !facts.is_unified {
        return Ok(None);
    }
    match &facts.unit {
        Fact::Known(unit) | Fact::Degraded(unit, _) if unit.control_group == path => {
            Ok(Some(Owner::Systemd { unit: unit.name.clone() }))
        }
        // Below a unit that was left its tree: another manager's, or a user's own.
        Fact::Known(_) | Fact::Degraded(..) | Fact::Absent(_) => Ok(None),
        Fact::Unknown(reason) => Err(NoRoute::Unknown(format!("systemd: {reason}"))),
    }
}

fn engine_route(claim: &Claim<'_>, facts: &Facts, knob: Knob) -> Result<Option<Owner>, NoRoute> {
    let Some(container) = claim.container.filter(|_container| !claim.kubernetes) else {
        return Ok(None);
    };
    let docker = |known: &ContainerFacts| Owner::Docker {
        id: known.id.clone(),
        swarm_task: known.swarm_task.clone(),
    };
    let podman = |known: &ContainerFacts| Owner::Podman { id: known.id.clone() };
    for (kind, named, fact) in [
        (Kind::Docker, container.engine == Engine::Docker, &facts.docker),
        (Kind::Podman, container.engine == Engine::Podman, &facts.podman),
    ] {
        if !models(kind, knob) {
            continue;
        }
        match fact {
            Fact::Known(known) | Fact::Degraded(known, _) => {
                return Ok(Some(if kind == Kind::Docker { docker(known) } else { podman(known) }));
            }
            Fact::Unknown(reason) if named => {
                return Err(NoRoute::Unknown(format!("{}: {reason}", kind.name())));
            }
            Fact::Unknown(_) | Fact::Absent(_) => {}
        }
    }
    Ok(None)
}

/// Whether an owner has a value of its own for `knob`. What it has none for is written to the
/// file, where the owner never looks.
pub fn models(kind: Kind, knob: Knob) -> bool {
    match kind {
        Kind::Systemd => super::systemd::property(knob).is_some(),
        Kind::Docker | Kind::Podman => [Knob::CpuQuota, Knob::MemoryMax].contains(&knob),
    }
}

/// Weight of block I/O that systemd and both weighers have where nobody has set one.
const IO_WEIGHT_DEFAULT: f64 = 100.0;

/// How many of the weights above the default in systemd's scale are one in BFQ's: 9,900 are 900.
const IO_WEIGHTS_PER_BFQ: f64 = 11.0;

/// The value to tell an owner for `limit` in the file of `weigher`; the same where that is `None`.
///
/// systemd's `IOWeight=` has the scale of iocost, and it writes the file of BFQ, too, rescaled there.
pub fn as_told(weigher: Option<Weigher>, limit: Limit) -> Limit {
    match (weigher, limit) {
        (Some(Weigher::Bfq), Limit::At(weight)) if weight > IO_WEIGHT_DEFAULT => {
            Limit::At(IO_WEIGHT_DEFAULT + (weight - IO_WEIGHT_DEFAULT) * IO_WEIGHTS_PER_BFQ)
        }
        _ => limit,
    }
}

/// The reverse of [`as_told`]: what is in the file once an owner was told `limit`.
pub fn as_written(weigher: Option<Weigher>, limit: Limit) -> Limit {
    match (weigher, limit) {
        (Some(Weigher::Bfq), Limit::At(weight)) if weight > IO_WEIGHT_DEFAULT => {
            let above = ((weight - IO_WEIGHT_DEFAULT) / IO_WEIGHTS_PER_BFQ).floor();
            Limit::At(IO_WEIGHT_DEFAULT + above)
        }
        _ => limit,
    }
}

/// What giving a limit back takes at its owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Return {
    /// It still has a value of ours: tell it its own.
    TellOwn,
    /// It has its own.
    IsOwn,
    /// Somebody has told it another value, which stands.
    IsTheirs,
}

/// What giving back takes where the owner has `has`, had `own` before, and was told `ours`.
pub fn returning(knob: Knob, has: Limit, own: Limit, ours: &[Limit]) -> Return {
    if same(knob, has, own) {
        Return::IsOwn
    } else if ours.iter().any(|&told| same(knob, has, told)) {
        Return::TellOwn
    } else {
        Return::IsTheirs
    }
}

/// Whether two values are the same but for rounding: a thousandth of a core, a large page's worth
/// of a kilobyte each; weights and counts are whole.
pub fn same(knob: Knob, a: Limit, b: Limit) -> bool {
    let slack = match knob.resource() {
        Some(Resource::Cpu) => 1.5e-3,
        Some(Resource::Memory) => 65_536.0,
        _ => 0.5,
    };
    match (a, b) {
        (Limit::At(a), Limit::At(b)) => (a - b).abs() <= slack,
        (Limit::Unlimited, Limit::Unlimited) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};
    use headroom_telemetry::Fact;
    use proptest::{prop_oneof, proptest, strategy::Just, strategy::Strategy};

    use super::{NoRoute, Owner, Return, as_told, as_written, returning, route};
    use crate::{
        guard::owner::facts::{ContainerFacts, Facts, UnitFacts},
        observe::cgroup::weights::Weigher,
    };

    const ID: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

    fn nobody() -> Facts {
        Facts {
            is_unified: true,
            unit: Fact::absent("not running"),
            docker: Fact::absent("no socket"),
            podman: Fact::absent("no socket"),
        }
    }

    fn unit(name: &str, control_group: &str) -> Facts {
        let unit = UnitFacts {
            name: name.to_owned(),
            control_group: control_group.to_owned(),
            delegates: false,
        };
        Facts { unit: Fact::Known(unit), ..nobody() }
    }

    fn in_docker(facts: Facts) -> Facts {
        let swarm_task = Some("t".to_owned());
        Facts { docker: Fact::Known(ContainerFacts { id: ID.to_owned(), swarm_task }), ..facts }
    }

    #[test]
    fn weights_are_systemds_where_it_has_the_kernels_scale() {
        let facts = unit("a.service", "/a.service");
        let v1 = Facts { is_unified: false, ..facts.clone() };
        for knob in [Knob::CpuWeight, Knob::IoWeight] {
            assert!(matches!(route("/a.service", &facts, knob, false), Ok(Some(_))));
            assert_eq!(route("/a.service", &v1, knob, false), Ok(None));
        }
        for knob in [Knob::PidsMax, Knob::MemoryLow] {
            assert!(matches!(route("/a.service", &v1, knob, false), Ok(Some(_))));
        }
        let same = |a, b| super::same(Knob::CpuWeight, Limit::At(a), Limit::At(b));
        assert!(same(100.0, 100.0) && !same(100.0, 200.0));
    }

    fn scope() -> (String, Facts) {
        let name = format!("docker-{ID}.scope");
        let path = format!("/system.slice/{name}");
        let facts = in_docker(unit(&name, &path));
        (path, facts)
    }

    #[test]
    fn a_unit_is_asked_for_and_what_lies_below_it_is_written() {
        let facts = unit("a.service", "/system.slice/a.service");
        let of = |path| route(path, &facts, Knob::CpuQuota, false).unwrap();
        let owner = Owner::Systemd { unit: "a.service".to_owned() };
        assert_eq!(of("/system.slice/a.service"), Some(owner));
        assert_eq!(of("/system.slice/a.service/inner"), None);
        assert_eq!(of("/system.slice/a.service/app.slice"), None);
        assert_eq!(route("/x.slice", &nobody(), Knob::CpuQuota, false), Ok(None));
    }

    #[test]
    fn an_engine_comes_before_systemd_where_it_knows_the_knob() {
        let (path, facts) = scope();
        let of = |knob| route(&path, &facts, knob, false).unwrap().unwrap();
        assert!(matches!(of(Knob::CpuQuota), Owner::Docker { swarm_task: Some(_), .. }));
        assert!(matches!(of(Knob::MemoryMax), Owner::Docker { .. }));
        assert!(matches!(of(Knob::MemoryHigh), Owner::Systemd { .. }));
        let without = Facts { docker: Fact::absent("no socket"), ..facts.clone() };
        let found = route(&path, &without, Knob::CpuQuota, false).unwrap();
        assert!(matches!(found, Some(Owner::Systemd { .. })), "{found:?}");
    }

    #[test]
    fn an_owner_that_does_not_answer_is_not_written_over() {
        let (path, facts) = scope();
        let hangs = Facts { docker: Fact::unknown("no answer in time"), ..facts };
        let found = route(&path, &hangs, Knob::CpuQuota, false);
        assert!(matches!(found, Err(NoRoute::Unknown(_))), "{found:?}");
        let hangs = Facts { unit: Fact::unknown("no answer in time"), ..nobody() };
        assert!(route("/a.service", &hangs, Knob::CpuQuota, false).is_err());
        assert_eq!(route("/a", &hangs, Knob::CpuQuota, false), Ok(None));
    }

    #[test]
    fn kubernetes_is_left_alone_unless_the_rule_says_so() {
        let path = format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope");
        let facts = unit(&format!("cri-containerd-{ID}.scope"), &path);
        assert_eq!(route(&path, &facts, Knob::CpuQuota, false), Err(NoRoute::Kubernetes));
        let allowed = route(&path, &facts, Knob::CpuQuota, true).unwrap();
        assert!(matches!(allowed, Some(Owner::Systemd { .. })));
        // Docker as the kubelet's runtime is told by the kubelet, not by us.
        let allowed = route(&path, &in_docker(facts), Knob::CpuQuota, true).unwrap();
        assert!(matches!(allowed, Some(Owner::Systemd { .. })));
    }

    #[test]
    fn containers_get_whole_percents_of_a_cpu() {
        let docker = Owner::Docker { id: ID.to_owned(), swarm_task: None };
        let keeps = |cores| docker.keeps(Knob::CpuQuota, Limit::At(cores));
        assert_eq!(keeps(1.234), Limit::At(1.24));
        assert_eq!(keeps(1.2), Limit::At(1.2));
        assert_eq!(docker.keeps(Knob::MemoryMax, Limit::At(5.0)), Limit::At(5.0));
        let unit = Owner::Systemd { unit: String::new() };
        assert_eq!(unit.keeps(Knob::CpuQuota, Limit::At(1.234)), Limit::At(1.234));
    }

    fn limit() -> impl Strategy<Value = Limit> {
        prop_oneof![(0.0..8.0).prop_map(Limit::At), Just(Limit::Unlimited)]
    }

    /// By `BFQ_WEIGHT()` of systemd: both scales end at their largest weight.
    #[test]
    fn systemd_is_told_weights_of_bfq_in_its_own_scale() {
        let bfq = Some(Weigher::Bfq);
        for (file, unit) in [(1.0, 1.0), (100.0, 100.0), (101.0, 111.0), (1_000.0, 10_000.0)] {
            assert_eq!(as_told(bfq, Limit::At(file)), Limit::At(unit));
            assert_eq!(as_written(bfq, Limit::At(unit)), Limit::At(file));
        }
        assert_eq!(as_written(bfq, Limit::At(350.0)), Limit::At(122.0));
        for weigher in [None, Some(Weigher::Iocost)] {
            assert_eq!(as_told(weigher, Limit::At(250.0)), Limit::At(250.0));
            assert_eq!(as_written(weigher, Limit::At(250.0)), Limit::At(250.0));
        }
        assert_eq!(as_told(bfq, Limit::Unlimited), Limit::Unlimited);
    }

    proptest! {
        #[test]
        fn only_a_value_of_ours_is_ever_taken_back(
            has in limit(), own in limit(), ours in limit(),
        ) {
            match returning(Knob::CpuQuota, has, own, &[ours]) {
                Return::TellOwn => assert!(super::same(Knob::CpuQuota, has, ours)),
                Return::IsOwn => assert!(super::same(Knob::CpuQuota, has, own)),
                Return::IsTheirs => assert!(has != own && has != ours),
            }
        }
    }
}
