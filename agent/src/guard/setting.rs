//! A knob's value as the kernel keeps it, and what follows from comparing two of them; pure.

use headroom_allocate::Limit;
use serde::{Deserialize, Serialize};

use super::cpus::CpuSet;
use crate::observe::cgroup::Version;

/// The kernel takes no CPU quota below this (`min_cfs_quota_period` in the scheduler).
pub const QUOTA_US_MIN: u64 = 1_000;

/// The kernel takes no CPU quota above this (`max_bw_quota_period_us` in the scheduler).
const QUOTA_US_MAX: u64 = (1 << 44) - 1;

/// A knob's value in the kernel's own numbers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Setting {
    /// CPU bandwidth.
    Cpu(CpuSetting),
    /// A memory limit in bytes; `None` is no limit.
    Memory(Option<u64>),
    /// Quota that may be saved up.
    Burst(BurstSetting),
    /// A weight, a number of tasks, bytes or operations per second, or megahertz of a clock floor;
    /// `None` is no limit.
    Count(Option<u64>),
    /// The weight of one device.
    Weight(WeightSetting),
    /// CPUs it may run on.
    Cpus(CpusSetting),
    /// Power that a GPU may draw.
    Power {
        /// In the driver's unit.
        milliwatts: u64,
    },
}

/// Quota of one cgroup that may be saved up.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BurstSetting {
    /// Run time, microseconds.
    pub burst_us: u64,
    /// The period of the quota, microseconds. Read, never changed.
    pub period_us: u64,
}

/// The weight of one cgroup on one device.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WeightSetting {
    /// Its own; `None` where the device has none of its own.
    pub own: Option<u64>,
    /// What holds without one. Read, never changed under the device's knob.
    pub default: u64,
}

/// CPUs one cgroup may run on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CpusSetting {
    /// Those it names; none on v2 is every one that the cgroup above has.
    pub own: CpuSet,
    /// Those that the cgroup above has. Read, never changed.
    pub above: CpuSet,
}

/// CPU bandwidth of one cgroup.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CpuSetting {
    /// Run time per period, microseconds; `None` is no limit.
    pub quota_us: Option<u64>,
    /// The period, microseconds. Read, never changed.
    pub period_us: u64,
    /// Unused run time that may be spent later, microseconds; `None` where the kernel has no such
    /// file. The kernel takes no quota below it.
    pub burst_us: Option<u64>,
}

/// How a value found in the files relates to a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The workload's own.
    Baseline,
    /// One the guard has written, or may have.
    Ours,
    /// Somebody else's.
    Foreign,
}

impl Setting {
    /// The value as a limit, in the unit of the knob's resource.
    pub fn limit(self) -> Limit {
        match self {
            Self::Cpu(CpuSetting { quota_us: Some(quota_us), period_us, .. }) => {
                Limit::At(quota_us as f64 / period_us.max(1) as f64)
            }
            Self::Memory(Some(amount)) | Self::Count(Some(amount)) => Limit::At(amount as f64),
            Self::Burst(BurstSetting { burst_us, period_us }) => {
                Limit::At(burst_us as f64 / period_us.max(1) as f64)
            }
            Self::Weight(WeightSetting { own, default }) => {
                Limit::At(own.unwrap_or(default) as f64)
            }
            Self::Power { milliwatts } => Limit::At(milliwatts as f64 / 1.0e3),
            Self::Cpus(CpusSetting { own, .. }) if !own.is_empty() => Limit::At(own.len() as f64),
            Self::Cpu(_) | Self::Memory(None) | Self::Count(None) | Self::Cpus(_) => {
                Limit::Unlimited
            }
        }
    }

    /// This value moved to `limit`: the period stays, a burst that would not fit below the quota is
    /// lowered, memory is rounded up to a whole page, counts to the nearest whole number. No limit
    /// leaves a burst and a weight as they are: they have none.
    pub fn with_limit(self, limit: Limit, page_bytes: u64) -> Self {
        match self {
            Self::Cpu(cpu) => {
                let quota_us = match limit {
                    Limit::Unlimited => None,
                    Limit::At(cores) => {
                        let quota_us = (cores * cpu.period_us as f64).round();
                        Some((quota_us as u64).clamp(QUOTA_US_MIN, QUOTA_US_MAX))
                    }
                };
                Self::Cpu(CpuSetting { quota_us, burst_us: fit(cpu.burst_us, quota_us), ..cpu })
            }
            Self::Memory(_) => Self::Memory(match limit {
                Limit::Unlimited => None,
                Limit::At(bytes) => {
                    let page_bytes = page_bytes.max(1);
                    Some((bytes.max(0.0) as u64).div_ceil(page_bytes).saturating_mul(page_bytes))
                }
            }),
            Self::Burst(burst) => Self::Burst(match limit {
                Limit::Unlimited => burst,
                Limit::At(cores) => {
                    let burst_us = whole(cores * burst.period_us as f64);
                    BurstSetting { burst_us, ..burst }
                }
            }),
            Self::Count(_) => Self::Count(match limit {
                Limit::Unlimited => None,
                Limit::At(amount) => Some(whole(amount)),
            }),
            Self::Weight(weight) => Self::Weight(match limit {
                Limit::Unlimited => weight,
                Limit::At(amount) => WeightSetting { own: Some(whole(amount)), ..weight },
            }),
            Self::Power { milliwatts } => match limit {
                Limit::Unlimited => Self::Power { milliwatts },
                // Whole watts are what drivers keep as they are; the device's own value is exact.
                Limit::At(watts) => Self::Power { milliwatts: whole(watts).saturating_mul(1_000) },
            },
            Self::Cpus(cpus) => {
                let count = match limit {
                    Limit::Unlimited => cpus.above.len(),
                    // A set of none would be that of the cgroup above.
                    Limit::At(count) => usize::try_from(whole(count)).unwrap_or(0).max(1),
                };
                let from = if cpus.own.is_empty() { cpus.above } else { cpus.own };
                Self::Cpus(CpusSetting { own: from.resized(count, &cpus.above), ..cpus })
            }
        }
    }

    /// Whether both put the same limit into force, as far as the kernel's rounding tells.
    pub fn same_limit(self, other: Self, page_bytes: u64) -> bool {
        match (self, other) {
            (Self::Cpu(a), Self::Cpu(b)) => {
                same_quota(a.quota_us, b.quota_us) && a.period_us == b.period_us
            }
            (Self::Memory(a), Self::Memory(b)) => same_bytes(a, b, page_bytes),
            (Self::Burst(a), Self::Burst(b)) => a.burst_us.abs_diff(b.burst_us) <= 1,
            (Self::Count(a), Self::Count(b)) => a == b,
            (Self::Weight(a), Self::Weight(b)) => a.own == b.own,
            (Self::Cpus(a), Self::Cpus(b)) => a.own == b.own,
            (Self::Power { milliwatts: a }, Self::Power { milliwatts: b }) => a == b,
            _ => false,
        }
    }

    /// How this value, just read, relates to a lease with `baseline` under which `ours` may have
    /// been written.
    ///
    /// In v1 quota and period are separate files, so that a period somebody else changed says
    /// nothing about the quota; in v2 one line holds both and was written as a whole.
    pub fn standing(
        self,
        baseline: Self,
        ours: &[Self],
        version: Version,
        page_bytes: u64,
    ) -> Standing {
        let same = |other: Self| match (self, other) {
            (Self::Cpu(a), Self::Cpu(b)) => {
                same_quota(a.quota_us, b.quota_us)
                    && (version == Version::V1 || a.period_us == b.period_us)
            }
            _ => self.same_limit(other, page_bytes),
        };
        if same(baseline) && (!self.is_cpu() || self.given_back(baseline, ours) == self) {
            Standing::Baseline
        } else if same(baseline) || ours.iter().any(|&written| same(written)) {
            Standing::Ours
        } else {
            Standing::Foreign
        }
    }

    /// What to write over this value, just read, to give `baseline` back: the quota or limit of the
    /// baseline, the period as it is, and the baseline's burst unless somebody else has changed it.
    pub fn given_back(self, baseline: Self, ours: &[Self]) -> Self {
        let (Self::Cpu(now), Self::Cpu(before)) = (self, baseline) else {
            return baseline;
        };
        let lowered_by_us = ours.iter().any(|written| {
            matches!(written, Self::Cpu(cpu) if cpu.burst_us == now.burst_us
                && cpu.burst_us != before.burst_us)
        });
        let burst_us = if lowered_by_us { before.burst_us } else { now.burst_us };
        Self::Cpu(CpuSetting {
            quota_us: before.quota_us,
            period_us: now.period_us,
            burst_us: fit(burst_us, before.quota_us),
        })
    }
}

impl Setting {
    fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu(_))
    }
}

/// The nearest whole number that is not negative.
fn whole(amount: f64) -> u64 {
    amount.round().max(0.0) as u64
}

/// The burst that the kernel takes beside `quota_us`.
fn fit(burst_us: Option<u64>, quota_us: Option<u64>) -> Option<u64> {
    burst_us.map(|burst_us| burst_us.min(quota_us.unwrap_or(u64::MAX)))
}

/// The kernel keeps nanoseconds and prints microseconds.
fn same_quota(a: Option<u64>, b: Option<u64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) <= 1,
        (None, None) => true,
        _ => false,
    }
}

/// The kernel rounds down to whole pages.
fn same_bytes(a: Option<u64>, b: Option<u64>, page_bytes: u64) -> bool {
    let pages = |bytes: Option<u64>| bytes.map(|bytes| bytes / page_bytes.max(1));
    pages(a) == pages(b)
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Limit;
    use proptest::proptest;

    use super::{CpuSetting, Setting, Standing};
    use crate::observe::cgroup::Version;

    const PAGE: u64 = 4096;

    fn cpu(quota_us: Option<u64>, period_us: u64, burst_us: u64) -> Setting {
        Setting::Cpu(CpuSetting { quota_us, period_us, burst_us: Some(burst_us) })
    }

    #[test]
    fn the_period_stays_and_the_burst_fits() {
        let own = cpu(Some(100_000), 50_000, 80_000);
        assert_eq!(own.limit(), Limit::At(2.0));
        assert_eq!(own.with_limit(Limit::At(3.0), PAGE), cpu(Some(150_000), 50_000, 80_000));
        assert_eq!(own.with_limit(Limit::At(1.0), PAGE), cpu(Some(50_000), 50_000, 50_000));
        assert_eq!(own.with_limit(Limit::Unlimited, PAGE), cpu(None, 50_000, 80_000));
        assert_eq!(own.with_limit(Limit::At(0.0), PAGE), cpu(Some(1_000), 50_000, 1_000));
    }

    #[test]
    fn memory_is_compared_by_page() {
        let read_back = Setting::Memory(Some(1_232_896));
        let asked = Setting::Memory(Some(1_234_567));
        assert!(asked.same_limit(read_back, PAGE));
        assert!(!asked.same_limit(Setting::Memory(None), PAGE));
        assert_eq!(
            read_back.with_limit(Limit::At(1_234_567.0), PAGE),
            Setting::Memory(Some(1_236_992))
        );
    }

    #[test]
    fn a_burst_we_lowered_comes_back_and_one_that_others_set_stays() {
        let baseline = cpu(Some(100_000), 100_000, 90_000);
        let ours = [cpu(Some(50_000), 100_000, 50_000)];
        assert_eq!(ours[0].given_back(baseline, &ours), baseline);
        let others = cpu(Some(50_000), 100_000, 20_000);
        assert_eq!(others.given_back(baseline, &ours), cpu(Some(100_000), 100_000, 20_000));
    }

    #[test]
    fn a_change_cut_between_burst_and_quota_is_ours() {
        let baseline = cpu(Some(100_000), 100_000, 90_000);
        let ours = [cpu(Some(50_000), 100_000, 50_000)];
        let between = cpu(Some(100_000), 100_000, 50_000);
        assert_eq!(between.standing(baseline, &ours, Version::V2, PAGE), Standing::Ours);
        assert_eq!(between.given_back(baseline, &ours), baseline);
    }

    #[test]
    fn power_near_a_gpus_own_is_still_given_back() {
        let own = Setting::Power { milliwatts: 250_500 };
        let ours = own.with_limit(Limit::At(250.9), PAGE);
        assert_eq!(ours, Setting::Power { milliwatts: 251_000 });
        assert_eq!(ours.standing(own, &[ours], Version::V2, PAGE), Standing::Ours);
        assert_eq!(ours.given_back(own, &[ours]), own);
    }

    #[test]
    fn another_period_is_foreign_where_it_is_written_with_the_quota() {
        let baseline = cpu(Some(100_000), 100_000, 0);
        let ours = [cpu(Some(200_000), 100_000, 0)];
        let found = cpu(Some(200_000), 50_000, 0);
        assert_eq!(found.standing(baseline, &ours, Version::V2, PAGE), Standing::Foreign);
        assert_eq!(found.standing(baseline, &ours, Version::V1, PAGE), Standing::Ours);
        assert_eq!(found.given_back(baseline, &ours), cpu(Some(100_000), 50_000, 0));
    }

    proptest! {
        #[test]
        fn giving_back_once_is_enough(
            quota in 1_000u64..1_000_000, burst in 0u64..1_000_000, to in 0.0f64..20.0,
        ) {
            let baseline = cpu(Some(quota), 100_000, burst.min(quota));
            let ours = [baseline.with_limit(Limit::At(to), PAGE)];
            let back = ours[0].given_back(baseline, &ours);
            assert_eq!(back, baseline);
            assert_eq!(back.standing(baseline, &ours, Version::V2, PAGE), Standing::Baseline);
        }

        #[test]
        fn a_limit_survives_the_kernels_numbers(
            quota in 1_000u64..10_000_000, period in 1_000u64..1_000_000,
        ) {
            let own = cpu(Some(quota), period, 0);
            assert_eq!(own.with_limit(own.limit(), PAGE), own);
        }
    }
}
