//! Many cgroups with many threads, few of which run: what observing them costs.
//!
//! The agent watches alone, without guard, aggregator or forecasts, and measures itself.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use headroom_measure::Figure;

use super::crowd::{Crowd, Member};
use super::player::Role;
use super::rig::Programs;
use crate::progress;

/// What each figure is to reach with 500 cgroups, 2,000 threads and a period of a second, by its
/// name.
const GOALS: [(&str, &str); 3] = [
    ("observing, CPU", "goal 0.3 %"),
    ("resident memory", "goal 32 MB, 30.5 MiB"),
    ("kernel memory of maps", "goal 16 MB, 15.3 MiB"),
];

/// Who is there to be watched.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) cgroups: u32,
    /// In each cgroup.
    pub(super) threads: u32,
    /// Share of the cgroups that work ten times a second.
    pub(super) busy_percent: u32,
}

impl Scale {
    fn members(self) -> impl Iterator<Item = Member> {
        (0..self.cgroups).map(move |number| {
            // Spread over the names, as they are over a host.
            let is_busy = number * self.busy_percent % 100 + self.busy_percent > 99;
            let role = if is_busy { Role::Steady } else { Role::Idle };
            Member { role, threads: self.threads, limit_cores: None }
        })
    }
}

pub(super) fn run(programs: &Programs, scale: Scale, watch_s: u64) -> Result<Vec<Figure>> {
    let n_busy = scale.members().filter(|member| member.role == Role::Steady).count();
    let what = format!(
        "{} cgroups, {} threads, {n_busy} of the cgroups at work",
        scale.cgroups,
        scale.cgroups * scale.threads
    );
    let crowd =
        progress::step(&what, "mostly idle, as on a real host", || Crowd::gather(scale.members()))?;
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
    drop(crowd);
    let mut figures = figures?;
    for figure in &mut figures {
        let goal = GOALS.into_iter().find(|(name, _goal)| *name == figure.name);
        let goal = goal.map_or_else(String::new, |(_name, goal)| format!("; {goal}"));
        figure.compare = format!("{}; {what}{goal}", figure.compare);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_at_work_is_met_and_spread() {
        let scale = Scale { cgroups: 500, threads: 4, busy_percent: 5 };
        let busy: Vec<usize> = scale
            .members()
            .enumerate()
            .filter(|(_number, member)| member.role == Role::Steady)
            .map(|(number, _member)| number)
            .collect();
        assert_eq!(busy.len(), 25);
        assert!(busy.windows(2).all(|pair| pair[1] - pair[0] == 20), "{busy:?}");
    }
}
