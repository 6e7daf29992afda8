//! What the agent itself costs: CPU time and resident memory of this process.

use std::time::Instant;

/// `/proc` counts CPU time in ticks of this length on every architecture Linux runs on
/// (`USER_HZ`, include/asm-generic/param.h).
const TICKS_PER_S: f64 = 100.0;

/// Measures this process between calls.
#[derive(Debug, Default)]
pub struct SelfCost {
    last: Option<(Instant, f64)>,
}

/// Cost since the last call; `None` is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// CPU time, in cores.
    pub cpu_cores: Option<f64>,
    /// Resident memory, bytes.
    pub memory_bytes: Option<u64>,
}

impl SelfCost {
    /// CPU share since the last call and resident memory now.
    pub fn measure(&mut self, now: Instant) -> Cost {
        let cpu_s =
            std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_cpu_s(&text));
        let cpu_cores = match (self.last, cpu_s) {
            (Some((then, before_s)), Some(cpu_s)) if now > then => {
                Some((cpu_s - before_s) / (now - then).as_secs_f64())
            }
            _ => None,
        };
        // A tick is 10 ms: over less than a second the share would be noise.
        if let Some(cpu_s) = cpu_s
            && self.last.is_none_or(|(then, _)| (now - then).as_secs_f64() >= 10.0)
        {
            self.last = Some((now, cpu_s));
        }
        let memory_bytes = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|text| parse_resident_bytes(&text));
        Cost { cpu_cores, memory_bytes }
    }
}

fn parse_cpu_s(stat: &str) -> Option<f64> {
    // The command name may hold anything but is closed by the last parenthesis.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::{parse_cpu_s, parse_resident_bytes};

    #[test]
    fn a_command_name_with_parentheses_and_spaces_is_skipped() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(parse_cpu_s(stat), Some(3.0));
        assert_eq!(parse_cpu_s("7 (a"), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        assert_eq!(parse_resident_bytes("VmPeak: 9 kB\nVmRSS:\t  12 kB\n"), Some(12_288));
        assert_eq!(parse_resident_bytes(""), None);
    }
}
