//! The demo's processes: started with their output in log files, ended in order, none left behind.

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A process of the demo; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `<dir>/<name>.log`.
    ///
    /// # Errors
    /// When the program cannot be started, with its path.
    pub(crate) fn start(name: &'static str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { name, child, log })
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of its log when the process has ended.
    ///
    /// # Errors
    /// When it has ended, with how and its last lines.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let how = status.signal().map_or_else(
            || format!("exit code {}", status.code().unwrap_or(-1)),
            |signal| format!("signal {signal}"),
        );
        bail!("{} ended with {how}; its last lines:\n{}", self.name, self.last_lines())
    }

    /// Whether the process still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the process to end, and kills it after `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) {
        if !self.runs() {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended in between; waiting below tells.
            let _sent = kill_process(pid, Signal::TERM);
        }
        let started = Instant::now();
        while self.runs() {
            if started.elapsed() > patience {
                eprintln!("{} did not end within {patience:?}; killed", self.name);
                let _killed = self.child.kill();
                let _status = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(15)..];
        format!("{}\n(whole log: {})", tail.join("\n"), self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(5));
    }
}
