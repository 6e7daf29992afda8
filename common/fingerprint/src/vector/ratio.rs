//! Ratios of what a workload does: so much of one thing for each of another. They tell what a
//! program is at any load and on a busy machine, where rates tell how much of it runs.

use headroom_telemetry::{Feature, Sample};

use super::{
    group::Group,
    scale::{self, Scale},
};

/// What a ratio is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Under {
    /// A second of CPU time; known from a twentieth of a second on.
    CpuSecond,
    /// The sum of these; known when their integral over the window, in their unit and seconds, is
    /// at least so much.
    SumOf(&'static [Feature], f64),
    /// Nothing: the mean of the values.
    Samples,
}

/// One ratio.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// Name of the component.
    pub name: &'static str,
    /// Unit before scaling.
    pub unit: &'static str,
    /// What it is about.
    pub group: Group,
    /// What is divided, summed.
    pub over: &'static [Feature],
    /// What it is divided by.
    pub under: Under,
    /// How it becomes a component; `None` is already between zero and one.
    pub scale: Option<Scale>,
}

/// CPU time below which nothing is said for each second of it, seconds.
const CPU_SECONDS_MIN: f64 = 0.05;
/// Events below which shares of them say little.
const EVENTS_MIN: f64 = 20.0;
/// Bytes (times seconds) below which shares of memory say little.
const BYTES_MIN: f64 = 65_536.0;

/// System calls in a window below which their mix is not known.
pub const SYSCALLS_MIN: f64 = 40.0;

const fn share(
    name: &'static str,
    group: Group,
    over: &'static [Feature],
    whole: &'static [Feature],
    whole_min: f64,
) -> Ratio {
    Ratio { name, unit: "ratio", group, over, under: Under::SumOf(whole, whole_min), scale: None }
}

const fn per_cpu_second(
    name: &'static str,
    unit: &'static str,
    group: Group,
    over: &'static [Feature],
    scale: Scale,
) -> Ratio {
    Ratio { name, unit, group, over, under: Under::CpuSecond, scale: Some(scale) }
}

const fn mean(
    name: &'static str,
    unit: &'static str,
    group: Group,
    of: &'static [Feature],
) -> Ratio {
    Ratio { name, unit, group, over: of, under: Under::Samples, scale: None }
}

const EVENTS: Scale = Scale { resolution: 1.0, reference: 1.0e5 };
const RARE_EVENTS: Scale = Scale { resolution: 0.1, reference: 1.0e3 };
const HARDWARE_EVENTS: Scale = Scale { resolution: 1.0e4, reference: 1.0e8 };
const BYTES: Scale = Scale { resolution: 4_096.0, reference: 1.0e9 };
const SIZE: Scale = Scale { resolution: 64.0, reference: 1.0e6 };

/// Every ratio, in the order of the layout.
pub const RATIOS: &[Ratio] = {
    use Feature as F;
    &[
        per_cpu_second("syscalls_per_cpu_s", "1/s", Group::Syscalls, &Feature::SYSCALLS, EVENTS),
        share(
            "syscall_error_share",
            Group::Syscalls,
            &[F::SyscallErrors],
            &Feature::SYSCALLS,
            EVENTS_MIN,
        ),
        share(
            "cpu_system_share",
            Group::Cpu,
            &[F::CpuSystemCores],
            &[F::CpuCores],
            CPU_SECONDS_MIN,
        ),
        per_cpu_second("voluntary_per_cpu_s", "1/s", Group::Cpu, &[F::VoluntarySwitches], EVENTS),
        Ratio {
            scale: Some(Scale { resolution: 0.1, reference: 4.0 }),
            ..mean("instructions_per_cycle_mean", "ratio", Group::Cpu, &[F::InstructionsPerCycle])
        },
        per_cpu_second("llc_misses_per_cpu_s", "1/s", Group::Cpu, &[F::LlcMisses], HARDWARE_EVENTS),
        per_cpu_second(
            "branch_misses_per_cpu_s",
            "1/s",
            Group::Cpu,
            &[F::BranchMisses],
            HARDWARE_EVENTS,
        ),
        per_cpu_second("faults_per_cpu_s", "1/s", Group::Memory, &[F::PageFaults], EVENTS),
        share(
            "anon_share",
            Group::Memory,
            &[F::MemoryAnonBytes],
            &[F::MemoryAnonBytes, F::MemoryFileBytes],
            BYTES_MIN,
        ),
        Ratio {
            unit: "bytes",
            scale: Some(Scale { resolution: 65_536.0, reference: 1.0e9 }),
            ..share("anon_bytes_per_task", Group::Memory, &[F::MemoryAnonBytes], &[F::Tasks], 1.0)
        },
        per_cpu_second(
            "cache_pages_per_cpu_s",
            "1/s",
            Group::Cache,
            &[F::PageCacheHits, F::PageCacheMisses],
            EVENTS,
        ),
        share(
            "cache_hit_share",
            Group::Cache,
            &[F::PageCacheHits],
            &[F::PageCacheHits, F::PageCacheMisses],
            EVENTS_MIN,
        ),
        per_cpu_second(
            "cache_dirtied_per_cpu_s",
            "1/s",
            Group::Cache,
            &[F::PageCacheDirtied],
            EVENTS,
        ),
        per_cpu_second(
            "disk_ops_per_cpu_s",
            "1/s",
            Group::Disk,
            &[F::DiskReadIops, F::DiskWriteIops],
            EVENTS,
        ),
        per_cpu_second(
            "disk_bytes_per_cpu_s",
            "bytes/s",
            Group::Disk,
            &[F::DiskReadBps, F::DiskWriteBps],
            BYTES,
        ),
        share(
            "disk_write_share",
            Group::Disk,
            &[F::DiskWriteIops],
            &[F::DiskReadIops, F::DiskWriteIops],
            EVENTS_MIN,
        ),
        Ratio {
            unit: "bytes",
            scale: Some(SIZE),
            ..share(
                "disk_bytes_per_op",
                Group::Disk,
                &[F::DiskReadBps, F::DiskWriteBps],
                &[F::DiskReadIops, F::DiskWriteIops],
                EVENTS_MIN,
            )
        },
        mean("disk_sequential_mean", "ratio", Group::Disk, &[F::DiskSequentialRatio]),
        per_cpu_second(
            "packets_per_cpu_s",
            "1/s",
            Group::Network,
            &[F::NetRxPps, F::NetTxPps],
            EVENTS,
        ),
        per_cpu_second(
            "net_bytes_per_cpu_s",
            "bytes/s",
            Group::Network,
            &[F::NetRxBps, F::NetTxBps],
            BYTES,
        ),
        share(
            "net_tx_share",
            Group::Network,
            &[F::NetTxBps],
            &[F::NetRxBps, F::NetTxBps],
            BYTES_MIN,
        ),
        Ratio {
            unit: "bytes",
            scale: Some(SIZE),
            ..share(
                "bytes_per_packet",
                Group::Network,
                &[F::NetRxBps, F::NetTxBps],
                &[F::NetRxPps, F::NetTxPps],
                EVENTS_MIN,
            )
        },
        per_cpu_second("connects_per_cpu_s", "1/s", Group::Network, &[F::NetConnects], RARE_EVENTS),
        per_cpu_second("accepts_per_cpu_s", "1/s", Group::Network, &[F::NetAccepts], RARE_EVENTS),
        per_cpu_second("execs_per_cpu_s", "1/s", Group::Processes, &[F::Execs], RARE_EVENTS),
        per_cpu_second("exits_per_cpu_s", "1/s", Group::Processes, &[F::Exits], RARE_EVENTS),
        Ratio {
            scale: Some(Scale { resolution: 1.0, reference: 1_000.0 }),
            ..mean("tasks_mean", "1", Group::Processes, &[F::Tasks])
        },
        share(
            "gpu_memory_bandwidth_share",
            Group::Gpu,
            &[F::GpuMemoryBandwidth],
            &[F::GpuUtilisation],
            0.05,
        ),
        share("gpu_encoder_share", Group::Gpu, &[F::GpuEncoder], &[F::GpuUtilisation], 0.05),
        share("gpu_decoder_share", Group::Gpu, &[F::GpuDecoder], &[F::GpuUtilisation], 0.05),
    ]
};

impl Ratio {
    /// Its component over samples of `step_s` each; NaN when one side was not measured or the lower
    /// side is too small to divide by. Samples that lack a feature do not count.
    pub(super) fn of(&self, samples: &[&Sample], step_s: f64) -> f64 {
        let under: &[Feature] = match self.under {
            Under::CpuSecond => &[Feature::CpuCores],
            Under::SumOf(features, _) => features,
            Under::Samples => &[],
        };
        let (mut sum_over, mut sum_under, mut n) = (0.0, 0.0, 0_u32);
        for sample in samples {
            let (Some(over), Some(under)) = (sum(sample, self.over), sum(sample, under)) else {
                continue;
            };
            sum_over += over;
            sum_under += under;
            n += 1;
        }
        let amount = match self.under {
            _ if n == 0 => f64::NAN,
            Under::Samples => sum_over / f64::from(n),
            Under::CpuSecond if sum_under * step_s >= CPU_SECONDS_MIN => sum_over / sum_under,
            Under::SumOf(_, min) if sum_under * step_s >= min => sum_over / sum_under,
            Under::CpuSecond | Under::SumOf(..) => f64::NAN,
        };
        match self.scale {
            Some(scale) => scale.apply(amount),
            None => amount.clamp(0.0, scale::COMPONENT_MAX),
        }
    }

    /// What it is divided by, in words.
    pub(super) fn under_in_words(&self) -> String {
        match self.under {
            Under::CpuSecond => "CPU second".to_owned(),
            Under::SumOf(features, _) if features == Feature::SYSCALLS => "system calls".to_owned(),
            Under::SumOf(features, _) => in_words(features),
            Under::Samples => "sample".to_owned(),
        }
    }

    /// What is divided, in words.
    pub(super) fn over_in_words(&self) -> String {
        if self.over == Feature::SYSCALLS { "system calls".to_owned() } else { in_words(self.over) }
    }
}

fn in_words(features: &[Feature]) -> String {
    features.iter().map(|feature| feature.name()).collect::<Vec<_>>().join(" + ")
}

/// The sum of features of a sample; `None` when one was not measured.
fn sum(sample: &Sample, features: &[Feature]) -> Option<f64> {
    features.iter().map(|feature| sample.get(*feature).map(f64::from)).sum()
}

/// Square roots of the shares of the classes of system calls; NaN each when one was not measured
/// or there were fewer than [`SYSCALLS_MIN`].
pub(super) fn syscall_mix(samples: &[&Sample], step_s: f64) -> [f32; Feature::SYSCALLS.len()] {
    let mut sums = [0.0; Feature::SYSCALLS.len()];
    for sample in samples {
        if sum(sample, &Feature::SYSCALLS).is_none() {
            continue;
        }
        for (total, class) in sums.iter_mut().zip(Feature::SYSCALLS) {
            *total += sample.get(class).map_or(0.0, f64::from).max(0.0) * step_s;
        }
    }
    square_root_shares(&sums, SYSCALLS_MIN)
}

/// Square roots of the shares of `counts` in their sum, NaN each when the sum is below `sum_min`.
///
/// Half the squared Euclidean distance of two such vectors is the squared Hellinger distance.
pub(crate) fn square_root_shares<const N: usize>(counts: &[f64; N], sum_min: f64) -> [f32; N] {
    let sum: f64 = counts.iter().sum();
    if sum.is_nan() || sum < sum_min {
        return [f32::NAN; N];
    }
    #[expect(clippy::cast_possible_truncation, reason = "components are single precision")]
    counts.map(|count| (count / sum).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample};

    use super::{RATIOS, syscall_mix};

    fn busy(factor: f64) -> Sample {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::CpuCores, 0.4 * factor);
        sample.set(Feature::CpuSystemCores, 0.1 * factor);
        for (i, class) in Feature::SYSCALLS.into_iter().enumerate() {
            sample.set(class, 10.0 * factor * (i as f64));
        }
        sample.set(Feature::PageFaults, 700.0 * factor);
        sample
    }

    #[test]
    fn ratios_and_mix_are_the_same_at_any_load() {
        let (low, high) = (busy(1.0), busy(8.0));
        for ratio in RATIOS {
            let (a, b) = (ratio.of(&[&low], 1.0), ratio.of(&[&high, &high], 1.0));
            assert!(
                a.is_nan() == b.is_nan() && (a.is_nan() || (a - b).abs() < 1e-6),
                "{}",
                ratio.name
            );
        }
        for (a, b) in syscall_mix(&[&low], 1.0).iter().zip(syscall_mix(&[&high], 1.0)) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn what_was_not_measured_or_hardly_happened_has_no_ratio() {
        let named = |name: &str| RATIOS.iter().find(|ratio| ratio.name == name).unwrap();
        assert!(named("execs_per_cpu_s").of(&[&busy(1.0)], 1.0).is_nan());
        assert!(named("faults_per_cpu_s").of(&[&busy(0.01)], 1.0).is_nan());
        assert!(named("faults_per_cpu_s").of(&[], 1.0).is_nan());
        assert!((named("cpu_system_share").of(&[&busy(1.0)], 1.0) - 0.25).abs() < 1e-6);
        assert!(syscall_mix(&[&busy(0.01)], 1.0).iter().all(|share| share.is_nan()));
    }

    #[test]
    fn a_ratio_of_nothing_that_was_looked_for_is_zero() {
        let mut sample = busy(1.0);
        sample.set(Feature::Execs, 0.0);
        let execs = RATIOS.iter().find(|ratio| ratio.name == "execs_per_cpu_s").unwrap();
        assert!(execs.of(&[&sample], 1.0).abs() < 1e-12);
    }
}
