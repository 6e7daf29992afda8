//! Workloads that are at one path in one hierarchy and at another in the next.
//!
//! A container's id is in its path wherever it is. Of others, their tasks tell: all of those in the one
//! cgroup are in the other, and the other way round. The workload has the path of the hierarchy that names
//! its tasks, which is also where limits are; the other path is its twin and no workload.

use std::collections::{BTreeMap, BTreeSet};

use headroom_telemetry::identity::container_in;

use super::{
    layout::HIERARCHIES_MAX,
    membership::Places,
    tree::{Inodes, Node, Tree},
};

/// Cgroups whose tasks are asked at one look.
const ASKED_PER_LOOK: usize = 4;
/// Tasks asked of each of two cgroups.
const TASKS_ASKED_MAX: usize = 32;
/// Looks in a row at which tasks tell the same before it is believed: a task is moved hierarchy by
/// hierarchy.
const TOLD_ALIKE: u32 = 2;
/// Looks until the same cgroup is asked again: twice as many each time, up to the most.
const WAIT_LOOKS_MAX: u64 = 128;

/// What the tasks of one cgroup told.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Where else they are, as told last.
    other: Option<String>,
    /// Times in a row that they told so.
    alike: u32,
    /// Look at which they are asked again, and looks waited for that.
    due: u64,
    wait: u64,
}

impl Asked {
    /// Where else the workload is, once it was told often enough.
    fn believed(&self) -> Option<&String> {
        self.other.as_ref().filter(|_path| self.alike >= TOLD_ALIKE)
    }

    fn take(&mut self, told: Told, look: u64) {
        let other = match told {
            Told::Other(path) => Some(path),
            Told::NoOther => None,
            // Between two processes of a workload, say: what was told before stays.
            Told::Nothing => {
                self.wait_longer(look);
                return;
            }
        };
        if other == self.other {
            self.alike = self.alike.saturating_add(1);
        } else {
            (self.alike, self.wait) = (1, 0);
        }
        self.other = other;
        self.wait_longer(look);
    }

    fn wait_longer(&mut self, look: u64) {
        self.wait = (2 * self.wait).clamp(1, WAIT_LOOKS_MAX);
        self.due = look + self.wait;
    }
}

/// What tasks tell of where else they are.
enum Told {
    /// No task is there that could be asked.
    Nothing,
    /// They are nowhere else, or not all at one path.
    NoOther,
    /// All are at this path, and nobody else is.
    Other(String),
}

/// The other path of a workload, and its directories there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Twin {
    /// The other path.
    pub path: String,
    /// Inodes of the directories at it; 0 where there is none.
    pub inodes: Inodes,
}

/// Directories of a workload at `path` with `twin`, by hierarchy; which of the two paths is there.
pub fn path_in<'a>(path: &'a str, twin: Option<&'a Twin>, hierarchy: usize) -> &'a str {
    twin.filter(|twin| twin.inodes[hierarchy] != 0).map_or(path, |twin| &twin.path)
}

impl Tree {
    /// The other path of the workload at `path`, if it has one.
    pub fn twin(&self, path: &str) -> Option<Twin> {
        let other = self.nodes.get(path)?.twin.as_ref()?;
        let inodes = self.nodes.get(other)?.inodes;
        Some(Twin { path: other.clone(), inodes })
    }

    /// Inodes of a known cgroup, those of its twin among them.
    pub fn inodes(&self, path: &str) -> Option<Inodes> {
        let mut inodes = self.nodes.get(path)?.inodes;
        if let Some(twin) = self.twin(path) {
            for (own, other) in inodes.iter_mut().zip(twin.inodes) {
                *own = if *own == 0 { other } else { *own };
            }
        }
        Some(inodes)
    }

    /// Finds the twins among the cgroups that there are.
    pub(super) fn join(&mut self) {
        let pairs = self.pairs();
        let others: BTreeSet<&String> = pairs.values().collect();
        for (path, node) in &mut self.nodes {
            node.is_twin = others.contains(path);
            let twin = pairs.get(path);
            if node.twin.as_ref() != twin {
                node.twin = twin.cloned();
                node.is_moved = true;
            }
        }
    }

    /// Asks tasks of some workloads that are not in every hierarchy where else they are; whether what
    /// they tell changes who is joined.
    pub(super) fn ask_tasks(&mut self) -> bool {
        let (Some(home), true) = (self.home, self.roots.iter().flatten().count() > 1) else {
            return false;
        };
        self.n_looks += 1;
        let n_believed = self.n_believed();
        let mut known = std::mem::take(&mut self.asked);
        let (mut due, mut partial) = (Vec::new(), BTreeMap::new());
        for (path, node) in self.nodes.iter().filter(|(_, node)| self.is_partial(node, home)) {
            let asked = known.remove(path);
            // One with a twin that no task told of has it by its container id.
            if node.twin.is_some() && asked.as_ref().and_then(Asked::believed).is_none() {
                continue;
            }
            let asked = asked.unwrap_or_default();
            if asked.due <= self.n_looks {
                due.push((asked.due, path.clone()));
            }
            partial.insert(path.clone(), asked);
        }
        self.asked = partial;
        let mut has_changed = self.n_believed() != n_believed;
        due.sort();
        for (_due, path) in due.into_iter().take(ASKED_PER_LOOK) {
            let told = self.told_by_tasks(&path, home);
            let look = self.n_looks;
            let Some(asked) = self.asked.get_mut(&path) else { continue };
            let before = asked.believed().cloned();
            asked.take(told, look);
            has_changed |= asked.believed() != before.as_ref();
        }
        has_changed
    }

    fn n_believed(&self) -> usize {
        self.asked.values().filter(|asked| asked.believed().is_some()).count()
    }

    /// Whether a cgroup is a workload that is not in every hierarchy.
    fn is_partial(&self, node: &Node, home: usize) -> bool {
        let mut all = self.roots.iter().zip(node.inodes);
        node.is_workload
            && node.inodes[home] != 0
            && all.any(|(root, inode)| root.is_some() && inode == 0)
    }

    /// The one other path at which all tasks of `path` are, and no others. Tasks that end or move
    /// meanwhile are passed over; one that stays and is elsewhere means that there is no such path.
    fn told_by_tasks(&self, path: &str, home: usize) -> Told {
        let mut told = Told::Nothing;
        for places in self.places_of_tasks(path, home) {
            let other = self.other_place(path, &places);
            let is_alike = match &told {
                Told::Other(known) => other.as_ref() == Some(known),
                Told::Nothing | Told::NoOther => true,
            };
            told = other.filter(|_path| is_alike).map_or(Told::NoOther, Told::Other);
            if matches!(told, Told::NoOther) {
                break;
            }
        }
        match told {
            Told::Other(other) if !self.holds_only(&other, path, home) => Told::NoOther,
            told => told,
        }
    }

    /// Where processes are that are directly in `path` of hierarchy `h` still, when they are asked; each
    /// is asked when its turn comes.
    fn places_of_tasks(&self, path: &str, h: usize) -> impl Iterator<Item = Places> {
        let listed = self.roots[h].as_ref().map(|root| root.processes(path, TASKS_ASKED_MAX));
        let places =
            listed.unwrap_or_default().into_iter().filter_map(|pid| self.memberships.of(pid));
        places.filter(move |places| places[h].as_deref() == Some(path))
    }

    /// The one path at which a task of `path` is in the hierarchies that lack `path`. In the root of a
    /// hierarchy it is in no cgroup there.
    fn other_place(&self, path: &str, places: &Places) -> Option<String> {
        let own = self.nodes.get(path)?;
        let lacking = places.iter().zip(own.inodes).filter(|(_place, inode)| *inode == 0);
        let told = lacking.filter_map(|(place, _inode)| place.as_ref());
        let mut others = told.filter(|place| *place != "/");
        let first = others.next()?;
        others.all(|other| other == first).then(|| first.clone())
    }

    /// Whether the cgroup at `other` can be part of the workload at `path`, and every task in it is of
    /// that workload.
    fn holds_only(&self, other: &str, path: &str, home: usize) -> bool {
        if !self.may_be_joined(path, other, home) {
            return false;
        }
        let Some(twin) = self.nodes.get(other) else { return false };
        let places = (0..self.roots.len()).filter(|h| twin.inodes[*h] != 0);
        let mut places = places.flat_map(|h| self.places_of_tasks(other, h));
        places.all(|places| places[home].as_deref() == Some(path))
    }

    /// Whether both are there, one with the hierarchy that names tasks and one without, and no
    /// hierarchy has both.
    fn may_be_joined(&self, path: &str, other: &str, home: usize) -> bool {
        let (Some(own), Some(twin)) = (self.nodes.get(path), self.nodes.get(other)) else {
            return false;
        };
        let is_there = twin.inodes.iter().any(|&inode| inode != 0);
        own.inodes[home] != 0 && twin.inodes[home] == 0 && is_there && is_apart(own, twin)
    }

    /// The other path by the path of the workload.
    fn pairs(&self) -> BTreeMap<String, String> {
        let Some(home) = self.home else { return BTreeMap::new() };
        let mut pairs = self.pairs_by_container(home);
        let mut taken: BTreeSet<String> = pairs.values().cloned().collect();
        for (path, asked) in &self.asked {
            let Some(other) = asked.believed() else { continue };
            let is_free = !pairs.contains_key(path) && !pairs.contains_key(other);
            if is_free && self.may_be_joined(path, other, home) && taken.insert(other.clone()) {
                pairs.insert(path.clone(), other.clone());
            }
        }
        pairs
    }

    fn pairs_by_container(&self, home: usize) -> BTreeMap<String, String> {
        let mut by_container: BTreeMap<(&str, &str), Vec<(&String, &Node)>> = BTreeMap::new();
        let is_there = |node: &Node| node.inodes.iter().any(|&inode| inode != 0);
        for (path, node) in self.nodes.iter().filter(|(_, node)| is_there(node)) {
            if let Some(found) = container_in(path) {
                by_container.entry((found.id, found.within)).or_default().push((path, node));
            }
        }
        let pair = |found: Vec<(&String, &Node)>| {
            let [(first, one), (second, two)] = found.as_slice() else { return None };
            let is_apart = is_apart(one, two);
            match (one.inodes[home] != 0, two.inodes[home] != 0) {
                (true, false) if is_apart => Some(((*first).clone(), (*second).clone())),
                (false, true) if is_apart => Some(((*second).clone(), (*first).clone())),
                _ => None,
            }
        };
        by_container.into_values().filter_map(pair).collect()
    }
}

/// Whether no hierarchy has both.
fn is_apart(one: &Node, two: &Node) -> bool {
    (0..HIERARCHIES_MAX).all(|h| one.inodes[h] == 0 || two.inodes[h] == 0)
}
