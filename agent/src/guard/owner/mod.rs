//! Whoever else holds a limit and has to be asked to change it: systemd, Docker, podman.
//!
//! A limit that is written past its owner is undone by the owner sooner or later (docs/OWNERS.md).
//! Reading order: [`facts`] (what is known), [`decide`] (who is asked, pure), `systemd`, `docker`,
//! `podman` (how), [`Owners`] (carries out one errand within its time), [`rivals`] (who else
//! changes limits here), [`latency`] (how long asking takes).
//!
//! Nothing here is called while the guard's state is locked: an owner that hangs delays its own
//! errands and nothing else.

pub mod decide;
pub mod error;
pub mod facts;
pub mod latency;
pub mod rivals;

mod dbus;
mod docker;
mod http;
mod podman;
mod socket;
mod systemd;

#[cfg(test)]
pub(super) mod tests;

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    thread,
    time::{Duration, Instant},
};

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::Fact;
use serde::{Deserialize, Serialize};

pub use decide::{Kind, NoRoute, Owner};
pub use error::OwnerError;
pub use systemd::{Systemd, Word};

use super::config::OwnersConfig;
use facts::{Claim, Engine, Facts};

/// How long an owner that did not answer in time is left alone.
const REST: Duration = Duration::from_secs(5);

/// How often a busy connection is tried for.
const TURN: Duration = Duration::from_millis(1);

/// An owner's part in a lease, as the journal keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Stake {
    /// Who was asked.
    pub owner: Owner,
    /// What the owner had before, by its own account; in the unit of the knob's resource.
    pub own: Limit,
    /// Whether systemd had been told a value at run time before, so that the drop-in with it is
    /// not ours to remove.
    pub had_drop_in: bool,
}

/// Something to ask of owners, away from the guard's state.
#[derive(Clone, Debug, PartialEq)]
pub enum Errand {
    /// Find out who holds `knob` of the cgroup at `path`, and what it says of its own value.
    Learn {
        /// Cgroup path.
        path: String,
        /// The knob.
        knob: Knob,
        /// Whether the guard's rule lets cgroups of Kubernetes be changed.
        kubernetes: bool,
    },
    /// Tell the owner a value.
    Tell {
        /// The owner.
        owner: Owner,
        /// The knob.
        knob: Knob,
        /// The value.
        limit: Limit,
    },
    /// See to it that the owner has its own value again.
    TakeBack {
        /// The owner and its own value.
        stake: Stake,
        /// The knob.
        knob: Knob,
        /// The values it was told under the lease.
        ours: Vec<Limit>,
    },
}

/// What came of an errand.
#[derive(Debug)]
pub enum Done {
    /// Who holds it: an owner with its own value, or nobody.
    Learned(Result<Option<Stake>, Unlearned>),
    /// The owner was told; `false` when it knows the workload no more.
    Told(Result<bool, OwnerError>),
    /// What the owner has now.
    TakenBack(Result<Word, OwnerError>),
}

/// Why it is not known whom to ask.
#[derive(Debug)]
pub enum Unlearned {
    /// It must not be changed, or an owner that should know did not say.
    NoRoute(NoRoute),
    /// The owner is known, and did not say what its own value is.
    Owner(OwnerError),
}

impl Errand {
    /// The service it concerns most; `None` when that is not known yet.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Learn { .. } => None,
            Self::Tell { owner, .. } => Some(owner.kind()),
            Self::TakeBack { stake, .. } => Some(stake.owner.kind()),
        }
    }
}

/// The owners of this host.
#[derive(Debug)]
pub struct Owners {
    config: OwnersConfig,
    is_unified: bool,
    systemd: Mutex<Systemd>,
    resting_until: [Mutex<Option<Instant>>; Kind::ALL.len()],
}

impl Owners {
    /// The owners that listen where `config` says; none is connected to yet.
    pub fn new(config: &OwnersConfig) -> Self {
        Self::below(config, Path::new("/"))
    }

    /// As [`Self::new`], with systemd's drop-ins and the cgroups below `root`.
    fn below(config: &OwnersConfig, root: &Path) -> Self {
        let systemd = Systemd::new(&config.system_bus, &config.systemd_private, root);
        Self {
            config: config.clone(),
            is_unified: root.join("sys/fs/cgroup/cgroup.controllers").exists(),
            systemd: Mutex::new(systemd),
            resting_until: Default::default(),
        }
    }

    /// Carries an errand out; takes at most twice the configured time.
    pub fn run(&self, errand: &Errand) -> Done {
        let deadline = Instant::now() + self.config.timeout();
        match errand {
            Errand::Learn { path, knob, kubernetes } => {
                Done::Learned(self.learn(path, *knob, *kubernetes, deadline))
            }
            Errand::Tell { owner, knob, limit } => {
                Done::Told(self.guarded(owner.kind(), || self.tell(owner, *knob, *limit, deadline)))
            }
            Errand::TakeBack { stake, knob, ours } => Done::TakenBack(
                self.guarded(stake.owner.kind(), || self.take_back(stake, *knob, ours, deadline)),
            ),
        }
    }

    /// What owners say of the cgroup at `path`.
    pub fn facts(&self, path: &str, deadline: Instant) -> Facts {
        let claim = Claim::of(path);
        let off = |kind: Kind| format!("{} is switched off in guard.toml", kind.name());
        let unit = match claim.unit {
            None => Fact::absent("its name is no unit's"),
            Some(_) if !self.config.systemd => Fact::absent(off(Kind::Systemd)),
            Some(_) => fact_of(
                self.guarded(Kind::Systemd, || self.systemd(deadline)?.unit_of(path, deadline)),
                "systemd knows no such unit",
            ),
        };
        let container = |kind: Kind, is_on: bool, not: Engine| match claim.container {
            _ if !is_on => Fact::absent(off(kind)),
            Some(container) if container.engine != not && !claim.kubernetes => {
                let found = self.guarded(kind, || match kind {
                    Kind::Podman => {
                        podman::inspect(&self.config.podman_socket, container.id, deadline)
                    }
                    _ => docker::inspect(&self.config.docker_socket, container.id, deadline),
                });
                fact_of(found.map(|found| found.map(|found| found.facts())), "no such container")
            }
            _ => Fact::absent("its name is no container's"),
        };
        Facts {
            is_unified: self.is_unified,
            unit,
            docker: container(Kind::Docker, self.config.docker, Engine::Podman),
            podman: container(Kind::Podman, self.config.podman, Engine::Docker),
        }
    }

    fn learn(
        &self,
        path: &str,
        knob: Knob,
        kubernetes: bool,
        deadline: Instant,
    ) -> Result<Option<Stake>, Unlearned> {
        let facts = self.facts(path, deadline);
        let owner = decide::route(path, &facts, knob, kubernetes).map_err(Unlearned::NoRoute)?;
        let Some(owner) = owner else { return Ok(None) };
        let own = self.guarded(owner.kind(), || self.value(&owner, knob, deadline));
        let own = own.map_err(Unlearned::Owner)?;
        let had_drop_in = match &owner {
            Owner::Systemd { unit } => {
                self.systemd(deadline).map_err(Unlearned::Owner)?.has_drop_in(unit, knob)
            }
            Owner::Docker { .. } | Owner::Podman { .. } => false,
        };
        Ok(Some(Stake { owner, own, had_drop_in }))
    }

    fn value(&self, owner: &Owner, knob: Knob, deadline: Instant) -> Result<Limit, OwnerError> {
        let found = match owner {
            Owner::Systemd { unit } => {
                return self.systemd(deadline)?.value(unit, knob, deadline);
            }
            Owner::Docker { id, .. } => docker::inspect(&self.config.docker_socket, id, deadline)?,
            Owner::Podman { id } => podman::inspect(&self.config.podman_socket, id, deadline)?,
        };
        found.map(|found| found.limits.limit(knob)).ok_or_else(|| OwnerError::Refused {
            what: format!("{knob} of {owner}"),
            name: "404".to_owned(),
            text: "no such container".to_owned(),
        })
    }

    fn tell(
        &self,
        owner: &Owner,
        knob: Knob,
        limit: Limit,
        deadline: Instant,
    ) -> Result<bool, OwnerError> {
        match owner {
            Owner::Systemd { unit } => {
                self.systemd(deadline)?.tell(unit, knob, limit, deadline).map(|()| true)
            }
            Owner::Docker { id, .. } => {
                docker::tell(&self.config.docker_socket, id, knob, limit, deadline)
            }
            Owner::Podman { id } => {
                podman::tell(&self.config.podman_socket, id, knob, limit, deadline)
            }
        }
    }

    fn take_back(
        &self,
        stake: &Stake,
        knob: Knob,
        ours: &[Limit],
        deadline: Instant,
    ) -> Result<Word, OwnerError> {
        let values = (stake.own, ours);
        match &stake.owner {
            Owner::Systemd { unit } => {
                self.systemd(deadline)?.take_back(unit, knob, values, stake.had_drop_in, deadline)
            }
            Owner::Docker { id, .. } => {
                let socket = &self.config.docker_socket;
                docker::take_back(
                    knob,
                    values,
                    || docker::inspect(socket, id, deadline),
                    |limit| docker::tell(socket, id, knob, limit, deadline),
                )
            }
            Owner::Podman { id } => {
                let socket = &self.config.podman_socket;
                docker::take_back(
                    knob,
                    values,
                    || podman::inspect(socket, id, deadline),
                    |limit| podman::tell(socket, id, knob, limit, deadline),
                )
            }
        }
    }

    /// Does `work` unless the owner is being left alone; one that takes too long is, from then on.
    fn guarded<T>(
        &self,
        kind: Kind,
        work: impl FnOnce() -> Result<T, OwnerError>,
    ) -> Result<T, OwnerError> {
        let resting = &self.resting_until[kind as usize];
        let until = *resting.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| Instant::now() < until) {
            return Err(OwnerError::Resting { owner: kind.name() });
        }
        let result = work();
        if result.as_ref().is_err_and(OwnerError::is_timeout) {
            *resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
        }
        result
    }

    /// The client of systemd, once nobody else is using it.
    fn systemd(&self, deadline: Instant) -> Result<MutexGuard<'_, Systemd>, OwnerError> {
        loop {
            match self.systemd.try_lock() {
                Ok(client) => return Ok(client),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(TURN),
                Err(TryLockError::WouldBlock) => {
                    let source = std::io::ErrorKind::TimedOut.into();
                    return Err(OwnerError::io(&self.config.system_bus, "waiting", source));
                }
            }
        }
    }
}

/// What an owner answered, as a fact: that nobody listens is an absence, that it fails is not.
fn fact_of<T>(answer: Result<Option<T>, OwnerError>, none: &str) -> Fact<T> {
    match answer {
        Ok(Some(value)) => Fact::Known(value),
        Ok(None) => Fact::absent(none),
        Err(error @ OwnerError::Unreachable { .. }) => Fact::absent(error.to_string()),
        Err(error) => Fact::unknown(error.to_string()),
    }
}
