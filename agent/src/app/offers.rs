//! What the aggregator offers: models and a policy. Taken or refused, and told which.

use super::{fleet_policy::PolicyDoor, tick::Loop};

impl Loop {
    /// Lets the aggregator's policy in by `door`.
    pub(super) fn take_policies_by(&mut self, door: PolicyDoor) {
        if let Some(uplink) = &self.uplink {
            uplink.set_policy_version(door.version());
        }
        self.policy_door = Some(door);
    }

    /// Takes or refuses the policy that was offered last.
    pub(super) fn take_policy(&mut self) {
        let (Some(uplink), Some(door)) = (&self.uplink, &mut self.policy_door) else { return };
        let Some(offer) = uplink.policy() else { return };
        let result = match door.take(&offer) {
            Ok(taken) => {
                tracing::info!(version = taken.version, "a policy of the aggregator took over");
                self.policy.of_fleet(Some(taken));
                Ok(())
            }
            Err(reason) => {
                tracing::warn!(version = offer.version, reason, "a policy was refused");
                Err(reason)
            }
        };
        uplink.policy_verdict(offer.version, result);
    }

    /// Hands bundles to the thread that loads them, and takes what it has loaded.
    pub(super) fn take_models(&mut self) {
        while let Some(bundle) = self.offered.as_mut().and_then(|offered| offered.try_recv().ok()) {
            if self.bundles.send(bundle).is_err() {
                tracing::error!("the thread that loads models has ended");
            }
        }
        for verdict in self.models.verdicts() {
            let result = match verdict.result {
                Ok(model) => match self.planner.swap_model(model) {
                    Ok(()) => Ok(()),
                    Err(refused) => Err(refused.to_string()),
                },
                Err(reason) => Err(reason),
            };
            match &result {
                Ok(()) => tracing::info!(version = verdict.version, "a model took over"),
                Err(reason) => {
                    tracing::warn!(version = verdict.version, reason, "a model was refused");
                    *self.counts.models_refused.entry(reason.clone()).or_default() += 1;
                }
            }
            if let (Some(uplink), Some(version)) = (&self.uplink, verdict.version) {
                uplink.verdict(version, result);
            }
        }
    }
}
