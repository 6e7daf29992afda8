//! Many cgroups with one process of this program in each; ended and removed when dropped.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::player::Role;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::demo::processes::Process;
use crate::process;

/// Who is in one cgroup.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) threads: u32,
    /// The cgroup's own CPU limit, cores; `None` is none.
    pub(super) limit_cores: Option<f64>,
}

/// The processes in their cgroups.
pub(super) struct Crowd {
    players: Vec<(Process, Cgroup)>,
    parent: Cgroup,
    hierarchies: Hierarchies,
    logs: PathBuf,
}

impl Crowd {
    /// Makes a cgroup for each of `members`, in order, and starts its process in it.
    pub(super) fn gather(members: impl IntoIterator<Item = Member>) -> Result<Self> {
        let mut hierarchies = Hierarchies::detect()?;
        hierarchies.enable_controllers()?;
        let parent = Cgroup::create(&hierarchies, "/headroom-bench")?;
        let logs =
            std::env::temp_dir().join(format!("headroom-bench-crowd-{}", std::process::id()));
        std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let mut crowd = Self { players: Vec::new(), parent, hierarchies, logs };
        for (number, member) in members.into_iter().enumerate() {
            crowd.add(number, member)?;
        }
        Ok(crowd)
    }

    fn add(&mut self, number: usize, member: Member) -> Result<()> {
        let name = member.role.name();
        let cgroup =
            Cgroup::create(&self.hierarchies, &format!("/headroom-bench/{name}-{number:04}"))?;
        if member.limit_cores.is_some() {
            cgroup.set_cpu_limit(member.limit_cores)?;
        }
        let mut command = process::own();
        let threads = member.threads.to_string();
        command.args(["bench", "--cgroup-threads", &threads, "--play", name]).process_group(0);
        let player = Process::start(name, &self.logs, &mut command)?;
        cgroup.add(player.id())?;
        self.players.push((player, cgroup));
        Ok(())
    }

    pub(super) fn size(&self) -> u32 {
        u32::try_from(self.players.len()).unwrap_or(u32::MAX)
    }
}

impl Drop for Crowd {
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
