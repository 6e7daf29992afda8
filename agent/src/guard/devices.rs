//! What a cgroup's files say of one block device, and what to write about it; pure. v2 keeps four
//! limits of a device on one line, v1 each in a file of its own; both leave out a device without.

use headroom_allocate::{Device, Knob};

use crate::observe::cgroup::{Version, weights::Weigher};

/// File of the limits of v2.
pub const IO_MAX: &str = "io.max";

/// The file of a throughput limit; `None` for knobs that are none.
pub fn limit_file(knob: Knob, version: Version) -> Option<&'static str> {
    let v1 = match knob {
        Knob::IoReadBps(_) => "blkio.throttle.read_bps_device",
        Knob::IoWriteBps(_) => "blkio.throttle.write_bps_device",
        Knob::IoReadIops(_) => "blkio.throttle.read_iops_device",
        Knob::IoWriteIops(_) => "blkio.throttle.write_iops_device",
        _ => return None,
    };
    Some(if version == Version::V1 { v1 } else { IO_MAX })
}

/// The name of a limit on a line of [`IO_MAX`].
fn limit_key(knob: Knob) -> &'static str {
    match knob {
        Knob::IoReadBps(_) => "rbps",
        Knob::IoWriteBps(_) => "wbps",
        Knob::IoReadIops(_) => "riops",
        _ => "wiops",
    }
}

/// The file of weights that `weigher` goes by: v1 keeps those of devices apart from the one of all
/// others.
pub fn weight_file(knob: Knob, version: Version, weigher: Weigher) -> &'static str {
    match (version, knob.device()) {
        (Version::V1, Some(_)) => "blkio.bfq.weight_device",
        _ => weigher.file(version),
    }
}

/// A throughput limit: outer `None` when the file does not say what it should, inner `None` for no
/// limit.
pub fn parse_limit(text: &str, knob: Knob, version: Version) -> Option<Option<u64>> {
    let device = knob.device()?;
    let Some(line) = line_of(text, device) else { return Some(None) };
    match version {
        Version::V1 => line.trim().parse().ok().map(Some),
        Version::V2 => {
            let key = limit_key(knob);
            let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
            let (_key, value) = pairs.into_iter().find(|(name, _value)| *name == key)?;
            if value == "max" { Some(None) } else { value.parse().ok().map(Some) }
        }
    }
}

/// What to write so that the limit is `to`; none leaves the other three of the device as they are.
pub fn limit_text(knob: Knob, version: Version, to: Option<u64>) -> Option<String> {
    let device = knob.device()?;
    Some(match version {
        // Zero is how v1 is told to forget a limit.
        Version::V1 => format!("{device} {}", to.unwrap_or(0)),
        Version::V2 => {
            let value = to.map_or_else(|| "max".to_owned(), |amount| amount.to_string());
            format!("{device} {}={value}", limit_key(knob))
        }
    })
}

/// The weight of devices without one of their own: `default 100`, or the number alone.
pub fn parse_default_weight(text: &str) -> Option<u64> {
    let first = text.lines().next()?;
    first.strip_prefix("default ").unwrap_or(first).trim().parse().ok()
}

/// The weight of `device`: outer `None` when the file does not say what it should, inner `None`
/// when the device has none of its own.
pub fn parse_weight(text: &str, device: Device) -> Option<Option<u64>> {
    match line_of(text, device) {
        None => Some(None),
        Some(weight) => weight.trim().parse().ok().map(Some),
    }
}

/// What to write so that the weight is `to`; `None` is that of devices without one of their own.
pub fn weight_text(device: Device, to: Option<u64>) -> String {
    let value = to.map_or_else(|| "default".to_owned(), |weight| weight.to_string());
    format!("{device} {value}")
}

/// What follows the numbers of `device` on its line.
fn line_of(text: &str, device: Device) -> Option<&str> {
    text.lines().find_map(|line| {
        let (numbers, rest) = line.split_once(' ')?;
        numbers.parse::<Device>().is_ok_and(|found| found == device).then_some(rest)
    })
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Device, Knob};

    use super::{limit_text, parse_default_weight, parse_limit, parse_weight, weight_text};
    use crate::observe::cgroup::Version::{V1, V2};

    const DISK: Device = Device { major: 254, minor: 0 };

    #[test]
    fn limits_are_read_by_device_and_by_name() {
        let v2 = "8:0 rbps=1 wbps=max riops=3 wiops=max\n254:0 wiops=9 rbps=max wbps=5 riops=max";
        let of = |knob| parse_limit(v2, knob, V2);
        assert_eq!(of(Knob::IoReadBps(DISK)), Some(None));
        assert_eq!(of(Knob::IoWriteBps(DISK)), Some(Some(5)));
        assert_eq!(of(Knob::IoWriteIops(DISK)), Some(Some(9)));
        assert_eq!(of(Knob::IoReadBps(Device { minor: 1, ..DISK })), Some(None));
        assert_eq!(parse_limit("254:0 rbps", Knob::IoReadBps(DISK), V2), None);
        let v1 = "8:0 7\n254:0 1048576";
        assert_eq!(parse_limit(v1, Knob::IoReadBps(DISK), V1), Some(Some(1_048_576)));
        assert_eq!(parse_limit("", Knob::IoReadBps(DISK), V1), Some(None));
        assert_eq!(parse_limit("254:0 x", Knob::IoReadBps(DISK), V1), None);
    }

    #[test]
    fn a_limit_is_written_alone_and_taken_away_by_each_versions_word() {
        let knob = Knob::IoWriteBps(DISK);
        assert_eq!(limit_text(knob, V2, Some(5)).unwrap(), "254:0 wbps=5");
        assert_eq!(limit_text(knob, V2, None).unwrap(), "254:0 wbps=max");
        assert_eq!(limit_text(knob, V1, Some(5)).unwrap(), "254:0 5");
        assert_eq!(limit_text(knob, V1, None).unwrap(), "254:0 0");
        assert_eq!(limit_text(Knob::CpuQuota, V1, None), None);
    }

    #[test]
    fn weights_have_a_default_and_devices_their_own() {
        let text = "default 100\n254:0 250";
        assert_eq!((parse_default_weight(text), parse_default_weight("70")), (Some(100), Some(70)));
        assert_eq!(parse_weight(text, DISK), Some(Some(250)));
        assert_eq!(parse_weight(text, Device { major: 8, minor: 0 }), Some(None));
        assert_eq!(weight_text(DISK, Some(3)), "254:0 3");
        assert_eq!(weight_text(DISK, None), "254:0 default");
    }
}
