//! Features of GPU use, from what the GPUs' thread saw last.

use headroom_telemetry::{Feature, Sample};

use crate::observe::gpu::{GpuSnapshot, GpuUse};

/// A workload without a process on any GPU uses none: zero, provided all GPUs tell their processes.
/// Clocks are those of the GPUs it uses, so that they are missing then.
pub(super) fn fill_gpu(sample: &mut Sample, gpu: Option<&GpuSnapshot>, path: &str) {
    let Some(seen) = gpu.filter(|seen| seen.state.is_known()) else { return };
    let none = GpuUse {
        utilisation: Some(0.0),
        memory_bytes: Some(0),
        memory_bandwidth: Some(0.0),
        encoder: Some(0.0),
        decoder: Some(0.0),
        power_watts: Some(0.0),
        ..GpuUse::default()
    };
    let Some(used) = seen.workloads.get(path).copied().or(seen.tells_processes.then_some(none))
    else {
        return;
    };
    sample.set_some(Feature::GpuUtilisation, used.utilisation);
    sample.set_some(Feature::GpuMemoryBytes, used.memory_bytes.map(|bytes| bytes as f64));
    sample.set_some(Feature::GpuMemoryBandwidth, used.memory_bandwidth);
    sample.set_some(Feature::GpuEncoder, used.encoder);
    sample.set_some(Feature::GpuDecoder, used.decoder);
    sample.set_some(Feature::GpuPowerWatts, used.power_watts);
    sample.set_some(Feature::GpuClockRatio, used.clock_ratio);
    sample.set_some(Feature::GpuThrottled, used.throttled);
}
