//! The node's Docker Engine, asked through its Unix socket. A Swarm task is a container here too:
//! updating the service instead would replace the task.

use std::{path::Path, time::Instant};

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::Resource;
use serde::Deserialize;
use serde_json::json;

use super::{
    decide::{Return, returning},
    error::OwnerError,
    facts::ContainerFacts,
    http::{self, Answer},
    systemd::Word,
};

/// The period that is meant where the engine names none, microseconds.
const PERIOD_US: i64 = 100_000;

/// A label that Swarm puts on the containers of its tasks.
const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// What an engine says of a container, as far as it matters here; podman says the same.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(super) struct Inspected {
    #[serde(rename = "Id")]
    pub(super) id: String,
    #[serde(rename = "HostConfig")]
    pub(super) limits: HostConfig,
    #[serde(rename = "Config")]
    config: Config,
}

/// Limits of a container as its engine keeps them; 0 is "not set".
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(super) struct HostConfig {
    #[serde(rename = "NanoCpus")]
    nano_cpus: i64,
    #[serde(rename = "CpuQuota")]
    cpu_quota_us: i64,
    #[serde(rename = "CpuPeriod")]
    cpu_period_us: i64,
    #[serde(rename = "Memory")]
    memory_bytes: i64,
    #[serde(rename = "MemorySwap")]
    memory_swap_bytes: i64,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Config {
    #[serde(rename = "Labels")]
    labels: Option<std::collections::BTreeMap<String, String>>,
}

impl Inspected {
    /// Reads what an engine says.
    ///
    /// # Errors
    /// A sentence, when it is not about a container.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let found: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if found.id.is_empty() { Err("it names no container".to_owned()) } else { Ok(found) }
    }

    pub(super) fn facts(&self) -> ContainerFacts {
        let labels = self.config.labels.as_ref();
        let task = labels.and_then(|labels| labels.get(TASK_LABEL)).filter(|id| !id.is_empty());
        ContainerFacts { id: self.id.clone(), swarm_task: task.cloned() }
    }
}

impl HostConfig {
    /// The limit in force by the engine's own account.
    pub(super) fn limit(&self, knob: Knob) -> Limit {
        if knob.resource() == Some(Resource::Memory) {
            return match self.memory_bytes {
                bytes if bytes > 0 => Limit::At(bytes as f64),
                _ => Limit::Unlimited,
            };
        }
        match (self.nano_cpus, self.cpu_quota_us) {
            (nano, _) if nano > 0 => Limit::At(nano as f64 / 1e9),
            (_, quota_us) if quota_us > 0 => Limit::At(quota_us as f64 / self.period_us() as f64),
            _ => Limit::Unlimited,
        }
    }

    pub(super) fn period_us(&self) -> i64 {
        if self.cpu_period_us > 0 { self.cpu_period_us } else { PERIOD_US }
    }

    /// The CPU quota for `limit` in a period of [`Self::period_us`]; -1 is none.
    pub(super) fn quota_us(&self, limit: Limit) -> i64 {
        match limit {
            Limit::At(cores) => (cores * self.period_us() as f64).round() as i64,
            Limit::Unlimited => -1,
        }
    }

    /// Memory and swap for a memory limit of `limit`, bytes, so that as much swap is allowed as
    /// before; -1 is no limit. `None` for the swap when the engine has no word on it.
    pub(super) fn memory_and_swap_bytes(&self, limit: Limit) -> (i64, Option<i64>) {
        let Limit::At(bytes) = limit else { return (-1, Some(-1)) };
        let bytes = bytes.round() as i64;
        let swap = match self.memory_swap_bytes {
            swap if swap > 0 => Some(swap.max(self.memory_bytes) - self.memory_bytes + bytes),
            0 => None,
            _ => Some(-1),
        };
        (bytes, swap)
    }

    /// What Docker is to be sent. A container made with `--cpus` takes only CPUs, and one made with
    /// `--cpu-quota`, or with neither, only a quota.
    fn docker_update(&self, knob: Knob, limit: Limit) -> String {
        if knob.resource() == Some(Resource::Memory) {
            let (memory, swap) = self.memory_and_swap_bytes(limit);
            return match swap {
                Some(swap) => json!({ "Memory": memory, "MemorySwap": swap }),
                None => json!({ "Memory": memory }),
            }
            .to_string();
        }
        match limit {
            Limit::At(cores) if self.nano_cpus > 0 => {
                json!({ "NanoCpus": (cores * 1e9).round() as i64 })
            }
            _ => json!({ "CpuPeriod": self.period_us(), "CpuQuota": self.quota_us(limit) }),
        }
        .to_string()
    }
}

/// What Docker says of container `id`; `None` when it knows no such container.
///
/// # Errors
/// When it does not answer, or its answer makes no sense.
pub(super) fn inspect(
    socket: &Path,
    id: &str,
    deadline: Instant,
) -> Result<Option<Inspected>, OwnerError> {
    let target = format!("/containers/{id}/json");
    inspected(socket, &target, deadline)
}

/// What an engine says at `target`.
///
/// # Errors
/// When it does not answer, refuses, or its answer makes no sense.
pub(super) fn inspected(
    socket: &Path,
    target: &str,
    deadline: Instant,
) -> Result<Option<Inspected>, OwnerError> {
    let answer = http::exchange(socket, ("GET", target), None, deadline)?;
    if answer.status == 404 {
        return Ok(None);
    }
    accepted(&answer, target)?;
    Inspected::parse(&answer.body).map(Some).map_err(|text| OwnerError::Broken {
        path: socket.to_owned(),
        what: target.to_owned(),
        text,
    })
}

/// Tells Docker the value of a container; `false` when it knows no such container.
///
/// # Errors
/// When it refuses or does not answer.
pub(super) fn tell(
    socket: &Path,
    id: &str,
    knob: Knob,
    limit: Limit,
    deadline: Instant,
) -> Result<bool, OwnerError> {
    let Some(found) = inspect(socket, id, deadline)? else { return Ok(false) };
    let body = found.limits.docker_update(knob, limit);
    updated(socket, &format!("/containers/{id}/update"), &body, deadline)
}

/// Posts `body` to an engine's `target`; `false` when it knows no such container.
///
/// # Errors
/// When it refuses or does not answer.
pub(super) fn updated(
    socket: &Path,
    target: &str,
    body: &str,
    deadline: Instant,
) -> Result<bool, OwnerError> {
    let answer = http::exchange(socket, ("POST", target), Some(body), deadline)?;
    if answer.status == 404 {
        return Ok(false);
    }
    accepted(&answer, &format!("{target} {body}")).map(|()| true)
}

/// An error for a status that says no.
fn accepted(answer: &Answer, what: &str) -> Result<(), OwnerError> {
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    Err(OwnerError::Refused {
        what: what.to_owned(),
        name: answer.status.to_string(),
        text: answer.sentence(),
    })
}

/// What giving back takes with `inspect` and `tell` of an engine.
///
/// # Errors
/// What they say.
pub(super) fn take_back(
    knob: Knob,
    (own, ours): (Limit, &[Limit]),
    inspect: impl Fn() -> Result<Option<Inspected>, OwnerError>,
    tell: impl Fn(Limit) -> Result<bool, OwnerError>,
) -> Result<Word, OwnerError> {
    let Some(found) = inspect()? else { return Ok(Word::Gone) };
    let has = found.limits.limit(knob);
    match returning(knob, has, own, ours) {
        Return::IsOwn => Ok(Word::Own),
        Return::IsTheirs => Ok(Word::Theirs(has)),
        Return::TellOwn => tell(own).map(|known| if known { Word::Own } else { Word::Gone }),
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};

    use super::{HostConfig, Inspected};

    fn inspected(host_config: &str) -> Inspected {
        let text = format!(
            "{{\"Id\":\"ab\",\"HostConfig\":{host_config},\"Config\":{{\"Labels\":\
             {{\"com.docker.swarm.task.id\":\"t1\"}}}}}}"
        );
        Inspected::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_docker_says_is_read() {
        let found = inspected("{\"NanoCpus\":500000000,\"Memory\":67108864,\"MemorySwap\":-1}");
        assert_eq!(found.facts().swarm_task.as_deref(), Some("t1"));
        assert_eq!(found.limits.limit(Knob::CpuQuota), Limit::At(0.5));
        assert_eq!(found.limits.limit(Knob::MemoryMax), Limit::At(67_108_864.0));
        let bare = Inspected::parse(b"{\"Id\":\"ab\",\"Config\":{\"Labels\":null}}").unwrap();
        assert_eq!(bare.limits.limit(Knob::CpuQuota), Limit::Unlimited);
        assert_eq!(bare.facts().swarm_task, None);
        assert!(Inspected::parse(b"{}").is_err());
    }

    #[test]
    fn a_container_is_told_in_the_form_it_was_made_with() {
        let update =
            |config: &str, knob, limit| inspected(config).limits.docker_update(knob, limit);
        let cpu = Knob::CpuQuota;
        assert_eq!(
            update("{\"NanoCpus\":500000000}", cpu, Limit::At(1.5)),
            "{\"NanoCpus\":1500000000}"
        );
        assert_eq!(
            update("{\"CpuQuota\":25000,\"CpuPeriod\":50000}", cpu, Limit::At(1.5)),
            "{\"CpuPeriod\":50000,\"CpuQuota\":75000}"
        );
        assert_eq!(
            update("{\"CpuQuota\":25000}", cpu, Limit::Unlimited),
            "{\"CpuPeriod\":100000,\"CpuQuota\":-1}"
        );
    }

    #[test]
    fn raising_memory_leaves_as_much_swap_as_before() {
        let config = |memory_bytes, memory_swap_bytes| HostConfig {
            memory_bytes,
            memory_swap_bytes,
            ..HostConfig::default()
        };
        let to = Limit::At(300.0);
        assert_eq!(config(100, 150).memory_and_swap_bytes(to), (300, Some(350)));
        assert_eq!(config(100, 100).memory_and_swap_bytes(to), (300, Some(300)));
        assert_eq!(config(100, -1).memory_and_swap_bytes(to), (300, Some(-1)));
        assert_eq!(config(100, 0).memory_and_swap_bytes(to), (300, None));
    }
}
