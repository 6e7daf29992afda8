//! Loaded kernel programs and cgroups of our own.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use headroom_agent::observe::kernel::{
    CgroupId, Hierarchy, KernelConfig, KernelCounters, KernelError, KernelProbes, Topic,
};
use headroom_tests::cgroup::{Cgroup, Hierarchies};

/// Prints the skip that the test runner collects, unless `can` is true.
pub(crate) fn skip_unless(can: bool, reason: &str) {
    if !can {
        println!("skipped: {reason}");
    }
}

/// The kernel programs, and the hierarchies that cgroups are made in.
pub(crate) struct World {
    hierarchies: Hierarchies,
    /// Has the programs in it.
    turn: MutexGuard<'static, Option<KernelProbes>>,
    /// Whether the next test may go on with these programs.
    is_usual: bool,
}

/// Tests take turns: one that switches controllers off again must not pull them from under another.
/// The turn hands on the programs as they are loaded by default, which takes seconds in an emulated
/// machine: what they count of one test does not reach another's cgroups.
static TURN: Mutex<Option<KernelProbes>> = Mutex::new(None);

/// A cgroup in every hierarchy, with those above it that had to be made; removed when dropped.
pub(crate) struct Group {
    levels: Vec<Cgroup>,
    path: String,
}

impl Group {
    /// Moves a process in.
    pub(crate) fn add(&self, pid: u32) {
        if let Some(innermost) = self.levels.last() {
            innermost.add(pid).unwrap();
        }
    }
}

impl Group {
    /// Its path below each hierarchy's root.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Sets how much memory it may use.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        if let Some(innermost) = self.levels.last() {
            innermost.set_memory_limit(bytes).unwrap();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for level in self.levels.iter().rev() {
            level.remove();
        }
    }
}

impl World {
    /// Loads the programs. `None`, after saying why, where these tests cannot run; a topic that
    /// does not attach where the rest does is a failure.
    pub(crate) fn new(topics: &[Topic]) -> Option<Self> {
        let mut turn = take_turn()?;
        match turn.as_mut() {
            Some(probes) => {
                // What happened since the last test is not this one's.
                probes.drain_events();
                probes.read().unwrap();
            }
            None => *turn = Some(load(&KernelConfig::default())?),
        }
        Some(Self::with_probes(turn, topics, true))
    }

    /// As [`World::new`], just loaded, with a given number of slots.
    pub(crate) fn with_slots(topics: &[Topic], slots: u32) -> Option<Self> {
        Self::with_config(topics, &KernelConfig { slots, ..KernelConfig::default() })
    }

    /// As [`World::new`], loaded as `config` says, the object aside.
    pub(crate) fn with_config(topics: &[Topic], config: &KernelConfig) -> Option<Self> {
        let mut turn = take_turn()?;
        // The former go first: two of every program would be more than a host has.
        *turn = None;
        *turn = Some(load(config)?);
        Some(Self::with_probes(turn, topics, false))
    }

    fn with_probes(
        turn: MutexGuard<'static, Option<KernelProbes>>,
        topics: &[Topic],
        is_usual: bool,
    ) -> Self {
        let mut hierarchies = Hierarchies::detect().unwrap();
        hierarchies.enable_controllers().unwrap();
        let world = Self { hierarchies, turn, is_usual };
        for topic in topics {
            assert!(world.probes().has(*topic), "{:#?}", world.probes().states());
        }
        world
    }

    /// The programs, to look at.
    pub(crate) fn probes(&self) -> &KernelProbes {
        self.turn.as_ref().unwrap()
    }

    /// The programs, to read.
    pub(crate) fn probes_mut(&mut self) -> &mut KernelProbes {
        self.turn.as_mut().unwrap()
    }

    /// Why this kernel cannot serve a topic; `None` when it does. A topic that does not attach
    /// although the kernel has what it takes is a failure.
    pub(crate) fn why_absent(&self, topic: Topic) -> Option<String> {
        if self.probes().has(topic) {
            return None;
        }
        let states = self.probes().states();
        let state = states.iter().find(|state| state.name == topic.name()).unwrap();
        let reason = state.state.reason().unwrap_or_default();
        assert!(reason.starts_with("this kernel "), "{}: {reason}", state.name);
        Some(reason.to_owned())
    }

    /// How a topic is attached, with what is to be known about its numbers.
    pub(crate) fn state_of(&self, topic: Topic) -> String {
        let states = self.probes().states();
        let state = states.iter().find(|state| state.name == topic.name());
        state.map(|state| state.state.to_string()).unwrap_or_default()
    }

    /// A new, empty cgroup in every hierarchy.
    pub(crate) fn cgroup(&self, name: &str) -> Group {
        static N_MADE: AtomicU32 = AtomicU32::new(0);
        let n_made = N_MADE.fetch_add(1, Ordering::Relaxed);
        self.cgroup_at(&format!("/headroom-test-{}-{n_made}-{name}", std::process::id()))
    }

    /// As [`World::cgroup`], with a given path.
    pub(crate) fn cgroup_at(&self, path: &str) -> Group {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
        let make = |end| Cgroup::create(&self.hierarchies, &path[..end]).unwrap();
        Group { levels: ends.map(make).collect(), path: path.to_owned() }
    }

    /// Every id of a cgroup.
    pub(crate) fn ids(&self, cgroup: &Group) -> Vec<CgroupId> {
        let layout = self.probes().layout();
        let mut used = vec![layout.task, layout.block, layout.network];
        used.sort();
        used.dedup();
        used.into_iter().map(|hierarchy| self.id(cgroup, hierarchy)).collect()
    }

    /// The id under which tasks of a cgroup are counted.
    pub(crate) fn task_id(&self, cgroup: &Group) -> CgroupId {
        self.id(cgroup, self.probes().layout().task)
    }

    fn id(&self, cgroup: &Group, hierarchy: Hierarchy) -> CgroupId {
        let mount = self.probes().layout().mount(hierarchy).unwrap();
        let dir = mount.join(Path::new(&cgroup.path).strip_prefix("/").unwrap());
        CgroupId { hierarchy, inode: std::fs::metadata(dir).unwrap().ino() }
    }

    /// What was counted for a cgroup in all hierarchies; `None` when it has no slot.
    pub(crate) fn find(&mut self, cgroup: &Group) -> Option<KernelCounters> {
        let ids = self.ids(cgroup);
        let all = self.probes_mut().read().unwrap();
        let mut own = all.iter().filter(|(id, _)| ids.contains(id)).map(|(_, found)| found);
        let mut total = own.next()?.clone();
        own.for_each(|found| total.merge(found));
        Some(total)
    }

    /// As [`World::find`], and no event may have gone without a slot.
    pub(crate) fn counters(&mut self, cgroup: &Group) -> KernelCounters {
        let counters =
            self.find(cgroup).unwrap_or_else(|| panic!("no counters for {}", cgroup.path));
        let stats = self.probes().stats();
        assert_eq!((stats.slotless_events, stats.undecodable_records), (0, 0));
        counters
    }

    /// How many cgroups there are in the hierarchies that counters refer to.
    pub(crate) fn n_cgroups(&self) -> usize {
        let layout = self.probes().layout();
        let mut roots: Vec<_> = [layout.task, layout.block, layout.network]
            .into_iter()
            .filter_map(|hierarchy| layout.mount(hierarchy))
            .collect();
        roots.sort();
        roots.dedup();
        roots.into_iter().map(n_folders).sum()
    }

    /// Long enough for retired slots to be given again.
    pub(crate) fn let_slots_rest(&mut self) {
        thread::sleep(Duration::from_millis(60));
        self.probes_mut().read().unwrap();
    }

    /// Makes sure that the cgroup of this test had an event before any other that follows.
    pub(crate) fn take_a_slot_ourselves(&mut self) {
        thread::sleep(Duration::from_millis(1));
        while self.probes_mut().read().unwrap().is_empty() {
            thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.hierarchies.restore_controllers();
        // A test that failed may have left anything.
        if !self.is_usual || thread::panicking() {
            *self.turn = None;
        }
    }
}

/// Waits for the turn; `None`, after saying why, where these tests cannot run.
fn take_turn() -> Option<MutexGuard<'static, Option<KernelProbes>>> {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        skip_unless(false, &reason);
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Loads the programs; `None`, after saying why, where that cannot be.
fn load(config: &KernelConfig) -> Option<KernelProbes> {
    let object = std::env::var_os("HEADROOM_BPF_OBJECT").map(PathBuf::from);
    match KernelProbes::load(&KernelConfig { object, ..config.clone() }) {
        Ok(probes) => Some(probes),
        Err(error @ (KernelError::NoObject | KernelError::NotPermitted)) => {
            skip_unless(false, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Folders below `root`, and itself. Those that vanish meanwhile do not matter.
fn n_folders(root: &Path) -> usize {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    1 + folders.map(|entry| n_folders(&entry.path())).sum::<usize>()
}
