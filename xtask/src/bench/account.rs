//! What the kernel says a process has used: CPU time and resident memory.

use std::time::Instant;

use anyhow::{Context, Result};
use headroom_measure::process;

/// A process at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    at: Instant,
    cpu_s: f64,
    /// Resident memory, bytes.
    pub(super) resident_bytes: f64,
}

impl Account {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let cpu_s = process::cpu_s(&read("stat")?).context("/proc/PID/stat lacks its CPU times")?;
        let resident_bytes =
            process::resident_bytes(&read("status")?).context("/proc/PID/status lacks VmRSS")?;
        Ok(Self { at: Instant::now(), cpu_s, resident_bytes: resident_bytes as f64 })
    }

    /// CPU time used since an earlier account, in percent of one core.
    pub(super) fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        (self.cpu_s - earlier.cpu_s) / (self.at - earlier.at).as_secs_f64() * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        let account = Account::of(std::process::id()).unwrap();
        assert!(account.resident_bytes > 100_000.0);
    }
}
