//! Pressure stall information of the host and of cgroups: whether it is there, and its totals.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use headroom_telemetry::Fact;

use super::cgroup::{
    Layout, Mode,
    held::{DescriptorBudget, HeldFile},
    layout::below,
    parse::{self, PressureTotals},
};

/// What can be short, in the order of every list here.
pub const PRESSURE_KINDS: [&str; 3] = ["cpu", "memory", "io"];

/// The place of CPUs among [`PRESSURE_KINDS`].
pub const PRESSURE_CPU: usize = 0;

/// Whether the host tells pressure: where from, or why not.
pub fn host_pressure(root: &Path) -> Fact<String> {
    probe(
        &below(root, "/proc/pressure/cpu"),
        "this kernel is built without pressure stall information",
    )
}

/// Whether cgroups tell pressure: where from, or why not. `host` is [`host_pressure`].
pub fn cgroup_pressure(layout: &Layout, host: &Fact<String>) -> Fact<String> {
    let Some(v2) = layout.v2() else {
        return Fact::absent("only the v2 tree tells pressure per cgroup, and none is mounted");
    };
    let dir = layout.hierarchies[v2].dir.display();
    match (host, layout.mode) {
        (Fact::Known(_), Mode::Hybrid) => Fact::Known(format!(
            "*.pressure below {dir}, for workloads whose tasks are in the v2 tree too"
        )),
        (Fact::Known(_), _) => Fact::Known(format!("*.pressure below {dir}")),
        (other, _) => other.clone(),
    }
}

fn probe(path: &Path, why_missing: &str) -> Fact<String> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_n_read) if parse::pressure(&bytes).is_some() => Fact::Known(path.display().to_string()),
        Ok(_n_read) => Fact::unknown(format!("{} has no line of totals", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Fact::absent(why_missing),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Fact::absent(
            "pressure stall information is built in but off; it needs psi=1 on the kernel's command line",
        ),
        Err(error) => Fact::unknown(format!("reading {}: {error}", path.display())),
    }
}

/// The host's pressure files, held open.
#[derive(Debug)]
pub struct HostPressure([Option<HeldFile>; 3]);

impl HostPressure {
    /// Opens the files that are there.
    pub fn open(root: &Path, budget: &DescriptorBudget) -> Self {
        let dir = below(root, "/proc/pressure");
        Self(PRESSURE_KINDS.map(|kind| HeldFile::open(dir.join(kind), budget).ok()))
    }

    /// Totals for CPU, memory and I/O; `None` where not told.
    pub fn read(&self, buffer: &mut Vec<u8>) -> [Option<PressureTotals>; 3] {
        let mut read =
            |file: &Option<HeldFile>| file.as_ref()?.read(buffer).ok().and_then(parse::pressure);
        [read(&self.0[0]), read(&self.0[1]), read(&self.0[2])]
    }
}

/// Time in which the kernel brings totals up to date, seconds: a reading may leave out stalls as
/// young as this (`PSI_FREQ` of `kernel/sched/psi.c`, and some to spare).
const TOTALS_LATE_S: f64 = 2.1;

/// Share of the time from which on one task may have been stalled all along: less than all of it, as
/// the kernel brings totals up to date and they are read by different clocks.
const ALL_ALONG_SHARE: f64 = 0.5;

/// Since when nothing on the whole host was stalled, for CPU, memory and I/O, and how much it was.
///
/// A stall of a cgroup is one of the host as well, so that its totals need no reading while the
/// host's stand still.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostCalm {
    totals: [Option<u64>; 3],
    changed_s: [f64; 3],
    /// Part of the time before that in which some task was stalled; `None` where not told.
    shares: [Option<f64>; 3],
}

impl HostCalm {
    /// Takes note of what the host's totals are at `at_s` of a clock that does not go back,
    /// microseconds in which some task was stalled; `None` where not told.
    pub fn note(&mut self, totals: [Option<u64>; 3], at_s: f64) {
        let told = self.totals.iter_mut().zip(&mut self.changed_s).zip(&mut self.shares);
        for (((before, changed_s), share), now) in told.zip(totals) {
            if now.is_none() || now != *before {
                let grown_us = before.zip(now).and_then(|(before, now)| now.checked_sub(before));
                *share = grown_us.map(|us| us as f64 / 1e6 / (at_s - *changed_s));
                (*before, *changed_s) = (now, at_s);
            }
        }
    }

    /// Whether a task may have been stalled for seconds now, for number `kind` of [`PRESSURE_KINDS`]:
    /// one that waits all along is no event, so that programs in the kernel do not count it, but the
    /// whole host is stalled with it. True where the host tells nothing.
    pub fn may_go_on(&self, kind: usize, at_s: f64) -> bool {
        let is_late = at_s >= self.changed_s[kind] + TOTALS_LATE_S;
        !is_late && self.shares[kind].is_none_or(|share| share >= ALL_ALONG_SHARE)
            || self.totals[kind].is_none()
    }

    /// Whether totals of a cgroup that were read at `read_s` still hold, for number `kind` of
    /// [`PRESSURE_KINDS`]; false where the host tells nothing.
    pub fn holds(&self, kind: usize, read_s: f64) -> bool {
        self.totals[kind].is_some() && read_s >= self.changed_s[kind] + TOTALS_LATE_S
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{HostCalm, HostPressure, cgroup_pressure, host_pressure};
    use crate::observe::cgroup::{
        Layout, Mode,
        held::DescriptorBudget,
        layout::{Hierarchy, Version},
    };

    #[test]
    fn pressure_is_known_absent_or_unknown() {
        let root = tempfile::tempdir().unwrap();
        assert!(host_pressure(root.path()).reason().unwrap().contains("without"));
        let dir = root.path().join("proc/pressure");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cpu"), "odd\n").unwrap();
        assert!(host_pressure(root.path()).reason().unwrap().contains("no line"));
        fs::write(dir.join("cpu"), "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").unwrap();
        assert!(host_pressure(root.path()).is_known());
        let files = HostPressure::open(root.path(), &DescriptorBudget::new(8));
        let totals = files.read(&mut Vec::new());
        assert_eq!(totals[0].unwrap().some_us, 7);
        assert_eq!(totals[1], None);
    }

    #[test]
    fn totals_of_a_cgroup_hold_while_the_host_has_none_and_they_are_not_too_fresh() {
        let mut calm = HostCalm::default();
        assert!(!calm.holds(1, 100.0), "nothing was read yet");
        calm.note([Some(4), Some(9), None], 10.0);
        assert!(!calm.holds(1, 10.0) && !calm.holds(1, 12.0), "a stall may not have been added up");
        assert!(calm.holds(1, 12.5));
        calm.note([Some(5), Some(9), None], 13.0);
        assert!(calm.holds(1, 12.5) && !calm.holds(0, 12.5), "each kind by itself");
        assert!(!calm.holds(2, 100.0), "not told");
        calm.note([Some(5), None, Some(1)], 20.0);
        assert!(!calm.holds(1, 19.0), "told no longer");
    }

    #[test]
    fn a_wait_that_goes_on_shows_in_the_share_of_the_host() {
        let mut calm = HostCalm::default();
        assert!(calm.may_go_on(0, 1.0), "nothing was read yet");
        calm.note([Some(0), None, None], 10.0);
        calm.note([Some(150_000), None, None], 12.0);
        assert!(!calm.may_go_on(0, 12.0));
        assert!(calm.may_go_on(2, 12.0), "not told");
        calm.note([Some(2_100_000), None, None], 14.0);
        assert!(calm.may_go_on(0, 14.0) && calm.may_go_on(0, 15.0));
        assert!(!calm.may_go_on(0, 17.0), "the totals stand still");
    }

    #[test]
    fn a_host_without_a_v2_tree_has_no_pressure_per_cgroup() {
        let hierarchy = Hierarchy {
            version: Version::V1,
            dir: Path::new("/c").to_path_buf(),
            controllers: vec!["cpu".to_owned()],
        };
        let layout = Layout {
            mode: Mode::Legacy,
            hierarchies: vec![hierarchy],
            other_controllers: Vec::new(),
        };
        let host = headroom_telemetry::Fact::Known("/proc/pressure/cpu".to_owned());
        assert!(cgroup_pressure(&layout, &host).reason().is_some());
    }
}
