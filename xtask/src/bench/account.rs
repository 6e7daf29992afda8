//! What the kernel says a process has used: CPU time and resident memory.

use std::time::Instant;

use anyhow::{Context, Result};

/// Length of the ticks in which `/proc` counts CPU time: `USER_HZ` is 100 on every architecture.
const TICK_S: f64 = 0.01;

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
        let cpu_s = cpu_seconds(&read("stat")?).context("/proc/PID/stat lacks its CPU times")?;
        let resident_bytes =
            resident_bytes(&read("status")?).context("/proc/PID/status lacks VmRSS")?;
        Ok(Self { at: Instant::now(), cpu_s, resident_bytes })
    }

    /// CPU time used since an earlier account, in percent of one core.
    pub(super) fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        (self.cpu_s - earlier.cpu_s) / (self.at - earlier.at).as_secs_f64() * 100.0
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything; the fields count from its last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_S)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let account = Account::of(std::process::id()).unwrap();
        assert!(account.resident_bytes > 100_000.0);
    }
}
