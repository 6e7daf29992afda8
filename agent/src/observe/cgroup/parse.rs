//! Pure parsers of cgroup and pressure files.
//!
//! Input is whatever the kernel wrote, possibly cut short: a parser answers `None` for what it
//! cannot read and never panics. Values are found by key, since keys move and grow between kernels.

use headroom_allocate::plan::Limit;

/// At and above this, a v1 memory limit means "none": the kernel reports the largest page count it
/// can hold, which depends on the page size.
const MEMORY_UNLIMITED_BYTES: u64 = 1 << 62;

/// Bytes and operations read and written since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct IoTotals {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// The `some` and `full` totals of a pressure file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PressureTotals {
    /// Time at least one task was stalled, microseconds.
    pub some_us: u64,
    /// Time all tasks were stalled at once, microseconds; `None` where the kernel has no such line.
    pub full_us: Option<u64>,
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// A decimal number that is all of `word`.
fn decimal(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// A file that holds one number.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let mut found = words(bytes);
    let value = decimal(found.next()?)?;
    found.next().is_none().then_some(value)
}

/// CPU time inside the kernel from v1 `cpuacct.usage_sys` (nanoseconds) or `cpuacct.stat` (the line
/// `system`, in hundredths of a second on every machine Linux runs on today), nanoseconds.
pub fn cpu_system_ns_v1(bytes: &[u8]) -> Option<u64> {
    const NS_PER_CLOCK_TICK: u64 = 10_000_000;
    if let Some(nanoseconds) = number(bytes) {
        return Some(nanoseconds);
    }
    let mut system = None;
    each_pair(bytes, |key, value| {
        if key == b"system" {
            system = value.checked_mul(NS_PER_CLOCK_TICK);
        }
    });
    system
}

/// Calls `visit` with every `key value` line whose value is a number.
pub fn each_pair(bytes: &[u8], mut visit: impl FnMut(&[u8], u64)) {
    for line in lines(bytes) {
        let mut found = words(line);
        if let (Some(key), Some(value)) = (found.next(), found.next().and_then(decimal)) {
            visit(key, value);
        }
    }
}

/// A v2 limit: a number of bytes, or `max`.
pub fn limit_bytes_v2(bytes: &[u8]) -> Option<Limit> {
    if bytes.trim_ascii() == b"max" {
        return Some(Limit::Unlimited);
    }
    number(bytes).map(|value| Limit::At(value as f64))
}

/// A v1 memory limit, where a huge number means none.
pub fn limit_bytes_v1(bytes: &[u8]) -> Option<Limit> {
    let value = number(bytes)?;
    Some(if value >= MEMORY_UNLIMITED_BYTES { Limit::Unlimited } else { Limit::At(value as f64) })
}

/// v2 `cpu.max`, in cores.
pub fn cpu_max(bytes: &[u8]) -> Option<Limit> {
    let mut found = words(bytes);
    let quota = found.next()?;
    let period_us = decimal(found.next()?)?;
    if quota == b"max" {
        return Some(Limit::Unlimited);
    }
    cores(decimal(quota)?, period_us)
}

/// v1 `cpu.cfs_quota_us` with `cpu.cfs_period_us`, in cores; a negative quota means none.
pub fn cfs_quota(quota: &[u8], period: &[u8]) -> Option<Limit> {
    let quota = quota.trim_ascii();
    if let Some(digits) = quota.strip_prefix(b"-") {
        return decimal(digits).map(|_us| Limit::Unlimited);
    }
    cores(decimal(quota)?, number(period)?)
}

fn cores(quota_us: u64, period_us: u64) -> Option<Limit> {
    (period_us > 0).then(|| Limit::At(quota_us as f64 / period_us as f64))
}

/// A device number at the start of a line of `io.stat` or a blkio file.
fn device(word: &[u8]) -> Option<(u32, u32)> {
    let colon = word.iter().position(|&byte| byte == b':')?;
    let part = |digits: &[u8]| decimal(digits).and_then(|value| u32::try_from(value).ok());
    Some((part(&word[..colon])?, part(&word[colon + 1..])?))
}

/// v2 `io.stat`, summed over the devices for which `counts` answers true.
///
/// An empty file is a cgroup without I/O: zeros.
pub fn io_stat(bytes: &[u8], counts: impl Fn((u32, u32)) -> bool) -> IoTotals {
    let mut sum = IoTotals::default();
    for line in lines(bytes) {
        let mut found = words(line);
        if !found.next().and_then(device).is_some_and(&counts) {
            continue;
        }
        for pair in found {
            let Some(equals) = pair.iter().position(|&byte| byte == b'=') else { continue };
            let Some(value) = decimal(&pair[equals + 1..]) else { continue };
            let field = match &pair[..equals] {
                b"rbytes" => &mut sum.read_bytes,
                b"wbytes" => &mut sum.write_bytes,
                b"rios" => &mut sum.read_ops,
                b"wios" => &mut sum.write_ops,
                _ => continue,
            };
            *field = field.saturating_add(value);
        }
    }
    sum
}

/// A v1 `blkio.throttle.*` file as (read, written), summed over the devices that `counts` names.
///
/// `None` when the file lists no device at all: kernels count here only once throttling is active,
/// so an empty file does not mean that nothing was read or written.
pub fn blkio(bytes: &[u8], counts: impl Fn((u32, u32)) -> bool) -> Option<(u64, u64)> {
    let mut any_device = false;
    let (mut read, mut written) = (0_u64, 0_u64);
    for line in lines(bytes) {
        let mut found = words(line);
        let Some(number) = found.next().and_then(device) else { continue };
        let (Some(kind), Some(value)) = (found.next(), found.next().and_then(decimal)) else {
            continue;
        };
        any_device = true;
        if !counts(number) {
            continue;
        }
        match kind {
            b"Read" => read = read.saturating_add(value),
            b"Write" => written = written.saturating_add(value),
            _ => {}
        }
    }
    any_device.then_some((read, written))
}

/// A pressure file's totals.
pub fn pressure(bytes: &[u8]) -> Option<PressureTotals> {
    let (mut some_us, mut full_us) = (None, None);
    for line in lines(bytes) {
        let mut found = words(line);
        let kind = found.next();
        let total = found.find_map(|pair| pair.strip_prefix(b"total=")).and_then(decimal);
        match kind {
            Some(b"some") => some_us = total,
            Some(b"full") => full_us = total,
            _ => {}
        }
    }
    some_us.map(|some_us| PressureTotals { some_us, full_us })
}

/// Number of non-empty lines, e.g. of `tasks` or `cgroup.threads`.
pub fn line_count(bytes: &[u8]) -> u64 {
    lines(bytes).count() as u64
}

/// The cgroup path of a process in the hierarchy that holds `controller` (v1), or in the v2 tree
/// when `controller` is `None`, from the contents of `/proc/PID/cgroup`.
pub fn cgroup_of_process<'a>(bytes: &'a [u8], controller: Option<&str>) -> Option<&'a str> {
    lines(bytes).find_map(|line| {
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (_hierarchy, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_wanted = match controller {
            None => names.is_empty(),
            Some(name) => names.split(|&byte| byte == b',').any(|part| part == name.as_bytes()),
        };
        is_wanted.then(|| std::str::from_utf8(path).ok())?
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::any, proptest};

    use super::{
        IoTotals, Limit, PressureTotals, blkio, cfs_quota, cgroup_of_process, cpu_max,
        cpu_system_ns_v1, each_pair, io_stat, limit_bytes_v1, limit_bytes_v2, line_count, number,
        pressure,
    };

    #[test]
    fn limits_of_both_versions_mean_the_same() {
        assert_eq!(cpu_max(b"150000 100000\n"), Some(Limit::At(1.5)));
        assert_eq!(cpu_max(b"max 100000\n"), Some(Limit::Unlimited));
        assert_eq!(cfs_quota(b"150000\n", b"100000\n"), Some(Limit::At(1.5)));
        assert_eq!(cfs_quota(b"-1\n", b"100000\n"), Some(Limit::Unlimited));
        assert_eq!(cfs_quota(b"1000\n", b"0\n"), None);
        assert_eq!(limit_bytes_v1(b"9223372036854771712\n"), Some(Limit::Unlimited));
        assert_eq!(limit_bytes_v1(b"9223372036854710272\n"), Some(Limit::Unlimited));
        assert_eq!(limit_bytes_v1(b"1048576\n"), Some(Limit::At(1_048_576.0)));
        assert_eq!(limit_bytes_v2(b"max\n"), Some(Limit::Unlimited));
        assert_eq!(limit_bytes_v2(b"4096\n"), Some(Limit::At(4_096.0)));
    }

    #[test]
    fn io_leaves_out_devices_that_are_counted_below() {
        let text = b"254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n\
                     253:1 rbytes=7 wbytes=7 rios=7 wios=7\n8:0 \n";
        let is_disk = |number: (u32, u32)| number.0 != 253;
        let expected = IoTotals { read_bytes: 10, write_bytes: 20, read_ops: 1, write_ops: 2 };
        assert_eq!(io_stat(text, is_disk), expected);
        assert_eq!(io_stat(b"", is_disk), IoTotals::default());
    }

    #[test]
    fn a_blkio_file_without_devices_is_no_measurement() {
        assert_eq!(blkio(b"Total 0\n", |_device| true), None);
        let text = b"254:0 Read 5\n254:0 Write 6\n254:0 Sync 11\n254:0 Total 11\nTotal 11\n";
        assert_eq!(blkio(text, |_device| true), Some((5, 6)));
    }

    #[test]
    fn pressure_without_a_full_line_is_still_pressure() {
        let text = b"some avg10=1.66 avg60=0.87 avg300=0.30 total=5331750\n";
        assert_eq!(pressure(text), Some(PressureTotals { some_us: 5_331_750, full_us: None }));
        assert_eq!(pressure(b""), None);
    }

    #[test]
    fn a_process_is_found_in_either_version() {
        let text = b"4:memory:/m\n2:cpu,cpuacct:/a:b\n0::/u\n";
        assert_eq!(cgroup_of_process(text, Some("cpu")), Some("/a:b"));
        assert_eq!(cgroup_of_process(text, None), Some("/u"));
        assert_eq!(cgroup_of_process(text, Some("blkio")), None);
    }

    #[test]
    fn kernel_time_is_nanoseconds_from_either_file_of_v1() {
        assert_eq!(cpu_system_ns_v1(b"1500000000\n"), Some(1_500_000_000));
        assert_eq!(cpu_system_ns_v1(b"user 600\nsystem 150\n"), Some(1_500_000_000));
        assert_eq!(cpu_system_ns_v1(b"user 600\n"), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            cpu_system_ns_v1(&bytes);
            number(&bytes);
            limit_bytes_v1(&bytes);
            limit_bytes_v2(&bytes);
            cpu_max(&bytes);
            cfs_quota(&bytes, &bytes);
            io_stat(&bytes, |_device| true);
            blkio(&bytes, |_device| true);
            pressure(&bytes);
            line_count(&bytes);
            cgroup_of_process(&bytes, Some("cpu"));
            each_pair(&bytes, |_key, _value| {});
        }

        #[test]
        fn lines_that_look_right_never_panic(text in "([0-9]{0,22}[: =]?(max|some|rbytes=|Read|total=|-)?[ \n]?){0,12}") {
            let bytes = text.as_bytes();
            cpu_max(bytes);
            cfs_quota(bytes, b"100000");
            io_stat(bytes, |_device| true);
            blkio(bytes, |_device| true);
            pressure(bytes);
        }

        #[test]
        fn every_number_is_read_back(value in any::<u64>()) {
            assert_eq!(number(format!("{value}\n").as_bytes()), Some(value));
        }
    }
}
