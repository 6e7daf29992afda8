//! The configuration files of the demo, written as a person would write them.

use std::path::Path;

use super::{stage::OWN_LIMIT_CORES, workload::MEMORY_PEAK_BYTES};

/// Name of the demo's host in its certificate.
pub(super) const NODE: &str = "demo-host";

/// Who may be acted on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// Only the memory ramp, which cannot wait for a model.
    Learning,
    /// The services too.
    Acting,
}

/// The guard's own rules: only the demo's cgroups, and only so far.
pub(super) fn guard_toml(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"socket = "{dir}/guard.sock"
state_dir = "{dir}/guard"
kill_switch = "{dir}/disable"

[[allow]]
path = "/headroom-demo/service*"
mode = "reclaim"
reclaim_floor = 0.1
cpu = {{ ceiling = {OWN_LIMIT_CORES:.1} }}
changes_per_minute = 120

[[allow]]
path = "/headroom-demo/memory"
mode = "raise"
memory = {{ ceiling = {memory_ceiling} }}
"#,
        memory_ceiling = 2 * MEMORY_PEAK_BYTES,
    )
}

/// The agent's configuration. `act`: whether a guard is there to ask.
pub(super) fn agent_toml(dir: &Path, node: &Path, server: &str, act: bool) -> String {
    let (dir, node) = (dir.display(), node.display());
    let act = if act { format!("[act]\nsocket = \"{dir}/guard.sock\"\n") } else { String::new() };
    let include = if act.is_empty() {
        String::new()
    } else {
        "include = [\"/headroom-demo/*\"]\n".to_owned()
    };
    format!(
        r#"[node]
name = "{NODE}"

[observe]
period_s = 1.0
{include}
[policy]
file = "{dir}/policy.toml"

{act}
[uplink]
server = "{server}"
server_name = "localhost"
ca = "{node}/ca.pem"
cert = "{node}/agent.pem"
key = "{node}/agent.key"
batch_s = 1.0
spool_dir = "{dir}/spool"

[model]
dir = "{dir}/models"
public_key = "{node}/model.pub"

[audit]
file = "{dir}/audit.jsonl"

[status]
socket = "{dir}/agent.sock"
"#
    )
}

/// The policy: the memory ramp may be raised at once, the services once they opt in.
pub(super) fn policy_toml(mode: Mode) -> String {
    let services = match mode {
        Mode::Learning => "recommend",
        Mode::Acting => "reclaim",
    };
    format!(
        r#"[[workloads]]
match = "/headroom-demo/service-reactive"
mode = "{services}"
controller = "reactive"
regret = false
dwell_s = 0
floor_cores = 0.15
ceiling_cores = {OWN_LIMIT_CORES:.1}

[[workloads]]
match = "/headroom-demo/service"
mode = "{services}"
objective = "latency_critical"
look_ahead_s = 3
dwell_s = 2
floor_cores = 0.15
ceiling_cores = {OWN_LIMIT_CORES:.1}

[[workloads]]
match = "/headroom-demo/memory"
mode = "raise"
objective = "latency_critical"
look_ahead_s = 12
"#
    )
}
