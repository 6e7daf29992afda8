//! What the guard may do, as its own configuration file states it. The agent has no say in this.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use headroom_allocate::{Knob, KnobKind};
use headroom_telemetry::glob::Glob;

/// Cgroups that are refused whatever the configuration allows: the root, the machinery that keeps
/// a host reachable, container runtimes and kubelet, and Headroom itself. What lies below one of
/// them is refused too, save for the root.
pub const DENY_ALWAYS: [&str; 11] = [
    "/",
    "/init.scope",
    "/system.slice/ssh*",
    "/system.slice/dbus*",
    "/system.slice/systemd-*",
    "/system.slice/headroom*",
    "/headroom.slice",
    "/system.slice/containerd.service",
    "/system.slice/crio.service",
    "/system.slice/docker.service",
    "/system.slice/kubelet.service",
];

/// Longest lease that is ever granted.
pub const LEASE_MAX: Duration = Duration::from_secs(600);

/// Most memory that any act may take back, bytes: the kernel keeps the guard waiting meanwhile.
pub const RECLAIM_BYTES_MAX: f64 = 1_073_741_824.0;

/// Configuration of the guard.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Unix socket to listen on. Its directory is made if missing.
    pub socket: PathBuf,
    /// Directory of the journal; made if missing. Must outlive a restart of the guard.
    pub state_dir: PathBuf,
    /// While this file exists nothing is changed and everything is given back.
    pub kill_switch: PathBuf,
    /// Users that may ask for changes, beside uid 0.
    pub uids: Vec<u32>,
    /// Connections served at a time; more are closed at once and counted.
    pub connections_max: usize,
    /// Leases held at a time; more are refused.
    pub leases_max: usize,
    /// Whom to ask for changes of what they own.
    pub owners: OwnersConfig,
    /// Whether and where what workloads send is paced.
    pub egress: EgressConfig,
    /// Whether the knobs of GPUs are served.
    pub gpu: GpuConfig,
    /// Cgroups that are never changed, beside [`DENY_ALWAYS`], with all that lies below them. Wins
    /// over `allow`.
    pub deny: Vec<Glob>,
    /// Cgroups that may be changed, and how far; the first that matches decides. Empty, as out of
    /// the box, means that nothing is ever changed.
    pub allow: Vec<Allowance>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/headroom/guard.sock"),
            state_dir: PathBuf::from("/var/lib/headroom/guard"),
            kill_switch: PathBuf::from("/run/headroom/disable"),
            uids: Vec::new(),
            connections_max: 16,
            leases_max: 4096,
            owners: OwnersConfig::default(),
            egress: EgressConfig::default(),
            gpu: GpuConfig::default(),
            deny: Vec::new(),
            allow: Vec::new(),
        }
    }
}

/// Whether and where what workloads send is paced. Needs `CAP_BPF` and `CAP_NET_ADMIN`, the host's
/// network namespace and netlink sockets, which the guard has not out of the box.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressConfig {
    /// Whether `net_egress` is served at all.
    pub on: bool,
    /// Network devices that get the qdisc `fq` while the guard runs, where they have the kernel's
    /// own. Pacing works on every device that has `fq`, named here or not.
    pub devices: Vec<String>,
}

/// Whether the knobs of GPUs are served, by a process of its own that loads NVML. Needs
/// `CAP_SYS_ADMIN` and the devices of the driver, which the guard has not out of the box.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuConfig {
    /// Whether `gpu_power_limit` and `gpu_clock_floor` are served at all.
    pub on: bool,
    /// NVML's shared object; searched for where the system keeps such when missing.
    pub library: Option<PathBuf>,
}

impl EgressConfig {
    fn check(&self) -> Result<(), String> {
        for name in &self.devices {
            // What the kernel takes as the name of a device (`dev_valid_name`).
            let is_name = !name.is_empty()
                && name.len() < libc::IF_NAMESIZE
                && !matches!(name.as_str(), "." | "..")
                && name.chars().all(|c| c != '/' && c != ':' && !c.is_whitespace() && c != '\0');
            if !is_name {
                return Err(format!("egress.devices = {name:?}: is no name of a network device"));
            }
        }
        Ok(())
    }
}

/// Whom to ask for changes of what they own, and where they listen. One that is switched off, or
/// that does not run, is not asked: the file is written, and its owner may write over it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnersConfig {
    /// Whether systemd is asked for units.
    pub systemd: bool,
    /// Whether Docker Engine is asked for its containers, those of Swarm tasks among them.
    pub docker: bool,
    /// Whether podman's service is asked for its containers.
    pub podman: bool,
    /// Socket of the system's message bus.
    pub system_bus: PathBuf,
    /// Socket of systemd itself, which is asked where there is no bus.
    pub systemd_private: PathBuf,
    /// Socket of Docker Engine.
    pub docker_socket: PathBuf,
    /// Socket of podman's service.
    pub podman_socket: PathBuf,
    /// How long an owner may take to answer, milliseconds; 1 to 10,000.
    pub timeout_ms: u64,
}

impl Default for OwnersConfig {
    fn default() -> Self {
        Self {
            systemd: true,
            docker: true,
            podman: true,
            system_bus: PathBuf::from("/run/dbus/system_bus_socket"),
            systemd_private: PathBuf::from("/run/systemd/private"),
            docker_socket: PathBuf::from("/run/docker.sock"),
            podman_socket: PathBuf::from("/run/podman/podman.sock"),
            timeout_ms: 2_000,
        }
    }
}

impl OwnersConfig {
    /// How long an owner may take to answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Who is asked, and where, for people.
    pub fn describe(&self) -> String {
        let asked = [
            ("systemd", self.systemd, &self.system_bus),
            ("docker", self.docker, &self.docker_socket),
            ("podman", self.podman, &self.podman_socket),
        ];
        let word = |(name, is_on, socket): (&str, bool, &PathBuf)| match (is_on, socket.exists()) {
            (false, _) => format!("{name} off"),
            (true, true) => format!("{name} at {}", socket.display()),
            (true, false) => format!("{name} absent (no {})", socket.display()),
        };
        asked.map(word).join(", ")
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=10_000).contains(&self.timeout_ms) {
            let value = self.timeout_ms;
            return Err(format!("owners.timeout_ms = {value}: must be from 1 to 10000"));
        }
        for (name, path) in [
            ("system_bus", &self.system_bus),
            ("systemd_private", &self.systemd_private),
            ("docker_socket", &self.docker_socket),
            ("podman_socket", &self.podman_socket),
        ] {
            absolute(&format!("owners.{name}"), path)?;
        }
        Ok(())
    }
}

fn absolute(name: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(format!("{name} = {path:?}: must be an absolute path"))
}

/// How far the limits of some cgroups may be moved.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Which cgroups: `*` within a component, `**` across components, `?` one character.
    pub path: Glob,
    /// Whether and in which direction limits move.
    #[serde(default)]
    pub mode: Mode,
    /// Whether cgroups of Kubernetes may be changed. The kubelet rewrites them whenever it updates
    /// a container or pod.
    #[serde(default)]
    pub kubernetes: bool,
    /// Bounds of the CPU quota, in cores.
    #[serde(default)]
    pub cpu: Bounds,
    /// Bounds of the memory limits, in bytes.
    #[serde(default)]
    pub memory: Bounds,
    /// Bounds of the CPU and I/O weights, in the kernel's own scale.
    #[serde(default)]
    pub weight: Bounds,
    /// Bounds of the number of tasks.
    #[serde(default)]
    pub pids: Bounds,
    /// Bounds of bytes per second, each way and for each device.
    #[serde(default)]
    pub io_bps: Bounds,
    /// Bounds of operations per second, each way and for each device.
    #[serde(default)]
    pub io_iops: Bounds,
    /// Bounds of bytes sent per second.
    #[serde(default)]
    pub net_bps: Bounds,
    /// Bounds of the power limit of a GPU, watts.
    #[serde(default)]
    pub gpu_watts: Bounds,
    /// Bounds of the clock floor of a GPU, megahertz.
    #[serde(default)]
    pub gpu_mhz: Bounds,
    /// Which knobs are moved at all. The others are refused.
    #[serde(default = "knobs_default")]
    pub knobs: Vec<KnobKind>,
    /// Whether the cgroup belongs to Headroom's operator alone, so that where it runs may be
    /// changed, too: `cpuset` is refused elsewhere.
    #[serde(default)]
    pub owned: bool,
    /// Most memory taken back in one act in mode `reclaim`, bytes.
    #[serde(default = "reclaim_bytes_max_default")]
    pub reclaim_bytes_max: f64,
    /// Share of the workload's own limit that is always left to it in mode `reclaim`, 0 to 1.
    #[serde(default = "reclaim_floor_default")]
    pub reclaim_floor: f64,
    /// Longest lease, seconds; at most 600.
    #[serde(default = "lease_max_s_default")]
    pub lease_max_s: f64,
    /// Changes of limits per workload and minute. Renewals and restores are free.
    #[serde(default = "changes_per_minute_default")]
    pub changes_per_minute: f64,
}

fn reclaim_floor_default() -> f64 {
    0.5
}

fn knobs_default() -> Vec<KnobKind> {
    KnobKind::DEFAULT.to_vec()
}

fn reclaim_bytes_max_default() -> f64 {
    67_108_864.0
}

fn lease_max_s_default() -> f64 {
    LEASE_MAX.as_secs_f64()
}

fn changes_per_minute_default() -> f64 {
    60.0
}

/// Whether and in which direction limits move.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Not at all; every request is refused.
    #[default]
    Recommend,
    /// At or above the workload's own limit.
    Raise,
    /// Also below it, save for the hard memory limit.
    Reclaim,
}

/// Bounds of some knobs, in their unit (cores, bytes, ...). The workload's own limit is always within
/// bounds, whatever these say.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Never below this. Missing: no floor but the workload's own limit and `reclaim_floor`.
    pub floor: Option<f64>,
    /// Never above this. Missing, or above what the host has: what the host has.
    pub ceiling: Option<f64>,
    /// Never above this multiple of the workload's own limit. Missing: no such bound.
    pub factor: Option<f64>,
}

impl GuardConfig {
    /// Reads a configuration and checks it.
    ///
    /// # Errors
    /// A sentence naming the key, when the text is not TOML, has a key that does not exist, or a
    /// value that makes no sense.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence naming the key and its value.
    pub fn check(&self) -> Result<(), String> {
        for (name, path) in [
            ("socket", &self.socket),
            ("state_dir", &self.state_dir),
            ("kill_switch", &self.kill_switch),
        ] {
            absolute(name, path)?;
        }
        self.owners.check()?;
        self.egress.check()?;
        self.gpu.library.as_deref().map_or(Ok(()), |path| absolute("gpu.library", path))?;
        if self.connections_max == 0 {
            return Err("connections_max = 0: must be at least 1".to_owned());
        }
        for glob in &self.deny {
            starts_at_root("deny", glob)?;
        }
        self.allow.iter().try_for_each(Allowance::check)
    }
}

impl Allowance {
    /// The bounds of `knob`.
    pub fn bounds(&self, knob: Knob) -> &Bounds {
        match knob {
            Knob::CpuQuota | Knob::CpuBurst | Knob::Cpuset => &self.cpu,
            Knob::MemoryMax | Knob::MemoryHigh | Knob::MemoryLow | Knob::MemoryReclaim => {
                &self.memory
            }
            Knob::CpuWeight | Knob::IoWeight | Knob::IoWeightOf(_) => &self.weight,
            Knob::PidsMax => &self.pids,
            Knob::IoReadBps(_) | Knob::IoWriteBps(_) => &self.io_bps,
            Knob::IoReadIops(_) | Knob::IoWriteIops(_) => &self.io_iops,
            Knob::NetEgress => &self.net_bps,
            Knob::GpuPowerLimit(_) => &self.gpu_watts,
            Knob::GpuClockFloor(_) => &self.gpu_mhz,
        }
    }

    fn check(&self) -> Result<(), String> {
        starts_at_root("allow.path", &self.path)?;
        let at = &self.path.0;
        if !(0.0..=1.0).contains(&self.reclaim_floor) {
            let value = self.reclaim_floor;
            return Err(format!("allow {at:?}: reclaim_floor = {value}: must be from 0 to 1"));
        }
        let longest_s = LEASE_MAX.as_secs_f64();
        if !(self.lease_max_s > 0.0 && self.lease_max_s <= longest_s) {
            let value = self.lease_max_s;
            return Err(format!(
                "allow {at:?}: lease_max_s = {value}: must be above 0 and at most {longest_s}"
            ));
        }
        if !(self.changes_per_minute >= 1.0 && self.changes_per_minute.is_finite()) {
            let value = self.changes_per_minute;
            return Err(format!("allow {at:?}: changes_per_minute = {value}: must be at least 1"));
        }
        let most = RECLAIM_BYTES_MAX;
        if !(self.reclaim_bytes_max > 0.0 && self.reclaim_bytes_max <= most) {
            let value = self.reclaim_bytes_max;
            return Err(format!(
                "allow {at:?}: reclaim_bytes_max = {value}: must be above 0 and at most {most}"
            ));
        }
        if self.knobs.contains(&KnobKind::Cpuset) && !self.owned {
            return Err(format!("allow {at:?}: knobs has cpuset, which needs owned = true"));
        }
        for (name, bounds) in [
            ("cpu", &self.cpu),
            ("memory", &self.memory),
            ("weight", &self.weight),
            ("pids", &self.pids),
            ("io_bps", &self.io_bps),
            ("io_iops", &self.io_iops),
            ("net_bps", &self.net_bps),
        ] {
            bounds.check().map_err(|what| format!("allow {at:?}: {name}.{what}"))?;
        }
        Ok(())
    }
}

impl Bounds {
    fn check(&self) -> Result<(), String> {
        for (name, value) in
            [("floor", self.floor), ("ceiling", self.ceiling), ("factor", self.factor)]
        {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return Err(format!("{name} = {value}: must be above 0"));
            }
        }
        if let Some(factor) = self.factor
            && factor < 1.0
        {
            return Err(format!("factor = {factor}: must be at least 1"));
        }
        if let (Some(floor), Some(ceiling)) = (self.floor, self.ceiling)
            && floor > ceiling
        {
            return Err(format!("floor = {floor}: must not be above ceiling = {ceiling}"));
        }
        Ok(())
    }
}

fn starts_at_root(key: &str, glob: &Glob) -> Result<(), String> {
    if glob.0.starts_with('/') || glob.0.starts_with("**") {
        return Ok(());
    }
    Err(format!("{key} = {:?}: cgroup paths begin with '/'", glob.0))
}

#[cfg(test)]
mod tests {
    use super::{GuardConfig, Mode};

    #[test]
    fn out_of_the_box_nothing_may_be_changed() {
        assert!(GuardConfig::default().allow.is_empty());
        assert_eq!(GuardConfig::from_toml("").unwrap(), GuardConfig::default());
    }

    #[test]
    fn an_entry_recommends_until_it_says_otherwise() {
        let config = GuardConfig::from_toml("[[allow]]\npath = '/a'").unwrap();
        assert_eq!(config.allow[0].mode, Mode::Recommend);
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for (text, names) in [
            ("sockett = '/x'", "sockett"),
            ("socket = 'x'", "socket"),
            ("connections_max = 0", "connections_max"),
            ("owners.timeout_ms = 0", "owners.timeout_ms"),
            ("owners.docker_socket = 'x'", "owners.docker_socket"),
            ("owners.dockr = true", "dockr"),
            ("egress.devices = ['a/b']", "egress.devices"),
            ("egress.of = true", "of"),
            ("deny = ['a']", "deny"),
            ("[[allow]]\npath = 'a'", "allow.path"),
            ("[[allow]]\npath = '/a'\nmode = 'rise'", "rise"),
            ("[[allow]]\npath = '/a'\nlease_max_s = 601", "lease_max_s"),
            ("[[allow]]\npath = '/a'\nlease_max_s = nan", "lease_max_s"),
            ("[[allow]]\npath = '/a'\nreclaim_floor = 2", "reclaim_floor"),
            ("[[allow]]\npath = '/a'\nchanges_per_minute = 0", "changes_per_minute"),
            ("[[allow]]\npath = '/a'\ncpu.factor = 0.5", "cpu.factor"),
            ("[[allow]]\npath = '/a'\ncpu = { floor = 2, ceiling = 1 }", "cpu.floor"),
            ("[[allow]]\npath = '/a'\nmemory.ceiling = inf", "memory.ceiling"),
            ("[[allow]]\npath = '/a'\nio_bps.floor = -1", "io_bps.floor"),
            ("[[allow]]\npath = '/a'\nknobs = ['cpu_qota']", "cpu_qota"),
            ("[[allow]]\npath = '/a'\nknobs = ['cpuset']", "owned"),
            ("[[allow]]\npath = '/a'\nreclaim_bytes_max = 0", "reclaim_bytes_max"),
        ] {
            let error = GuardConfig::from_toml(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
    }
}
