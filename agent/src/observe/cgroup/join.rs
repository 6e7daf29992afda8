//! Containers that are at one path in one hierarchy and at another in the next: one workload.
//!
//! A container's id is in its path wherever it is. The workload has the path of the hierarchy that
//! names its tasks, which is also where limits are; the other path is its twin and no workload.

use std::collections::{BTreeMap, BTreeSet};

use headroom_telemetry::identity::container_in;

use super::{
    layout::HIERARCHIES_MAX,
    tree::{Inodes, Node, Tree},
};

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

    /// The other path by the path of the workload.
    fn pairs(&self) -> BTreeMap<String, String> {
        let Some(home) = self.home else { return BTreeMap::new() };
        let mut by_container: BTreeMap<(&str, &str), Vec<(&String, &Node)>> = BTreeMap::new();
        let is_there = |node: &Node| node.inodes.iter().any(|&inode| inode != 0);
        for (path, node) in self.nodes.iter().filter(|(_, node)| is_there(node)) {
            if let Some(found) = container_in(path) {
                by_container.entry((found.id, found.within)).or_default().push((path, node));
            }
        }
        let pair = |found: Vec<(&String, &Node)>| {
            let [(first, one), (second, two)] = found.as_slice() else { return None };
            let is_apart = (0..HIERARCHIES_MAX).all(|h| one.inodes[h] == 0 || two.inodes[h] == 0);
            match (one.inodes[home] != 0, two.inodes[home] != 0) {
                (true, false) if is_apart => Some(((*first).clone(), (*second).clone())),
                (false, true) if is_apart => Some(((*second).clone(), (*first).clone())),
                _ => None,
            }
        };
        by_container.into_values().filter_map(pair).collect()
    }
}
