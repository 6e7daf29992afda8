//! When which part of the tree is looked at, over directories as plain as any.

use std::{fs, path::Path};

use headroom_telemetry::Glob;

use super::{FULL_WALKS_SPARED, LEAF_EVERY_LOOKS, Tree, TreeConfig};
use crate::observe::cgroup::{Layout, Mode, Version, layout::Hierarchy};

const FULL_WALK_S: f64 = 30.0;

fn tree(root: &Path) -> Tree {
    let hierarchy = Hierarchy {
        version: Version::V2,
        dir: root.to_path_buf(),
        controllers: vec!["cpu".to_owned()],
    };
    let layout =
        Layout { mode: Mode::Unified, hierarchies: vec![hierarchy], other_controllers: Vec::new() };
    let config = TreeConfig {
        include: vec![Glob("**".to_owned())],
        exclude: Vec::new(),
        workloads_max: 100,
        full_walk_s: FULL_WALK_S,
    };
    Tree::new(&layout, config)
}

#[test]
fn while_events_tell_the_whole_tree_is_walked_seldom_and_without_them_when_due() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a")).unwrap();
    let mut tree = tree(root.path());
    assert_eq!(tree.refresh(0.0, false, true).made, ["/a"]);
    fs::create_dir(root.path().join("a/b")).unwrap();
    assert!(tree.refresh(FULL_WALK_S, false, true).made.is_empty(), "nobody told of it");
    assert_eq!(tree.refresh(FULL_WALK_S, false, false).made, ["/a/b"]);
    fs::create_dir(root.path().join("a/c")).unwrap();
    let later_s = FULL_WALK_S * (1.0 + FULL_WALKS_SPARED);
    assert!(tree.refresh(later_s - 1.0, false, true).made.is_empty());
    assert_eq!(tree.refresh(later_s, false, true).made, ["/a/c"]);
    fs::create_dir(root.path().join("a/d")).unwrap();
    tree.distrust();
    assert_eq!(tree.refresh(later_s, false, true).made, ["/a/d"], "events were lost");
}

#[test]
fn every_childless_cgroup_is_in_one_of_ten_quick_looks() {
    let root = tempfile::tempdir().unwrap();
    for number in 0..20 {
        fs::create_dir(root.path().join(number.to_string())).unwrap();
    }
    let mut tree = tree(root.path());
    // Directories know their links after a quick look; young ones are in all of them.
    for _ in 0..20 {
        tree.refresh(0.0, true, true);
    }
    assert_eq!(tree.len(), 20);
    // An empty directory in the place of another has the same links, and is told by its inode.
    let aside = tempfile::tempdir_in(root.path().parent().unwrap()).unwrap();
    for number in 0..20 {
        fs::create_dir(aside.path().join("new")).unwrap();
        let at = root.path().join(number.to_string());
        fs::rename(aside.path().join("new"), at).unwrap();
    }
    let mut n_remade = 0;
    for _ in 0..LEAF_EVERY_LOOKS {
        n_remade += tree.refresh(0.0, true, true).made.len();
    }
    assert_eq!(n_remade, 20);
}
