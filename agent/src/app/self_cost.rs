//! What the agent itself costs: CPU time and resident memory of this process.

use std::time::Instant;

use headroom_measure::process;

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
            std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| process::cpu_s(&text));
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
            .and_then(|text| process::resident_bytes(&text));
        Cost { cpu_cores, memory_bytes }
    }
}
