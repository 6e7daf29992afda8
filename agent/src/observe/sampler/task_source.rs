//! Features from tasks in `/proc`, where the kernel programs that would count them are absent.

use std::{collections::BTreeMap, sync::Arc};

use headroom_telemetry::{Fact, Feature, Sample, Workload};

use super::{config::ObserveConfig, kernel_source::KernelSource};
use crate::observe::{
    cgroup::{Layout, Version, tree::Inodes},
    kernel::Topic,
    tasks::{TaskFiles, TaskLists, TaskRates},
};

/// What is left without a topic's programs, and what it falls short of.
const SOURCES: [(Topic, &[Feature], &str, &str); 3] = [
    (
        Topic::RunQueue,
        &[
            Feature::RunqWaitRatio,
            Feature::ContextSwitches,
            Feature::VoluntarySwitches,
            Feature::InvoluntarySwitches,
        ],
        "schedstat and status of tasks",
        "procfs: means only, short-lived tasks missed",
    ),
    (
        Topic::Syscalls,
        &[Feature::SyscallRead, Feature::SyscallWrite],
        "io of processes",
        "procfs: calls through the file layer only, short-lived processes missed",
    ),
    (
        Topic::Network,
        &[Feature::NetRxBps, Feature::NetTxBps, Feature::NetRxPps, Feature::NetTxPps],
        "net/dev of the workload's own network namespace",
        "procfs: only workloads that are alone in a network namespace",
    ),
];

/// Reads tasks while a topic they can stand in for is absent.
#[derive(Debug)]
pub(super) struct TaskSource(TaskFiles);

impl TaskSource {
    pub(super) fn new(config: &ObserveConfig) -> Self {
        Self(TaskFiles::new(&config.root, config.procfs_tasks))
    }

    /// Whether a topic is absent that tasks can stand in for, and reading them is allowed.
    fn is_needed(&self, kernel: &KernelSource) -> bool {
        self.0.is_on() && SOURCES.iter().any(|(topic, ..)| !kernel.has(*topic))
    }

    /// Where `feature` comes from instead of its absent kernel program, and what is lost by it.
    pub(super) fn feature_state(
        &self,
        feature: Feature,
        kernel: &KernelSource,
    ) -> Option<Fact<&'static str>> {
        let (topic, _, source, shortfall) =
            SOURCES.into_iter().find(|(_, features, ..)| features.contains(&feature))?;
        (self.0.is_on() && !kernel.has(topic)).then(|| Fact::degraded(source, shortfall))
    }

    /// Why the workload at `path` has no value of `feature` from here.
    pub(super) fn why_missing(&self, path: &str, feature: Feature) -> &'static str {
        self.0.why_missing(path, SOURCES[2].1.contains(&feature))
    }

    /// The state of this source as a whole.
    pub(super) fn state(&self, kernel: &KernelSource) -> Fact<String> {
        if !self.0.is_on() {
            return Fact::absent("switched off by observe.procfs_tasks");
        }
        if !self.is_needed(kernel) {
            return Fact::Known("not needed: kernel programs count".to_owned());
        }
        let told = format!("{} tasks read in the last period", self.0.n_read());
        Fact::degraded(
            told,
            "stands in for kernel programs: no quantiles, short-lived tasks missed",
        )
    }

    /// Fills what kernel programs would have counted into the samples. `inodes_of` tells in which
    /// hierarchies a workload is; `at_s` is a clock that does not go back.
    pub(super) fn fill(
        &mut self,
        workloads: &mut [(Arc<Workload>, Sample)],
        layout: &Layout,
        kernel: &KernelSource,
        at_s: f64,
        inodes_of: impl Fn(&str) -> Option<Inodes>,
    ) {
        if !self.is_needed(kernel) {
            return;
        }
        let lists: BTreeMap<String, TaskLists> = workloads
            .iter()
            .filter_map(|(workload, _sample)| {
                let inodes = inodes_of(&workload.path)?;
                Some((workload.path.clone(), lists_of(layout, &workload.path, &inodes)?))
            })
            .collect();
        let rates = self.0.look(&lists, at_s);
        for (workload, sample) in workloads {
            if let Some(rates) = rates.get(&workload.path) {
                fill_one(sample, rates, kernel);
            }
        }
    }
}

/// The lists of the hierarchy that names tasks in kernel counters, or any other the workload is in.
fn lists_of(layout: &Layout, path: &str, inodes: &Inodes) -> Option<TaskLists> {
    let is_in = |index: &usize| inodes[*index] != 0;
    let home = layout.task_ids().filter(is_in);
    let index = home.or_else(|| (0..layout.hierarchies.len()).find(is_in))?;
    let hierarchy = &layout.hierarchies[index];
    let dir = hierarchy.dir.join(path.trim_start_matches('/'));
    let threads = match hierarchy.version {
        Version::V1 => "tasks",
        Version::V2 => "cgroup.threads",
    };
    Some(TaskLists { threads: dir.join(threads), processes: dir.join("cgroup.procs") })
}

fn fill_one(sample: &mut Sample, rates: &TaskRates, kernel: &KernelSource) {
    let values = [
        [rates.wait_ratio, rates.switches, rates.voluntary, rates.involuntary],
        [rates.reads, rates.writes, None, None],
        rates.traffic.map_or([None; 4], |traffic| traffic.map(Some)),
    ];
    for ((topic, features, ..), values) in SOURCES.iter().zip(values) {
        if kernel.has(*topic) {
            continue;
        }
        for (feature, value) in features.iter().zip(values) {
            sample.set_some(*feature, value);
        }
    }
}
