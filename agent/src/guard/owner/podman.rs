//! podman's service, asked through its Unix socket, where `podman.socket` is switched on. Without
//! it a container is asked for as the scope that systemd runs it in.

use std::{path::Path, time::Instant};

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::Resource;
use serde_json::json;

use super::{
    docker::{self, HostConfig, Inspected},
    error::OwnerError,
};

/// The oldest version of the interface that has an update of containers.
const API: &str = "/v4.3.0/libpod/containers";

/// What podman says of container `id`; `None` when it knows no such container.
///
/// # Errors
/// When it does not answer, or its answer makes no sense.
pub(super) fn inspect(
    socket: &Path,
    id: &str,
    deadline: Instant,
) -> Result<Option<Inspected>, OwnerError> {
    docker::inspected(socket, &format!("{API}/{id}/json"), deadline)
}

/// Tells podman the value of a container; `false` when it knows no such container.
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
    let body = update(&found.limits, knob, limit);
    docker::updated(socket, &format!("{API}/{id}/update"), &body, deadline)
}

/// Resources in the form of the OCI runtime specification.
fn update(limits: &HostConfig, knob: Knob, limit: Limit) -> String {
    if knob.resource() == Some(Resource::Memory) {
        let (memory, swap) = limits.memory_and_swap_bytes(limit);
        return match swap {
            Some(swap) => json!({ "memory": { "limit": memory, "swap": swap } }),
            None => json!({ "memory": { "limit": memory } }),
        }
        .to_string();
    }
    let (quota, period) = (limits.quota_us(limit), limits.period_us());
    json!({ "cpu": { "quota": quota, "period": period } }).to_string()
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};

    use super::{HostConfig, update};

    #[test]
    fn resources_are_told_as_a_runtime_reads_them() {
        let limits = HostConfig::default();
        let told = update(&limits, Knob::CpuQuota, Limit::At(1.2));
        assert_eq!(told, "{\"cpu\":{\"period\":100000,\"quota\":120000}}");
        let told = update(&limits, Knob::MemoryMax, Limit::At(64.0));
        assert_eq!(told, "{\"memory\":{\"limit\":64}}");
    }
}
