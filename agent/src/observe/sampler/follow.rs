//! Which workloads there are: those that came are tracked, those that ended forgotten, and who writes
//! their limits is followed.

use std::{collections::BTreeMap, sync::Arc};

use headroom_telemetry::WorkloadKind;

use super::{
    QUICK_EVERY_TICKS, SLOW_EVERY_TICKS, Sampler, Tracked,
    brief::Brief,
    naming::{has_names, identify},
    turns::Turns,
};
use crate::observe::{
    cgroup::{
        Layout, WorkloadFiles,
        tree::Inodes,
        watch::{LimitWatch, Written},
    },
    kernel::Topic,
};

impl Sampler {
    /// Brings the set of workloads up to date: those that ended are added to `gone`, those that came
    /// and went since the last tick are returned.
    pub(super) fn follow_tree(
        &mut self,
        at_s: f64,
        gone: &mut Vec<String>,
    ) -> BTreeMap<String, Brief> {
        let mut brief = self.kernel.feed(&mut self.tree);
        brief.retain(|path, _ids| !self.tracked.contains_key(path.as_str()));
        let is_told = self.kernel.has(Topic::CgroupEvents);
        let quick = !is_told || self.ticks.is_multiple_of(QUICK_EVERY_TICKS);
        let changes = self.tree.refresh(at_s, quick, is_told);
        self.counts.overflow = self.tree.overflow();
        self.counts.unnamed = self.tree.unnamed();
        gone.extend(changes.gone.into_iter().filter(|path| self.end(path)));
        for path in changes.made.into_iter().chain(changes.moved) {
            let Some(inodes) = self.tree.inodes(&path) else { continue };
            if let Some(tracked) = self.tracked.get_mut(path.as_str()) {
                let twin = self.tree.twin(&path);
                if tracked.twin != twin {
                    // Files of the other path are another's, or gone, now.
                    self.end(&path);
                    self.track(path, inodes);
                    continue;
                }
                tracked.inodes = inodes;
                tracked.disturb();
                let layout = &self.facts.layout;
                tracked.files.open_missing(layout, &path, &inodes, twin.as_ref(), &self.budget);
                watch_limits(&mut self.limit_watch, layout, &path, tracked);
                continue;
            }
            self.track(path, inodes);
        }
        let layout = &self.facts.layout;
        for (path, tracked) in &mut self.tracked {
            let age = self.ticks - tracked.born_tick;
            if age == 1 || (age > 0 && age.is_multiple_of(SLOW_EVERY_TICKS)) {
                let (inodes, n_files) = (tracked.inodes, tracked.files.len());
                let twin = tracked.twin.as_ref();
                tracked.files.open_missing(layout, path, &inodes, twin, &self.budget);
                if tracked.files.len() != n_files {
                    watch_limits(&mut self.limit_watch, layout, path, tracked);
                }
            }
            let is_nameless = tracked.workload.kind == WorkloadKind::Container
                && tracked.workload.names.is_none();
            if is_nameless && has_names(path, &mut self.containers, self.ticks) {
                tracked.workload = Arc::new(identify(path, &mut self.containers, self.ticks));
            }
        }
        brief
    }

    /// From now on the workload at `path` is sampled.
    pub(super) fn track(&mut self, path: String, inodes: Inodes) {
        // Completions counted by the kernel are better than files, and the files cost a read each.
        let wants_io = !self.kernel.has(Topic::BlockIo);
        let layout = &self.facts.layout;
        let twin = self.tree.twin(&path);
        let mut tracked = Tracked {
            workload: Arc::new(identify(&path, &mut self.containers, self.ticks)),
            inodes,
            files: WorkloadFiles::open(
                layout,
                &path,
                &inodes,
                twin.as_ref(),
                wants_io,
                &self.budget,
            ),
            twin,
            before: None,
            read_at: Turns::default(),
            resting: None,
            born_tick: self.ticks,
        };
        watch_limits(&mut self.limit_watch, layout, &path, &mut tracked);
        self.disturb_above(&path);
        self.tracked.insert(path.into(), tracked);
    }

    /// Has limits read that somebody wrote since the last tick.
    pub(super) fn note_written_limits(&mut self) {
        match self.limit_watch.take() {
            Written::Of(paths) => {
                for path in paths {
                    if let Some(tracked) = self.tracked.get_mut(path.as_str()) {
                        tracked.files.limits_written();
                    }
                }
            }
            Written::Anybodys => {
                self.tracked.values_mut().for_each(|tracked| tracked.files.limits_written());
            }
        }
    }

    /// Forgets a workload; false when it was not known.
    pub(super) fn end(&mut self, path: &str) -> bool {
        let Some(tracked) = self.tracked.remove(path) else { return false };
        self.limit_watch.forget(path);
        self.kernel.retire(&self.facts.layout, &tracked.inodes);
        true
    }

    /// What is above `path` has it as a child from now on, whose tasks count for it.
    fn disturb_above(&mut self, path: &str) {
        let mut above = path;
        while let Some((parent, _name)) = above.rsplit_once('/').filter(|(up, _)| !up.is_empty()) {
            if let Some(tracked) = self.tracked.get_mut(parent) {
                tracked.files.disturb();
                tracked.disturb();
            }
            above = parent;
        }
    }
}

/// Has writes of limits told of the workload at `path`, where the kernel can.
fn watch_limits(watch: &mut LimitWatch, layout: &Layout, path: &str, tracked: &mut Tracked) {
    let twin = tracked.twin.as_ref();
    let dirs = tracked.files.limit_dirs(layout, path, &tracked.inodes, twin);
    let is_told = watch.watch(path, &dirs);
    tracked.files.limits_told(is_told);
}
