//! Cgroups of our own, for tests, the demo and the benchmarks: made in every hierarchy the host has, and
//! removed again. Touches nothing that does not begin with `headroom-`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Where each controller that matters here is mounted.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    /// Every mounted hierarchy that workloads are put into, without duplicates.
    pub roots: Vec<PathBuf>,
    /// Root of the hierarchy with the CPU controller.
    pub cpu: PathBuf,
    /// Root of the hierarchy with the memory controller.
    pub memory: PathBuf,
    /// Whether the CPU controller is on cgroup v2.
    pub unified: bool,
    /// Controllers that were switched on at the v2 root for us, to be switched off again.
    enabled_by_us: Vec<&'static str>,
}

impl Hierarchies {
    /// Reads the mounts of this host.
    ///
    /// # Errors
    /// When no CPU and memory controller is mounted, naming which is missing.
    pub fn detect() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mut v2 = None;
        let mut v1 = Vec::new();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => v2 = Some(PathBuf::from(mount)),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default().to_owned();
                    v1.push((PathBuf::from(mount), options));
                }
                _ => {}
            }
        }
        let with = |controller: &str| {
            v1.iter()
                .find(|(_, options)| options.split(',').any(|option| option == controller))
                .map(|(mount, _)| mount.clone())
        };
        let wanted = ["cpu", "cpuacct", "memory", "blkio", "pids"];
        let mut roots: Vec<PathBuf> = wanted.iter().filter_map(|name| with(name)).collect();
        roots.extend(v2.clone());
        roots.dedup();
        let (cpu, unified) = match (with("cpu"), &v2) {
            (Some(mount), _) => (mount, false),
            (None, Some(mount)) => (mount.clone(), true),
            (None, None) => bail!("no cgroup hierarchy with the cpu controller is mounted"),
        };
        let memory = with("memory").or(v2).context("no memory controller is mounted")?;
        Ok(Self { roots, cpu, memory, unified, enabled_by_us: Vec::new() })
    }

    /// Switches the controllers on for children of the v2 root where they are off.
    ///
    /// # Errors
    /// When the kernel refuses, with the file.
    pub fn enable_controllers(&mut self) -> Result<()> {
        if !self.unified {
            return Ok(());
        }
        let file = self.cpu.join("cgroup.subtree_control");
        let on = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        for controller in ["cpu", "memory", "io", "pids"] {
            if !on.split_whitespace().any(|name| name == controller) {
                write_file(&file, &format!("+{controller}"))?;
                self.enabled_by_us.push(controller);
            }
        }
        Ok(())
    }

    /// Undoes [`Hierarchies::enable_controllers`]; a controller somebody uses by now stays on.
    pub fn restore_controllers(&mut self) {
        let file = self.cpu.join("cgroup.subtree_control");
        for controller in self.enabled_by_us.drain(..) {
            if let Err(error) = write_file(&file, &format!("-{controller}")) {
                eprintln!("left the {controller} controller on: {error:#}");
            }
        }
    }
}

/// A cgroup of ours: one path in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: String,
}

impl Cgroup {
    /// Makes `/headroom-...` (and missing parents) in every hierarchy.
    ///
    /// # Errors
    /// When a directory cannot be made, with its path.
    pub fn create(hierarchies: &Hierarchies, path: &str) -> Result<Self> {
        if !path.starts_with("/headroom-") || path.contains("..") {
            bail!("refusing to make {path}: cgroups of ours begin with /headroom-");
        }
        let mut partial = String::new();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (depth, part) in parts.iter().enumerate() {
            partial = format!("{partial}/{part}");
            for root in &hierarchies.roots {
                let dir = join(root, &partial);
                if !dir.exists() {
                    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
                }
            }
            if hierarchies.unified && depth + 1 < parts.len() {
                let file = join(&hierarchies.cpu, &partial).join("cgroup.subtree_control");
                write_file(&file, "+cpu +memory +io +pids")?;
            }
        }
        Ok(Self { hierarchies: hierarchies.clone(), path: path.to_owned() })
    }

    /// The path below each root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Moves process `pid` in.
    ///
    /// # Errors
    /// When a hierarchy refuses, with the file.
    pub fn add(&self, pid: u32) -> Result<()> {
        for root in &self.hierarchies.roots {
            write_file(&join(root, &self.path).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Sets the CPU limit, in cores; `None` removes it.
    ///
    /// # Errors
    /// When the kernel refuses, with file and value.
    pub fn set_cpu_limit(&self, cores: Option<f64>) -> Result<()> {
        const PERIOD_US: f64 = 100_000.0;
        let dir = join(&self.hierarchies.cpu, &self.path);
        let quota_us = cores.map(|cores| format!("{:.0}", cores * PERIOD_US));
        if self.hierarchies.unified {
            let quota = quota_us.unwrap_or_else(|| "max".to_owned());
            write_file(&dir.join("cpu.max"), &format!("{quota} {PERIOD_US:.0}"))
        } else {
            let quota = quota_us.unwrap_or_else(|| "-1".to_owned());
            write_file(&dir.join("cpu.cfs_quota_us"), &quota)
        }
    }

    /// The CPU limit in force, in cores; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is not a number.
    pub fn cpu_limit_cores(&self) -> Result<Option<f64>> {
        let dir = join(&self.hierarchies.cpu, &self.path);
        let (quota, period) = if self.hierarchies.unified {
            let text = read_file(&dir.join("cpu.max"))?;
            let (quota, period) = text.split_once(' ').context("cpu.max has two fields")?;
            (quota.to_owned(), period.to_owned())
        } else {
            (read_file(&dir.join("cpu.cfs_quota_us"))?, read_file(&dir.join("cpu.cfs_period_us"))?)
        };
        if quota == "max" || quota.starts_with('-') {
            return Ok(None);
        }
        Ok(Some(quota.parse::<f64>()? / period.parse::<f64>()?))
    }

    /// Sets the hard memory limit, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses, with file and value.
    pub fn set_memory_limit(&self, bytes: u64) -> Result<()> {
        write_file(&self.memory_limit_file(), &bytes.to_string())
    }

    /// The hard memory limit in force, in bytes; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is not a number.
    pub fn memory_limit_bytes(&self) -> Result<Option<u64>> {
        let text = read_file(&self.memory_limit_file())?;
        if text == "max" {
            return Ok(None);
        }
        let bytes: u64 = text.parse()?;
        Ok((bytes < 1 << 60).then_some(bytes))
    }

    fn memory_limit_file(&self) -> PathBuf {
        let name = if self.hierarchies.memory == self.hierarchies.cpu && self.hierarchies.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        join(&self.hierarchies.memory, &self.path).join(name)
    }

    /// Time spent throttled since the cgroup was made, in seconds.
    ///
    /// # Errors
    /// When `cpu.stat` cannot be read or lacks the counter.
    pub fn throttled_s(&self) -> Result<f64> {
        let text = read_file(&join(&self.hierarchies.cpu, &self.path).join("cpu.stat"))?;
        // v1 counts nanoseconds, v2 microseconds.
        let (key, per_second) = if self.hierarchies.unified {
            ("throttled_usec", 1e6)
        } else {
            ("throttled_time", 1e9)
        };
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok())
            .with_context(|| format!("no {key} in cpu.stat of {}", self.path))?;
        Ok(count / per_second)
    }

    /// Removes the cgroup from every hierarchy; it must hold no process any more.
    pub fn remove(&self) {
        for root in &self.hierarchies.roots {
            let dir = join(root, &self.path);
            for _attempt in 0..50 {
                match fs::remove_dir(&dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    _ => break,
                }
            }
        }
    }
}

fn join(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn read_file(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

fn write_file(file: &Path, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut open| open.write_all(value.as_bytes()))
        .with_context(|| format!("write {value:?} to {}", file.display()))
}
