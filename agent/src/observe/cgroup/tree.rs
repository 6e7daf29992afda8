//! Which cgroups exist and which of them are workloads.
//!
//! One workload is one path, joined over all hierarchies; `join` finds those with two paths. Changes are
//! found three ways, cheapest first: kernel events name a path; a quick look compares inode and link
//! count of known directories; a full walk now and then catches the rest.

use std::{collections::BTreeMap, path::Path};

use headroom_telemetry::Glob;

use super::{
    join::Asked,
    layout::{HIERARCHIES_MAX, Layout},
    membership::Memberships,
    walk::{Root, join},
};

/// The most cgroups remembered, workloads or not.
const NODES_MAX: usize = 65_536;

/// Of so many full walks one is made while events tell of changes: it reads every directory of every
/// hierarchy, for nothing as a rule.
const FULL_WALKS_SPARED: f64 = 20.0;

/// Quick looks of which one includes a given cgroup without children.
const LEAF_EVERY_LOOKS: u64 = 10;

/// Quick looks after which a cgroup without tasks is asked about them only every so often.
const EAGER_LOOKS: u32 = 10;

/// Links of a directory without children.
const CHILDLESS_LINKS: u64 = 2;

/// Inode of the cgroup's directory per hierarchy, in [`Layout::hierarchies`] order; 0 is absent.
pub type Inodes = [u64; HIERARCHIES_MAX];

/// Which cgroups count as workloads.
#[derive(Clone, Debug)]
pub struct TreeConfig {
    /// Paths that are workloads whether or not tasks are directly inside. Empty: every cgroup that
    /// has or had tasks directly inside.
    pub include: Vec<Glob>,
    /// Paths that never are.
    pub exclude: Vec<Glob>,
    /// The most workloads; further ones are counted in [`Tree::overflow`].
    pub workloads_max: usize,
    /// Time between full walks, seconds; twenty times as long while events tell of changes.
    pub full_walk_s: f64,
}

/// Workloads that came, went, or appeared in another hierarchy since the last look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// New workloads. A path that was removed and made again is in both lists.
    pub made: Vec<String>,
    /// Workloads whose cgroup is gone from every hierarchy.
    pub gone: Vec<String>,
    /// Workloads whose set of hierarchies changed.
    pub moved: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) inodes: Inodes,
    links: [u64; HIERARCHIES_MAX],
    had_tasks: bool,
    pub(super) is_workload: bool,
    looks: u32,
    is_remade: bool,
    pub(super) is_moved: bool,
    /// Where else the workload is.
    pub(super) twin: Option<String>,
    /// Whether it is part of the workload at another path.
    pub(super) is_twin: bool,
}

/// The cgroups of a host.
#[derive(Debug)]
pub struct Tree {
    pub(super) roots: Vec<Option<Root>>,
    pub(super) memberships: Memberships,
    /// What tasks told of cgroups that are not in every hierarchy, by path.
    pub(super) asked: BTreeMap<String, Asked>,
    /// Looks so far.
    pub(super) n_looks: u64,
    root_links: [u64; HIERARCHIES_MAX],
    pub(super) nodes: BTreeMap<String, Node>,
    /// Index of the hierarchy that names tasks, and so workloads.
    pub(super) home: Option<usize>,
    config: TreeConfig,
    workloads: usize,
    overflow: usize,
    unnamed: usize,
    last_full_s: Option<f64>,
    quick_looks: u64,
}

impl Tree {
    /// A tree over `layout` of the host whose files are below `root`, empty until the first
    /// [`Tree::refresh`]. A hierarchy that cannot be opened has no cgroups.
    pub fn new(root: &Path, layout: &Layout, config: TreeConfig) -> Self {
        let roots = layout.hierarchies.iter().map(|found| Root::open(found.dir.clone()).ok());
        Self {
            roots: roots.collect(),
            memberships: Memberships::new(root, layout),
            asked: BTreeMap::new(),
            n_looks: 0,
            root_links: [0; HIERARCHIES_MAX],
            nodes: BTreeMap::new(),
            home: layout.task_ids(),
            config,
            workloads: 0,
            overflow: 0,
            unnamed: 0,
            last_full_s: None,
            quick_looks: 0,
        }
    }

    /// Number of workloads.
    pub fn len(&self) -> usize {
        self.workloads
    }

    /// Whether there is no workload.
    pub fn is_empty(&self) -> bool {
        self.workloads == 0
    }

    /// Workloads left out because there were too many, at the last look.
    pub fn overflow(&self) -> usize {
        self.overflow
    }

    /// Cgroups left out because their name is not UTF-8, at the last full walk.
    pub fn unnamed(&self) -> usize {
        self.unnamed
    }

    /// Whether `path`, which is gone, would have been a workload; `had_tasks` tells whether tasks
    /// ran in it.
    pub fn would_be_workload(&self, path: &str, had_tasks: bool) -> bool {
        let matches = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(path));
        let is_wanted = match self.config.include.as_slice() {
            [] => had_tasks,
            include => matches(include),
        };
        is_wanted && !matches(&self.config.exclude)
    }

    /// Looks again at `path` alone, e.g. because the kernel told of its making or removal.
    pub fn look_at(&mut self, path: &str) {
        if path.len() < 2 || !path.starts_with('/') {
            return;
        }
        for h in 0..self.roots.len() {
            let state = self.roots[h].as_ref().and_then(|root| root.stat(path));
            self.note(path, h, state.map_or(0, |state| state.ino));
        }
    }

    /// Records that tasks ran in `path`.
    pub fn note_tasks(&mut self, path: &str) {
        if let Some(node) = self.nodes.get_mut(path) {
            node.had_tasks = true;
        }
    }

    /// Asks for a full walk at the next refresh, e.g. because kernel events were lost.
    pub fn distrust(&mut self) {
        self.last_full_s = None;
    }

    /// Looks for changes: fully when due, otherwise quickly when `quick`, and settles which cgroups
    /// are workloads. `is_told` says that events tell of cgroups made and removed, so that a full
    /// walk is a safeguard only. `now_s` is any clock that does not go back.
    pub fn refresh(&mut self, now_s: f64, quick: bool, is_told: bool) -> Changes {
        let spared = if is_told { FULL_WALKS_SPARED } else { 1.0 };
        let every_s = self.config.full_walk_s * spared;
        let is_due = self.last_full_s.is_none_or(|last| now_s - last >= every_s);
        if is_due {
            self.last_full_s = Some(now_s);
            self.walk_fully();
        } else if quick {
            self.look_quickly();
        } else {
            self.look_at_young();
        }
        self.settle(is_due)
    }

    /// A cgroup is made in one hierarchy after the other, and an event may tell of the first only.
    fn look_at_young(&mut self) {
        let young = self.nodes.iter().filter(|(_path, node)| node.looks < EAGER_LOOKS);
        let young: Vec<String> = young.map(|(path, _node)| path.clone()).collect();
        for path in young {
            self.look_at(&path);
        }
    }

    fn walk_fully(&mut self) {
        self.unnamed = 0;
        for h in 0..self.roots.len() {
            let mut found = BTreeMap::new();
            if let Some(root) = &self.roots[h] {
                root.walk("/", &mut self.unnamed, &mut |path, ino| {
                    found.insert(path, ino);
                    found.len() < NODES_MAX
                });
            }
            for (path, node) in &mut self.nodes {
                if !found.contains_key(path) {
                    set(node, h, 0);
                }
            }
            for (path, ino) in &found {
                self.note(path, h, *ino);
            }
            self.note_links(h, found.keys());
        }
    }

    /// Notes how many links directories of hierarchy `h` have whose children are all in `paths`, so
    /// that quick looks need not list them to know.
    fn note_links<'p>(&mut self, h: usize, paths: impl Iterator<Item = &'p String>) {
        let mut links: BTreeMap<&str, u64> = BTreeMap::new();
        for path in paths {
            links.entry(path).or_insert(CHILDLESS_LINKS);
            let parent = path.rsplit_once('/').map_or("", |(parent, _name)| parent);
            *links.entry(parent).or_insert(CHILDLESS_LINKS) += 1;
        }
        self.root_links[h] = links.remove("").unwrap_or(CHILDLESS_LINKS);
        for (path, links) in links {
            if let Some(node) = self.nodes.get_mut(path) {
                node.links[h] = links;
            }
        }
    }

    /// Compares every known directory with what `stat` says now.
    fn look_quickly(&mut self) {
        self.quick_looks = self.quick_looks.wrapping_add(1);
        for h in 0..self.roots.len() {
            let Some(root) = &self.roots[h] else { continue };
            let mut changed = Vec::new();
            if root.stat("/").is_none_or(|now| now.links < 2 || now.links != self.root_links[h]) {
                changed.push("/".to_owned());
            }
            for (path, node) in &mut self.nodes {
                if node.inodes[h] == 0 || !is_due(node, h, self.quick_looks) {
                    continue;
                }
                let Some(now) = root.stat(path) else {
                    set(node, h, 0);
                    continue;
                };
                if now.ino != node.inodes[h] {
                    set(node, h, now.ino);
                }
                if now.links < 2 || now.links != node.links[h] {
                    changed.push(path.clone());
                }
            }
            for path in changed {
                self.list_again(&path, h);
            }
        }
    }

    /// Reads the children of `path` in hierarchy `h`, and all below children not known before.
    fn list_again(&mut self, path: &str, h: usize) {
        let Some(root) = &self.roots[h] else { return };
        let links = root.stat(path).map_or(0, |state| state.links);
        let mut found = Vec::new();
        let mut unnamed = 0;
        for (name, ino) in root.children(path, &mut unnamed) {
            let child = join(path, &name);
            if self.nodes.get(&child).is_none_or(|node| node.inodes[h] != ino) {
                root.walk(&child, &mut unnamed, &mut |path, ino| {
                    found.push((path, ino));
                    found.len() < NODES_MAX
                });
            }
            found.push((child, ino));
        }
        if path == "/" {
            self.root_links[h] = links;
        } else if let Some(node) = self.nodes.get_mut(path) {
            node.links[h] = links;
        }
        for (path, ino) in found {
            self.note(&path, h, ino);
        }
    }

    fn note(&mut self, path: &str, h: usize, ino: u64) {
        if let Some(node) = self.nodes.get_mut(path) {
            set(node, h, ino);
        } else if ino != 0 && self.nodes.len() < NODES_MAX {
            let mut node = Node::default();
            node.inodes[h] = ino;
            self.nodes.insert(path.to_owned(), node);
        }
    }

    /// Decides who is a workload now. `ask_all` asks every cgroup without tasks about them.
    fn settle(&mut self, ask_all: bool) -> Changes {
        let mut changes = Changes::default();
        let has_heard = self.ask_tasks();
        if has_heard || self.nodes.values().any(|node| node.is_moved || node.looks == 0) {
            self.join();
        }
        self.nodes.retain(|path, node| {
            let is_gone = node.inodes.iter().all(|&ino| ino == 0);
            if is_gone && node.is_workload {
                changes.gone.push(path.clone());
            }
            !is_gone
        });
        for (path, node) in &mut self.nodes {
            if node.is_twin && node.is_workload {
                node.is_workload = false;
                changes.gone.push(path.clone());
            }
        }
        self.workloads -= changes.gone.len();
        self.overflow = 0;
        for (path, node) in &mut self.nodes {
            node.looks = node.looks.saturating_add(1);
            if node.is_workload {
                if node.is_remade {
                    changes.gone.push(path.clone());
                    changes.made.push(path.clone());
                } else if node.is_moved {
                    changes.moved.push(path.clone());
                }
                (node.is_remade, node.is_moved) = (false, false);
                continue;
            }
            (node.is_remade, node.is_moved) = (false, false);
            if !qualifies(path, node, &self.roots, &self.config, ask_all) {
                continue;
            }
            if self.workloads < self.config.workloads_max {
                node.is_workload = true;
                self.workloads += 1;
                changes.made.push(path.clone());
            } else {
                self.overflow += 1;
            }
        }
        changes
    }
}

/// Whether a quick look includes `node`: a cgroup without children changes seldom, and when it is
/// removed, reading its files tells. Its inode spreads those over the quick looks.
fn is_due(node: &Node, h: usize, quick_looks: u64) -> bool {
    node.links[h] != CHILDLESS_LINKS
        || node.looks < EAGER_LOOKS
        || node.inodes[h].wrapping_add(quick_looks).is_multiple_of(LEAF_EVERY_LOOKS)
}

fn set(node: &mut Node, h: usize, ino: u64) {
    let before = std::mem::replace(&mut node.inodes[h], ino);
    node.is_moved |= before != ino;
    node.is_remade |= before != ino && before != 0 && ino != 0;
}

/// Whether `node` is a workload by the rules of `config`; may ask the kernel for its tasks.
fn qualifies(
    path: &str,
    node: &mut Node,
    roots: &[Option<Root>],
    config: &TreeConfig,
    ask_all: bool,
) -> bool {
    if node.is_twin || config.exclude.iter().any(|glob| glob.matches(path)) {
        return false;
    }
    if !config.include.is_empty() {
        return config.include.iter().any(|glob| glob.matches(path));
    }
    let asks = ask_all || node.looks < EAGER_LOOKS || node.looks.is_multiple_of(EAGER_LOOKS);
    if !node.had_tasks && asks {
        let present = roots.iter().zip(node.inodes).filter(|(_root, ino)| *ino != 0);
        node.had_tasks =
            present.filter_map(|(root, _ino)| root.as_ref()).any(|root| root.has_tasks(path));
    }
    node.had_tasks
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
