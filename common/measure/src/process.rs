//! What `/proc` says a process has used.

/// `/proc` counts CPU time in ticks of this length on every architecture Linux runs on
/// (`USER_HZ`, include/asm-generic/param.h).
const TICKS_PER_S: f64 = 100.0;

/// CPU time of a process and its threads, user and system, seconds, from its `stat` file. `None`
/// when that is not such a file.
pub fn cpu_s(stat: &str) -> Option<f64> {
    // The command name may hold anything but is closed by the last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

/// Resident memory of a process, bytes, from its `status` file. `None` when that does not tell, as
/// of a kernel thread.
pub fn resident_bytes(status: &str) -> Option<u64> {
    bytes_of(status, "VmRSS:")
}

/// The most memory a process ever had resident, bytes, from its `status` file; likewise.
pub fn peak_resident_bytes(status: &str) -> Option<u64> {
    bytes_of(status, "VmHWM:")
}

fn bytes_of(status: &str, title: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(title))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::{cpu_s, peak_resident_bytes, resident_bytes};

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_s(stat), Some(3.0));
        assert_eq!(cpu_s("7 (a"), None);
    }

    #[test]
    fn resident_memory_is_in_bytes_and_may_be_missing() {
        let status = "Name:\tx\nVmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(resident_bytes(status), Some(2 << 20));
        assert_eq!(peak_resident_bytes(status), Some(4 << 20));
        assert_eq!(resident_bytes("Name:\tkthreadd\n"), None);
        assert_eq!(resident_bytes("VmRSS:\t18446744073709551615 kB\n"), None);
    }
}
