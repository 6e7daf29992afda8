//! What a workload says of itself: `X-Headroom-` keys of its systemd unit and `headroom.` labels of
//! its container, as text. What becomes of them is the policy's to say.
//!
//! Only files are read, none beyond [`bounded::FILE_BYTES_MAX`]; no service is asked.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use headroom_telemetry::{identity, printable_within};
use serde::Deserialize;

use super::{
    bounded::{self, Links},
    cgroup::layout::below,
};

/// Most annotations of one workload, and the longest name or text of one, bytes.
const NOTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 256;

/// Most drop-ins of one unit and directory.
const DROP_INS_MAX: usize = 64;

/// Where units are, the one that wins last; drop-ins of all of them count.
const UNIT_DIRS: [&str; 4] = [
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/system",
    "/etc/systemd/system",
];

/// Prefixes of the keys, in units and in labels.
const UNIT_PREFIX: &str = "X-Headroom-";
const LABEL_PREFIX: &str = "headroom.";

/// Keys of a policy with their values as text.
pub type Notes = BTreeMap<String, String>;

/// What the workload at `path` says of itself; nothing where it says nothing, or nothing that can
/// be read.
///
/// `root` is where the host's files start (`/` outside tests). A container's labels are those its
/// runtime keeps on disk, those of a unit its own file and then its drop-ins by name. A cgroup below
/// a unit says nothing: the unit speaks for its own.
pub fn of(root: &Path, path: &str) -> Notes {
    if let Some(found) = identity::container_in(path) {
        return labels(root, found.id);
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_unit = [".service", ".scope", ".slice"].iter().any(|kind| name.ends_with(kind));
    if is_unit { unit_notes(root, name) } else { Notes::new() }
}

fn labels(root: &Path, id: &str) -> Notes {
    let docker = below(root, format!("/var/lib/docker/containers/{id}/config.v2.json"));
    if let Ok(bytes) = bounded::read(&docker, Links::Followed) {
        let state: Option<DockerState> = serde_json::from_slice(&bytes).ok();
        let labels = state.and_then(|state| state.config).and_then(|config| config.labels);
        return of_labels(labels.unwrap_or_default());
    }
    for path in bundles(root, id) {
        if let Ok(bytes) = bounded::read(&path, Links::Followed) {
            let bundle: Option<Bundle> = serde_json::from_slice(&bytes).ok();
            return of_labels(bundle.and_then(|bundle| bundle.annotations).unwrap_or_default());
        }
    }
    Notes::new()
}

/// Where OCI runtimes keep the configuration of a container.
fn bundles(root: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in super::containers::CONTAINERD_DIRS {
        let namespaces = fs::read_dir(below(root, dir)).into_iter().flatten().flatten();
        found.extend(namespaces.take(16).map(|space| space.path().join(id).join("config.json")));
    }
    let storage = super::containers::STORAGE_DIRS;
    found.extend(storage.map(|dir| below(root, format!("{dir}/{id}/userdata/config.json"))));
    found
}

/// The part of Docker's `config.v2.json` that holds labels.
#[derive(Deserialize)]
struct DockerState {
    #[serde(rename = "Config")]
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

/// The part of an OCI bundle's `config.json` that holds annotations.
#[derive(Deserialize)]
struct Bundle {
    annotations: Option<BTreeMap<String, String>>,
}

fn of_labels(labels: BTreeMap<String, String>) -> Notes {
    let ours = labels.into_iter().filter_map(|(key, text)| {
        let key = key.strip_prefix(LABEL_PREFIX)?;
        Some((note(key), printable_within(&text, TEXT_BYTES_MAX)))
    });
    ours.take(NOTES_MAX).collect()
}

fn unit_notes(root: &Path, unit: &str) -> Notes {
    let mut notes = Notes::new();
    // Of several files of one unit only the last counts; an instance may have one of its own.
    let template = unit.split_once('@').and_then(|(name, rest)| {
        let (_instance, kind) = rest.rsplit_once('.')?;
        Some(format!("{name}@.{kind}"))
    });
    let names: Vec<&str> = template.as_deref().into_iter().chain([unit]).collect();
    let in_dirs = |name: &str| UNIT_DIRS.map(|dir| below(root, format!("{dir}/{name}")));
    let files = names.iter().flat_map(|name| in_dirs(name));
    if let Some(text) = files.rev().find_map(|path| bounded::read(&path, Links::Followed).ok()) {
        take_keys(&String::from_utf8_lossy(&text), &mut notes);
    }
    let mut drop_ins: Vec<(String, PathBuf)> = Vec::new();
    for dir in names.iter().flat_map(|name| in_dirs(&format!("{name}.d"))) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(DROP_INS_MAX);
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".conf") {
                drop_ins.push((name.to_owned(), path));
            }
        }
    }
    // By name, as systemd reads them; the sort keeps the order of directories within a name.
    drop_ins.sort_by(|a, b| a.0.cmp(&b.0));
    for (_name, path) in drop_ins {
        if let Ok(text) = bounded::read(&path, Links::Followed) {
            take_keys(&String::from_utf8_lossy(&text), &mut notes);
        }
    }
    notes
}

/// Keys of ours in a unit file, whatever section they are in: systemd passes over what begins
/// with `X-`.
fn take_keys(text: &str, notes: &mut Notes) {
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let Some(key) = key.trim().strip_prefix(UNIT_PREFIX) else { continue };
        if notes.len() < NOTES_MAX {
            notes.insert(note(key), printable_within(value.trim(), TEXT_BYTES_MAX));
        }
    }
}

/// A key as the policy has it: lower case, words joined by `_`.
fn note(key: &str) -> String {
    printable_within(key, TEXT_BYTES_MAX).to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Notes, of};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn notes(of: &[(&str, &str)]) -> Notes {
        of.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_units_file_and_its_drop_ins_are_read_in_systemds_order() {
        let root = tempfile::tempdir().unwrap();
        let unit =
            "[Service]\nX-Headroom-Mode=recommend\nX-Headroom-Ceiling-Cores = 2\nExecStart=/x\n";
        write(root.path(), "usr/lib/systemd/system/shop@.service", "X-Headroom-Mode=off");
        write(root.path(), "etc/systemd/system/shop@.service", unit);
        let drop_in = "# X-Headroom-Mode=off\n[X-Headroom]\nX-Headroom-Mode=raise\n";
        write(root.path(), "run/systemd/system/shop@1.service.d/50-headroom.conf", drop_in);
        write(
            root.path(),
            "etc/systemd/system/shop@.service.d/10-first.conf",
            "X-Headroom-Mode=off",
        );
        write(root.path(), "etc/systemd/system/shop@.service.d/60.txt", "X-Headroom-Mode=off");
        let found = of(root.path(), "/system.slice/system-shop.slice/shop@1.service");
        assert_eq!(found, notes(&[("ceiling_cores", "2"), ("mode", "raise")]));
        assert_eq!(of(root.path(), "/system.slice/other.service"), Notes::new());
    }

    #[test]
    fn labels_of_containers_are_read_from_what_runtimes_keep() {
        let root = tempfile::tempdir().unwrap();
        let (docker, podman) = ("a".repeat(64), "b".repeat(64));
        let state = r#"{"Config":{"Labels":{"headroom.mode":"raise","other":"x","headroom.objective":"batch"}}}"#;
        write(root.path(), &format!("var/lib/docker/containers/{docker}/config.v2.json"), state);
        let found = of(root.path(), &format!("/system.slice/docker-{docker}.scope"));
        assert_eq!(found, notes(&[("mode", "raise"), ("objective", "batch")]));
        let path =
            format!("run/containers/storage/overlay-containers/{podman}/userdata/config.json");
        write(root.path(), &path, r#"{"annotations":{"headroom.margin":"0.3"}}"#);
        let found = of(root.path(), &format!("/machine.slice/libpod-{podman}.scope"));
        assert_eq!(found, notes(&[("margin", "0.3")]));
        write(root.path(), &path, "not json");
        assert!(of(root.path(), &format!("/machine.slice/libpod-{podman}.scope")).is_empty());
    }
}
