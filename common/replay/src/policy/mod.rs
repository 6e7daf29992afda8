//! What sets limits: the interface, and every policy that is compared.
//!
//! A policy sees one resource of one workload step by step and answers with the limit from the
//! next step on. It sees no more than a controller on a host would: use as the limit let it be,
//! and whether the limit was hit. Only the oracle is given the series.

mod autopilot_ml;
mod autopilot_window;
mod captain;
mod headroom;
mod krr;
mod live;
mod reason;
mod senpai;
mod simple;
mod vpa;

use headroom_allocate::Objective;
use headroom_telemetry::Resource;

pub use reason::{Reason, Why};

use crate::{kind::Kind, series::Series};

/// What a policy is told at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// End of the step, from which the answer holds; seconds of the trace.
    pub t_s: f64,
    /// Use in the step, capped by the limit in force where the policy's limits cap (see
    /// [`Kind::sees`]); `None` when it was not measured.
    pub used: Option<f64>,
    /// The limit was hit: throttled, or killed for memory. `used` is then a lower bound.
    pub censored: bool,
    /// The limit in force during the step; infinite when there was none.
    pub in_force: f64,
    /// The limit the workload was recorded under; `None` when there was none.
    pub recorded_limit: Option<f64>,
}

/// The limit from the next step on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Cores or bytes; infinite for no limit, which takes one in force away.
    pub limit: f64,
    /// Why this value. Kept with the decision when the limit changes.
    pub reason: Reason,
}

/// Sets the limit of one resource of one workload.
pub trait Policy {
    /// The limit from the next step on, after `seen`.
    fn decide(&mut self, seen: &Seen) -> Answer;
}

/// What every policy is set up with.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// What matters for the workloads.
    pub objective: Objective,
    /// Time from a decision until it is useful, seconds: how far ahead demand is to be covered.
    pub lead_s: f64,
    /// Overrides the one parameter the policy is swept over, see [`Kind::sweep`].
    pub knob: Option<f64>,
}

impl Default for Setting {
    fn default() -> Self {
        Self { objective: Objective::Serving, lead_s: 300.0, knob: None }
    }
}

/// Values of one resource that policies need as floors and bucket edges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Smallest limit VPA recommends.
    pub vpa_floor: f64,
    /// Smallest limit KRR recommends.
    pub krr_floor: f64,
    /// Smallest limit of the other policies.
    pub floor: f64,
    /// Width of the first bucket.
    pub bucket_first: f64,
    /// Largest value told apart.
    pub bucket_max: f64,
}

/// Bytes of a mebibyte.
pub(crate) const MIB: f64 = 1_048_576.0;

pub(crate) fn scale(resource: Resource) -> Scale {
    if resource == Resource::Memory {
        Scale {
            vpa_floor: 250.0 * MIB,
            krr_floor: 100.0 * MIB,
            floor: 4.0 * MIB,
            bucket_first: 1e7,
            bucket_max: 1e12,
        }
    } else {
        Scale {
            vpa_floor: 0.025,
            krr_floor: 0.01,
            floor: 0.01,
            bucket_first: 0.01,
            bucket_max: 1000.0,
        }
    }
}

/// The policy of `kind` for `series`, which only the oracle reads beyond its first step.
pub fn build(kind: Kind, series: &Series, setting: &Setting) -> Box<dyn Policy> {
    match kind {
        Kind::Headroom => Box::new(headroom::Headroom::new(series, setting)),
        Kind::HeadroomLive => Box::new(live::Live::new(series, setting)),
        Kind::Static => Box::new(simple::Static::new(series, setting)),
        Kind::Vpa => Box::new(vpa::Vpa::new(series.resource, series.step_s, setting)),
        Kind::AutopilotWindow => Box::new(autopilot_window::Window::new(series, setting)),
        Kind::AutopilotMl => Box::new(autopilot_ml::Ensemble::new(series.resource, setting)),
        Kind::Peak => Box::new(simple::Peak::new(series, setting)),
        Kind::Nsigma => Box::new(simple::Nsigma::new(series, setting)),
        Kind::Seasonal => Box::new(simple::Seasonal::new(series, setting)),
        Kind::Krr => Box::new(krr::Krr::new(series, setting)),
        Kind::Captain => Box::new(captain::Captain::new(series, setting)),
        Kind::Senpai => Box::new(senpai::Senpai::new(series, setting)),
        Kind::Oracle => Box::new(simple::Oracle::new(series, setting)),
    }
}
