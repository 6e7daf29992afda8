//! Who else changes limits on this host: known programs by their names, and whoever it is that
//! keeps changing a knob under lease. One writer per knob: a contested knob is left to the other.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::Path,
    time::Duration,
};

use crate::{guard::leases::Key, observe::cgroup::layout::below};

/// Changes by others within [`CONTEST_SPAN`] that make a knob contested.
const CONTEST_CHANGES: usize = 3;

/// How far back changes by others count, and how long a contested knob is left alone after the
/// last of them.
const CONTEST_SPAN: Duration = Duration::from_secs(600);

/// Contested knobs that are remembered.
const CONTESTS_MAX: usize = 4096;

/// A program that changes limits by itself.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rival {
    /// Its name as the kernel keeps it, at most 15 bytes.
    pub name: &'static str,
    /// What it changes.
    pub changes: &'static str,
}

/// Programs that change what the guard changes. systemd-oomd and earlyoom are not among them:
/// they kill, and change no limit.
const KNOWN: [Rival; 14] = [
    Rival { name: "senpai", changes: "memory.high and memory.max, every few seconds" },
    Rival { name: "uresourced", changes: "CPU weight and memory protection of user slices" },
    Rival { name: "ananicy", changes: "CPU quota and weight by program" },
    Rival { name: "ananicy-cpp", changes: "CPU quota and weight by program" },
    Rival { name: "tuned", changes: "CPU sets and weights, where its cgroup plug-in is on" },
    Rival { name: "cgrulesengd", changes: "which cgroup a process is in" },
    Rival { name: "koordlet", changes: "CPU quota, burst and memory of pods" },
    Rival { name: "katalyst-agent", changes: "CPU sets and memory of pods" },
    Rival { name: "crane-agent", changes: "CPU quota and weight of pods" },
    Rival { name: "nri-resource-po", changes: "CPU sets and quotas of containers" },
    Rival { name: "resource-manage", changes: "CPU sets and quotas of containers" },
    Rival { name: "vpa-updater", changes: "requests and limits of pods" },
    Rival { name: "goldilocks", changes: "requests and limits of pods, through VPA" },
    Rival { name: "cgroup-tool", changes: "limits of cgroups by its own rules" },
];

/// Who else changes limits, for people: one line each, sorted; empty when nobody known does.
///
/// Reads names of processes and kubelet's CPU manager state below `root`. What cannot be read is
/// left out: this is a warning, not a proof that nobody does.
pub fn found(root: &Path) -> Vec<String> {
    let names: BTreeSet<String> = processes(root).into_iter().map(|(_pid, name)| name).collect();
    let mut lines: Vec<String> = recognised(names.iter().map(String::as_str))
        .into_iter()
        .map(|rival| format!("{} changes {}", rival.name, rival.changes))
        .collect();
    let state = fs::read_to_string(below(root, "/var/lib/kubelet/cpu_manager_state"));
    if state.is_ok_and(|text| text.contains("\"policyName\":\"static\"")) {
        lines.push(
            "kubelet's static CPU manager changes CPU sets, and with them every limit of a \
             container"
                .to_owned(),
        );
    }
    let guards = guards(root);
    if guards > 1 {
        lines.push(format!("headroom-agent guard runs {guards} times, each with its own leases"));
    }
    lines.sort();
    lines
}

/// The known ones among `names` of processes.
pub fn recognised<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Rival> {
    let found: BTreeSet<Rival> =
        names.filter_map(|name| KNOWN.iter().find(|known| known.name == name).copied()).collect();
    found.into_iter().collect()
}

/// Processes by number, with their names.
fn processes(root: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir(below(root, "/proc")).into_iter().flatten().flatten();
    let named = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, name.trim_end().to_owned()))
    };
    entries.filter_map(named).collect()
}

/// Guards that run on this host, this one counted.
fn guards(root: &Path) -> usize {
    let is_guard = |(pid, name): &(u32, String)| {
        if !name.starts_with("headroom-agent") {
            return false;
        }
        let line = fs::read(below(root, format!("/proc/{pid}/cmdline"))).unwrap_or_default();
        line.split(|&byte| byte == 0).nth(1) == Some(b"guard")
    };
    processes(root).iter().filter(|process| is_guard(process)).count()
}

/// Changes by others of knobs under lease; pure, `now` is passed in.
#[derive(Debug, Default)]
pub struct Contests {
    changes: BTreeMap<Key, VecDeque<Duration>>,
}

impl Contests {
    /// Somebody else has changed `key` at `now`.
    pub fn note(&mut self, key: &Key, now: Duration) {
        self.changes.retain(|_key, times| is_recent(times, now));
        if self.changes.len() >= CONTESTS_MAX && !self.changes.contains_key(key) {
            return;
        }
        let times = self.changes.entry(key.clone()).or_default();
        times.push_back(now);
        if times.len() > CONTEST_CHANGES {
            times.pop_front();
        }
    }

    /// How long `key` is still to be left alone; `None` when it is not contested.
    pub fn left_to_others(&self, key: &Key, now: Duration) -> Option<Duration> {
        let times = self.changes.get(key)?;
        let (first, last) = (times.front()?, times.back()?);
        let is_contested = times.len() >= CONTEST_CHANGES && *last - *first <= CONTEST_SPAN;
        let until = *last + CONTEST_SPAN;
        (is_contested && now < until).then(|| until - now)
    }

    /// Contested knobs at `now`.
    pub fn contested(&self, now: Duration) -> Vec<Key> {
        let keys = self.changes.keys();
        keys.filter(|key| self.left_to_others(key, now).is_some()).cloned().collect()
    }
}

fn is_recent(times: &VecDeque<Duration>, now: Duration) -> bool {
    times.back().is_some_and(|&last| now < last + CONTEST_SPAN)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use headroom_allocate::Knob;

    use super::{Contests, found, recognised};
    use crate::guard::{leases::Key, path::CgroupPath};

    #[test]
    fn known_programs_are_named_once_and_others_are_not() {
        let names = ["senpai", "bash", "senpai", "systemd-oomd", "koordlet"];
        let found: Vec<_> = recognised(names.into_iter()).iter().map(|rival| rival.name).collect();
        assert_eq!(found, ["koordlet", "senpai"]);
    }

    #[test]
    fn the_host_is_searched_for_them() {
        let root = tempfile::tempdir().unwrap();
        assert!(found(root.path()).is_empty());
        for (pid, name, line) in [
            (1, "uresourced", "uresourced\0"),
            (2, "headroom-agent", "/usr/bin/headroom-agent\0guard\0"),
            (3, "headroom-agent", "/usr/bin/headroom-agent\0guard\0"),
            (4, "headroom-agent", "/usr/bin/headroom-agent\0run\0"),
        ] {
            let dir = root.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
            fs::write(dir.join("cmdline"), line).unwrap();
        }
        let kubelet = root.path().join("var/lib/kubelet");
        fs::create_dir_all(&kubelet).unwrap();
        fs::write(kubelet.join("cpu_manager_state"), "{\"policyName\":\"static\"}").unwrap();
        let lines = found(root.path());
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("2 times") && lines[1].contains("static CPU manager"));
        assert!(lines[2].starts_with("uresourced"));
    }

    #[test]
    fn a_knob_that_others_keep_changing_is_left_to_them_for_a_while() {
        let key = |path| Key { workload: CgroupPath::parse(path).unwrap(), knob: Knob::CpuQuota };
        let (a, b) = (key("/a"), key("/b"));
        let mut contests = Contests::default();
        let at = Duration::from_secs;
        for second in [0, 10, 400] {
            assert_eq!(contests.left_to_others(&a, at(second)), None);
            contests.note(&a, at(second));
        }
        assert_eq!(contests.left_to_others(&a, at(400)), Some(at(600)));
        assert_eq!(contests.contested(at(500)), std::slice::from_ref(&a));
        assert_eq!(contests.left_to_others(&b, at(400)), None);
        assert_eq!(contests.left_to_others(&a, at(1_000)), None);
        // Rare changes are no contest.
        for second in [2_000, 2_500, 3_000, 3_500] {
            contests.note(&b, at(second));
        }
        assert_eq!(contests.left_to_others(&b, at(3_500)), None);
    }
}
