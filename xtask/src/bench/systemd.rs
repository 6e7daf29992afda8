//! How quick systemd is on a host that something else runs: one of its own, with a message bus and
//! nothing else, in namespaces and cgroups that are made for it and removed after it. It finds no unit
//! files but these, and neither the host's files nor its kernel settings can be written.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use headroom_measure::{Figure, Value};
use serde::Deserialize;

use super::rig::Programs;
use crate::{process, progress};

/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Changes, each way.
const N_TOLD: &str = "1000";

/// Controllers it is to have, and its own v1 hierarchy; the others are of no use to it.
const WANTED: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "blkio", "name=systemd"];

/// Moves itself into the cgroups given, and leaves everything that it shares with the host.
const LEAVE: &str = r#"
set -e
for folder in $CGROUPS; do echo $$ > "$folder/cgroup.procs"; done
exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --net --propagation private \
    --mount-proc sh -c "$ENTER"
"#;

/// Process 1 of the namespaces: mounts what it may see of cgroups, and becomes systemd.
const ENTER: &str = r#"
set -e
umount -R /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
eval "$MOUNTS"
for folder in /run /etc/systemd /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
    if [ -d $folder ]; then mount -t tmpfs -o mode=755 tmpfs $folder; fi
done
mkdir -p /etc/systemd/system /run/systemd/system /run/dbus
cat > /run/systemd/system/bench.target <<UNIT
[Unit]
DefaultDependencies=no
Requires=dbus.service
UNIT
cat > /run/systemd/system/dbus.socket <<UNIT
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
UNIT
cat > /run/systemd/system/dbus.service <<UNIT
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
NotifyAccess=main
ExecStart=$BUS --system --address=systemd: --nofork --nopidfile --systemd-activation
UNIT
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
export container=headroom-bench
exec $SYSTEMD --system --unit=bench.target --log-target=console --log-level=warning --show-status=no
"#;

/// The name of the figure, as the agent has it.
const THROUGH_SYSTEMD: &str = "decision to limit in force through systemd";

/// The figure of the way through systemd measured here where the host has none to measure by: with both
/// reasons if that cannot be done either. Any other is passed on.
pub(super) fn measured_here(figure: Figure, programs: &Programs) -> Figure {
    let Value::Absent(reason) = &figure.value else { return figure };
    if figure.name != THROUGH_SYSTEMD {
        return figure;
    }
    let what = "a systemd of its own, with a message bus and nothing else";
    let value = progress::step(what, "no other runs this host", || measure(programs));
    let compare = format!("{}; one in namespaces of this host", figure.compare);
    let value = value.unwrap_or_else(|error| {
        Value::Absent(format!("{reason}; nor by one of its own: {error:#}"))
    });
    let told = Figure::new(&figure.name, &figure.unit, value, &compare);
    match figure.goal {
        Some(goal) => told.with_goal(goal.at_most),
        None => told,
    }
}

/// What `headroom-agent owners bench` tells of one way.
#[derive(Deserialize)]
struct Way {
    n: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// What it tells of all of them.
#[derive(Deserialize)]
struct Ways {
    systemd: Way,
}

fn measure(programs: &Programs) -> Result<Value> {
    let own = OwnSystemd::start()?;
    let mut command = own.enter();
    command.arg(programs.agent()).args(["owners", "bench", "--json", "--writes", N_TOLD]);
    let ways: Ways = serde_json::from_str(&process::capture(&mut command)?)
        .context("read what owners bench measured")?;
    let Way { n, p50_us, p99_us, max_us } = ways.systemd;
    Ok(Value::Percentiles { count: n, p50: p50_us / 1e3, p99: p99_us / 1e3, max: max_us / 1e3 })
}

/// A mounted hierarchy.
struct Mounted {
    folder: PathBuf,
    /// As `mount` wants it, to mount it anew at the same place.
    again: String,
}

/// Hierarchies of `mounts`, as /proc/self/mounts has them, that systemd is to have.
fn hierarchies(mounts: &str) -> Vec<Mounted> {
    let wanted = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (folder, kind, options) = (words.next()?, words.next()?, words.next()?);
        let option = match kind {
            "cgroup2" => "-t cgroup2".to_owned(),
            "cgroup" => {
                let of_it: Vec<&str> =
                    options.split(',').filter(|one| WANTED.contains(one)).collect();
                let none = if of_it == ["name=systemd"] { "none," } else { "" };
                if of_it.is_empty() {
                    return None;
                }
                format!("-t cgroup -o {none}{}", of_it.join(","))
            }
            _ => return None,
        };
        let is_made = folder == "/sys/fs/cgroup";
        let make = if is_made { String::new() } else { format!("mkdir -p {folder}; ") };
        let again = format!("{make}mount {option} cgroup {folder}; ");
        Some(Mounted { folder: PathBuf::from(folder), again })
    };
    mounts.lines().filter_map(wanted).collect()
}

/// A systemd that is process 1 of its own namespaces; ended and cleared away when dropped.
struct OwnSystemd {
    cgroups: Vec<PathBuf>,
    child: Option<Child>,
    /// Its process id here.
    init: u32,
}

impl OwnSystemd {
    fn start() -> Result<Self> {
        let needed = |program: &str| {
            process::find(program).with_context(|| format!("there is no {program} here"))
        };
        let bus = needed("dbus-daemon")?;
        needed("unshare")?;
        needed("nsenter")?;
        let places = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
        let systemd = places.iter().find(|place| Path::new(place).exists());
        let systemd = systemd.context("systemd is not installed")?;
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let mounted = hierarchies(&mounts);
        let mut own = Self { cgroups: Vec::new(), child: None, init: 0 };
        for one in &mounted {
            let folder = one.folder.join(format!("headroom-bench-systemd-{}", std::process::id()));
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
            own.cgroups.push(folder);
        }
        let folders: Vec<_> = own.cgroups.iter().map(|folder| folder.to_string_lossy()).collect();
        let again: String = mounted.iter().map(|one| one.again.as_str()).collect();
        let mut command = Command::new("sh");
        command.args(["-c", LEAVE]).env("ENTER", ENTER).env("CGROUPS", folders.join(" "));
        command.env("MOUNTS", again).env("BUS", bus).env("SYSTEMD", systemd);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("start sh")?;
        let id = child.id();
        own.child = Some(child);
        own.wait(id)?;
        Ok(own)
    }

    /// Waits until its bus can be connected to. `id` is what waits for it outside.
    fn wait(&mut self, id: u32) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let children = format!("/proc/{id}/task/{id}/children");
        while Instant::now() < end {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().context("wait for systemd")?
            {
                bail!("it ended with {status}");
            }
            let text = fs::read_to_string(&children).unwrap_or_default();
            if let Some(init) = text.split_whitespace().next().and_then(|id| id.parse().ok()) {
                self.init = init;
                if self.answers() {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("it does not answer on its bus within {}", progress::in_words(PATIENCE))
    }

    fn answers(&self) -> bool {
        let mut command = self.enter();
        command.args(["busctl", "--system", "call", "org.freedesktop.systemd1"]);
        command.args(["/org/freedesktop/systemd1", "org.freedesktop.DBus.Peer", "Ping"]);
        process::capture(&mut command).is_ok()
    }

    /// Runs what is added to it among its processes.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--"]);
        command
    }
}

impl Drop for OwnSystemd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Who waits outside for process 1 ends with it, and with process 1 all of its namespace.
            let asked = Command::new("kill").args(["-9", &self.init.to_string()]).status();
            let is_told = self.init != 0 && asked.is_ok_and(|status| status.success());
            if !is_told && let Err(error) = child.kill() {
                eprintln!("  -- systemd could not be ended: {error}");
            }
            if let Err(error) = child.wait() {
                eprintln!("  -- systemd could not be waited for: {error}");
            }
        }
        for folder in &self.cgroups {
            if let Err(error) = remove(folder) {
                eprintln!("  -- {} is left behind: {error}", folder.display());
            }
        }
    }
}

/// Removes a cgroup with those below it. Those whose processes have just ended are busy for a moment.
fn remove(folder: &Path) -> std::io::Result<()> {
    for below in fs::read_dir(folder)? {
        let below = below?;
        if below.file_type()?.is_dir() {
            remove(&below.path())?;
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hierarchies;

    #[test]
    fn hierarchies_are_mounted_anew_where_they_were() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let again: Vec<String> = hierarchies(hybrid).into_iter().map(|one| one.again).collect();
        assert_eq!(
            again,
            [
                "mkdir -p /sys/fs/cgroup/cpu,cpuacct; \
                 mount -t cgroup -o cpu,cpuacct cgroup /sys/fs/cgroup/cpu,cpuacct; ",
                "mkdir -p /sys/fs/cgroup/systemd; \
                 mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd; ",
                "mkdir -p /sys/fs/cgroup/unified; mount -t cgroup2 cgroup /sys/fs/cgroup/unified; ",
            ]
        );
        let unified = hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n");
        assert_eq!(unified[0].again, "mount -t cgroup2 cgroup /sys/fs/cgroup; ");
    }
}
