//! `docs/POLICY.md` and the shipped files name every key of a policy and of the guard's rules, and
//! none that does not exist.

use std::{collections::BTreeSet, fs, path::PathBuf};

use headroom_allocate::{HostPolicy, KnobKind, Mode, Objective, WorkloadPolicy};
use serde::Serialize;

use crate::guard::config::{Allowance, GuardConfig};

fn file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The keys of a type, those that may be missing included.
fn keys(of: &impl Serialize) -> BTreeSet<String> {
    match serde_json::to_value(of).unwrap() {
        serde_json::Value::Object(object) => object.keys().cloned().collect(),
        other => panic!("{other}"),
    }
}

fn allowance() -> Allowance {
    toml::from_str("path = '/a'").unwrap()
}

/// What the first column of the table below `heading` names.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = file("docs/POLICY.md");
    let at = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let section = &text[at + heading.len() + 2..];
    let rows = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    rows.flat_map(|row| {
        let first = row.split('|').nth(1).unwrap_or_default();
        first.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    let of_policy = keys(&WorkloadPolicy::default());
    assert_eq!(documented("### `[defaults]` and `[[workloads]]`"), of_policy);
    assert_eq!(documented("### `[host]`"), keys(&HostPolicy::default()));
    let of_file = ["deny", "annotations", "[host]", "[defaults]", "[[workloads]]"];
    assert_eq!(documented("## policy.toml"), of_file.map(str::to_owned).into());
    let mut of_guard = keys(&GuardConfig::default());
    assert!(of_guard.remove("allow") && of_guard.insert("[[allow]]".to_owned()));
    assert_eq!(documented("## guard.toml"), of_guard);
    assert_eq!(documented("### `[[allow]]`"), keys(&allowance()));
    let kinds = KnobKind::ALL.map(|kind| kind.name().to_owned());
    assert_eq!(documented("### Knobs"), kinds.into());
}

#[test]
fn every_word_and_default_is_in_the_document() {
    let text = file("docs/POLICY.md");
    let word = |value: serde_json::Value| format!("`{}`", value.as_str().unwrap());
    for mode in [Mode::Off, Mode::Recommend, Mode::Raise, Mode::Reclaim] {
        assert!(text.contains(&word(serde_json::to_value(mode).unwrap())), "{mode:?}");
    }
    for objective in
        [Objective::LatencyCritical, Objective::Serving, Objective::Batch, Objective::BestEffort]
    {
        assert!(text.contains(&word(serde_json::to_value(objective).unwrap())), "{objective:?}");
    }
    let defaults = toml::Table::try_from(WorkloadPolicy::default()).unwrap();
    for (key, value) in defaults {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{key}`"))).unwrap();
        assert!(row.contains(&format!("`{value}` |")), "{key} = {value} is not in {row}");
    }
}

#[test]
fn the_shipped_files_show_every_key() {
    let policy = file("deploy/config/policy.toml");
    for key in keys(&WorkloadPolicy::default()).iter().chain(&keys(&HostPolicy::default())) {
        assert!(policy.contains(&format!("{key} = ")), "policy.toml does not show {key}");
    }
    let guard = file("deploy/config/guard.toml");
    let mut of_guard = keys(&GuardConfig::default());
    of_guard.remove("allow");
    // Tables of their own, which the file shows with their keys.
    for table in ["owners", "egress", "gpu"] {
        assert!(of_guard.remove(table) && guard.contains(&format!("\n[{table}]\n")));
    }
    for key in of_guard.iter().chain(&keys(&allowance())) {
        assert!(guard.contains(&format!("{key} = ")), "guard.toml does not show {key}");
    }
}

#[test]
fn the_examples_in_the_shipped_files_are_valid() {
    let example = |text: &str, begins: &str| {
        let lines = text.lines().skip_while(|line| !line.ends_with(begins));
        let lines = lines.filter_map(|line| line.strip_prefix("#     "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let policy = example(&file("deploy/config/policy.toml"), "[[workloads]]");
    let policy = headroom_allocate::Policy::from_toml(&policy).unwrap();
    assert_eq!(policy.rules().len(), 1);
    let guard = example(&file("deploy/config/guard.toml"), "[[allow]]");
    assert_eq!(GuardConfig::from_toml(&guard).unwrap().allow.len(), 1);
}
