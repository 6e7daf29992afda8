//! Many cgroups with many threads, few of which run: what observing them costs.
//!
//! Every cgroup holds one process of this program; the agent watches alone, without guard,
//! aggregator or forecasts, and measures itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use headroom_measure::Figure;

use super::player::Role;
use super::rig::Programs;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::demo::processes::Process;
use crate::{process, progress};

/// Who is there to be watched.
#[derive(Clone, Copy)]
pub(super) struct Crowd {
    pub(super) cgroups: u32,
    /// In each cgroup.
    pub(super) threads: u32,
    /// Share of the cgroups that work ten times a second.
    pub(super) busy_percent: u32,
}

pub(super) fn run(programs: &Programs, crowd: Crowd, watch_s: u64) -> Result<Vec<Figure>> {
    let n_busy = crowd.cgroups * crowd.busy_percent / 100;
    let what = format!(
        "{} cgroups, {} threads, {n_busy} of the cgroups at work",
        crowd.cgroups,
        crowd.cgroups * crowd.threads
    );
    let gathered = progress::step(&what, "mostly idle, as on a real host", || gather(crowd))?;
    let figures = progress::step("watch the agent observe them", "it measures itself", || {
        let mut command = Command::new(programs.agent());
        command.args(["selfbench", "--json", "--watch", &watch_s.to_string()]);
        let output = command.stderr(Stdio::inherit()).output().context("start headroom-agent")?;
        if !output.status.success() {
            bail!("headroom-agent selfbench ended with {}", output.status);
        }
        let figures: Vec<Figure> =
            serde_json::from_slice(&output.stdout).context("read what selfbench measured")?;
        Ok(figures)
    });
    drop(gathered);
    let mut figures = figures?;
    for figure in &mut figures {
        figure.compare = format!("{}; {what}", figure.compare);
    }
    Ok(figures)
}

/// Processes in their cgroups; ended and removed when dropped.
struct Gathered {
    players: Vec<(Process, Cgroup)>,
    parent: Cgroup,
    hierarchies: Hierarchies,
    logs: PathBuf,
}

fn gather(crowd: Crowd) -> Result<Gathered> {
    let mut hierarchies = Hierarchies::detect()?;
    hierarchies.enable_controllers()?;
    let parent = Cgroup::create(&hierarchies, "/headroom-bench")?;
    let logs = std::env::temp_dir().join(format!("headroom-bench-scale-{}", std::process::id()));
    std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let mut gathered = Gathered { players: Vec::new(), parent, hierarchies, logs };
    let threads = crowd.threads.to_string();
    for number in 0..crowd.cgroups {
        // Spread over the names, as they are over a host.
        let is_busy = number * crowd.busy_percent % 100 + crowd.busy_percent > 99;
        let role = if is_busy { Role::Steady } else { Role::Idle };
        let path = format!("/headroom-bench/{}-{number:04}", role.name());
        let cgroup = Cgroup::create(&gathered.hierarchies, &path)?;
        let mut command = process::own();
        command
            .args(["bench", "--cgroup-threads", &threads, "--play", role.name()])
            .process_group(0);
        let player = Process::start(role.name(), &gathered.logs, &mut command)?;
        cgroup.add(player.id())?;
        gathered.players.push((player, cgroup));
    }
    Ok(gathered)
}

impl Drop for Gathered {
    fn drop(&mut self) {
        for (player, cgroup) in &mut self.players {
            player.stop(Duration::from_secs(5));
            cgroup.remove();
        }
        self.parent.remove();
        self.hierarchies.restore_controllers();
        if let Err(error) = std::fs::remove_dir_all(&self.logs) {
            eprintln!("left {} behind: {error}", self.logs.display());
        }
    }
}
