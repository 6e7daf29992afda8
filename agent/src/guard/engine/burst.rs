//! Quota and burst of one workload are two knobs over one rule of the kernel's: no quota below the
//! burst. Here is what follows from it when both are moved.

use std::time::Duration;

use headroom_allocate::Knob;

use super::{Engine, No, Steps};
use crate::guard::{
    leases::{Key, Lease},
    setting::{CpuSetting, Setting},
};

impl<S: Steps> Engine<S> {
    /// The workload's own value of a knob where `found` is in force: of a quota without a lease, the
    /// burst beside it is the one that a lease on the burst will give back.
    pub(super) fn own(&self, key: &Key, found: Setting) -> Setting {
        if let Some(lease) = self.leases.get(key) {
            return lease.baseline;
        }
        match (found, self.burst_lease(key).map(|lease| lease.baseline)) {
            (Setting::Cpu(cpu), Some(Setting::Burst(own))) => {
                Setting::Cpu(CpuSetting { burst_us: Some(own.burst_us), ..cpu })
            }
            _ => found,
        }
    }

    /// Gives a burst under lease back that does not fit below the quota `to`; whether it had to.
    pub(super) fn yield_burst(
        &mut self,
        key: &Key,
        found: Setting,
        to: Setting,
        now: Duration,
    ) -> bool {
        let (Setting::Cpu(found), Setting::Cpu(to)) = (found, to) else { return false };
        let fits = to.quota_us.is_none_or(|quota_us| found.burst_us.unwrap_or(0) <= quota_us);
        if fits || self.burst_lease(key).is_none() {
            return false;
        }
        self.give_back(&burst_of(key), now);
        true
    }

    /// `to` with the burst that is in force, while a lease of its own is held on that.
    pub(super) fn beside_burst(&self, key: &Key, to: Setting, found: Setting) -> Setting {
        match (to, found) {
            (Setting::Cpu(to), Setting::Cpu(found)) if self.burst_lease(key).is_some() => {
                Setting::Cpu(CpuSetting { burst_us: found.burst_us, ..to })
            }
            _ => to,
        }
    }

    /// While a quota below the workload's own keeps its burst down, both come back together, and
    /// no lease may come between.
    pub(super) fn refuse_burst_that_follows(&self, key: &Key) -> Result<(), No> {
        if key.knob != Knob::CpuBurst {
            return Ok(());
        }
        let quota = Key { knob: Knob::CpuQuota, ..key.clone() };
        let burst_us = |setting: &Setting| match setting {
            Setting::Cpu(cpu) => cpu.burst_us,
            _ => None,
        };
        let follows = self.leases.get(&quota).is_some_and(|lease| {
            let own = burst_us(&lease.baseline);
            self.leases.get(key).is_none() && lease.ours().iter().any(|ours| burst_us(ours) != own)
        });
        if follows {
            let text = format!("the burst of {} follows its quota, which is lowered", key.workload);
            return Err(No::refused("burst_follows_quota", text));
        }
        Ok(())
    }

    /// The lease on the burst beside the quota `key`.
    fn burst_lease(&self, key: &Key) -> Option<&Lease> {
        if key.knob != Knob::CpuQuota {
            return None;
        }
        self.leases.get(&burst_of(key))
    }
}

fn burst_of(quota: &Key) -> Key {
    Key { knob: Knob::CpuBurst, ..quota.clone() }
}
