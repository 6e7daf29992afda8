//! From what each GPU tells of its processes to what each workload uses. Pure.

use std::collections::BTreeMap;

use super::{GpuDevice, GpuUse};

/// What one process does on one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessUse {
    /// Memory held, bytes; `None` where the driver does not tell it.
    pub(super) memory_bytes: Option<u64>,
    /// Shares of the GPU's time; meaningless where [`DeviceLook::tells_use`] is false.
    pub(super) busy: Busy,
}

/// Shares of a GPU's time, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Busy {
    pub(super) multiprocessors: f64,
    pub(super) memory: f64,
    pub(super) encoder: f64,
    pub(super) decoder: f64,
}

/// One GPU with its processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DeviceLook {
    pub(super) device: GpuDevice,
    pub(super) processes: BTreeMap<u32, ProcessUse>,
    /// Whether the driver tells use per process of this GPU.
    pub(super) tells_use: bool,
}

/// Sums over GPUs what the processes of each cgroup do. `cgroup_of` answers `None` for a process
/// that has ended.
///
/// Use of a workload with processes on a GPU that does not tell use is missing as a whole: a sum
/// without it would be too low. Power is divided by the share of the multiprocessors' time.
pub(super) fn by_workload(
    looks: &[DeviceLook],
    mut cgroup_of: impl FnMut(u32) -> Option<String>,
) -> BTreeMap<String, GpuUse> {
    let mut paths: BTreeMap<u32, Option<String>> = BTreeMap::new();
    let mut totals: BTreeMap<String, GpuUse> = BTreeMap::new();
    let mut held: BTreeMap<String, Vec<&GpuDevice>> = BTreeMap::new();
    for look in looks {
        let all_busy: f64 = look.processes.values().map(|used| used.busy.multiprocessors).sum();
        let mut of_device: BTreeMap<String, GpuUse> = BTreeMap::new();
        for (pid, used) in &look.processes {
            let path = paths.entry(*pid).or_insert_with(|| cgroup_of(*pid));
            let Some(path) = path.clone() else { continue };
            let share = if all_busy > 0.0 { used.busy.multiprocessors / all_busy } else { 0.0 };
            let told = |value: f64| look.tells_use.then_some(value);
            let more = GpuUse {
                utilisation: told(used.busy.multiprocessors),
                memory_bytes: used.memory_bytes,
                memory_bandwidth: told(used.busy.memory),
                encoder: told(used.busy.encoder),
                decoder: told(used.busy.decoder),
                power_watts: told(share).zip(look.device.power_watts).map(|(part, all)| part * all),
                ..GpuUse::default()
            };
            match of_device.get_mut(&path) {
                Some(total) => *total = sum(*total, more),
                None => drop(of_device.insert(path, more)),
            }
        }
        for (path, more) in of_device {
            held.entry(path.clone()).or_default().push(&look.device);
            match totals.get_mut(&path) {
                Some(total) => *total = sum(*total, more),
                None => drop(totals.insert(path, more)),
            }
        }
    }
    for (path, devices) in held {
        let Some(total) = totals.get_mut(&path) else { continue };
        total.clock_ratio = mean(devices.iter().map(|device| device.clock_ratio()));
        let flags = devices.iter().map(|device| device.throttled);
        total.throttled =
            mean(flags.map(|flag| flag.map(|held_down| f64::from(u8::from(held_down)))));
    }
    totals
}

/// Sums field by field; what one side does not tell is missing in the sum.
fn sum(one: GpuUse, other: GpuUse) -> GpuUse {
    let add = |one: Option<f64>, other: Option<f64>| Some(one? + other?);
    GpuUse {
        utilisation: add(one.utilisation, other.utilisation),
        memory_bytes: one
            .memory_bytes
            .zip(other.memory_bytes)
            .map(|(one, other)| one.saturating_add(other)),
        memory_bandwidth: add(one.memory_bandwidth, other.memory_bandwidth),
        encoder: add(one.encoder, other.encoder),
        decoder: add(one.decoder, other.decoder),
        power_watts: add(one.power_watts, other.power_watts),
        ..one
    }
}

/// `None` when there is nothing, or one of them is missing.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Busy, DeviceLook, ProcessUse, by_workload};
    use crate::observe::gpu::GpuDevice;

    fn look(watts: f64, tells_use: bool, processes: &[(u32, f64, Option<u64>)]) -> DeviceLook {
        let device = GpuDevice {
            power_watts: Some(watts),
            clock_hz: Some(watts),
            clock_max_hz: Some(200.0),
            throttled: Some(watts > 150.0),
            ..GpuDevice::default()
        };
        let processes = processes.iter().map(|&(pid, multiprocessors, memory_bytes)| {
            let busy = Busy { multiprocessors, ..Busy::default() };
            (pid, ProcessUse { memory_bytes, busy })
        });
        DeviceLook { device, processes: processes.collect(), tells_use }
    }

    fn path(pid: u32) -> Option<String> {
        let paths = BTreeMap::from([(1, "/a"), (2, "/a"), (3, "/b")]);
        paths.get(&pid).map(|path| (*path).to_owned())
    }

    #[test]
    fn power_is_divided_by_use_and_devices_are_summed() {
        let looks = [
            look(100.0, true, &[(1, 0.25, Some(10)), (2, 0.25, Some(20)), (3, 0.5, Some(40))]),
            look(200.0, true, &[(3, 0.5, Some(2)), (9, 0.5, Some(7))]),
        ];
        let used = by_workload(&looks, path);
        assert_eq!(used.len(), 2, "a process that has ended is nobody's");
        let (a, b) = (used["/a"], used["/b"]);
        assert_eq!((a.utilisation, a.memory_bytes), (Some(0.5), Some(30)));
        assert_eq!((a.power_watts, a.clock_ratio, a.throttled), (Some(50.0), Some(0.5), Some(0.0)));
        assert_eq!((b.utilisation, b.memory_bytes), (Some(1.0), Some(42)));
        assert_eq!((b.power_watts, b.clock_ratio), (Some(150.0), Some(0.75)));
        assert_eq!(b.throttled, Some(0.5));
    }

    #[test]
    fn what_one_gpu_does_not_tell_is_missing_in_the_sum() {
        let looks =
            [look(100.0, true, &[(1, 0.25, None)]), look(50.0, false, &[(1, 0.0, Some(4))])];
        let a = by_workload(&looks, path)["/a"];
        assert_eq!((a.utilisation, a.memory_bytes, a.power_watts), (None, None, None));
        assert!(a.clock_ratio.is_some());
    }

    #[test]
    fn an_idle_gpu_gives_its_power_to_nobody() {
        let a = by_workload(&[look(30.0, true, &[(1, 0.0, Some(4))])], path)["/a"];
        assert_eq!((a.utilisation, a.power_watts), (Some(0.0), Some(0.0)));
    }
}
