//! Autopilot's ensemble of arg-min models (Rzadca et al., EuroSys 2020, equations 4 to 9).
//!
//! Every arm has a decay and a margin. It keeps, for each candidate limit, how much of the use was
//! above and how much below, and takes the limit of least cost; the ensemble takes the arm of
//! least cost so far. The cost of every arm is known from use alone, so nothing is explored.
//!
//! The paper tunes five scalars per fleet and does not print them. Here: decay of the arms' costs
//! 0.01, cost of overrun 10, of underrun 1, of a changed limit 2, of a changed arm 0.5; arms are
//! decays of 1/12, 1/72, 1/288 and 1/1440 per five minutes with margins of 0, 5, 15 and 30 %.
//! Candidates are bucket edges 10 % apart, from one above the floor on. A step has one sample, so
//! its histogram is one bucket.

use headroom_telemetry::Resource;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::histogram::Buckets;

const DECAYS: [f32; 4] = [1.0 / 12.0, 1.0 / 72.0, 1.0 / 288.0, 1.0 / 1440.0];
const MARGINS: [f64; 4] = [0.0, 0.05, 0.15, 0.3];
const ARMS: usize = DECAYS.len() * MARGINS.len();

/// The five tuned scalars.
#[derive(Clone, Copy, Debug)]
struct Costs {
    decay: f64,
    over: f64,
    under: f64,
    limit_changed: f64,
    arm_changed: f64,
}

const COSTS: Costs =
    Costs { decay: 0.01, over: 10.0, under: 1.0, limit_changed: 2.0, arm_changed: 0.5 };

/// Costs of every candidate at one decay.
struct Model {
    decay: f32,
    over: Vec<f32>,
    under: Vec<f32>,
    chosen: Option<usize>,
}

impl Model {
    /// Adds a use that fell into `bucket`: above all candidates up to its lower edge, below those
    /// beyond its upper edge.
    fn observe(&mut self, bucket: usize) {
        let keep = 1.0 - self.decay;
        for (edge, (over, under)) in self.over.iter_mut().zip(&mut self.under).enumerate() {
            // Candidate `edge` is the upper edge of bucket `edge`.
            *over = *over * keep + if bucket > edge { self.decay } else { 0.0 };
            *under = *under * keep + if bucket < edge { self.decay } else { 0.0 };
        }
    }

    /// The candidate of least cost; moving away from the last one costs.
    fn choose(&mut self, costs: &Costs) -> usize {
        let (over, under) = (costs.over as f32, costs.under as f32);
        let mut best = 0;
        let mut least = f32::INFINITY;
        for (edge, (o, u)) in self.over.iter().zip(&self.under).enumerate() {
            let cost = over * o + under * u;
            if cost < least {
                (best, least) = (edge, cost);
            }
        }
        if let Some(last) = self.chosen {
            let stays = over * self.over[last] + under * self.under[last];
            if stays <= least + costs.limit_changed as f32 * self.decay {
                best = last;
            }
        }
        self.chosen = Some(best);
        best
    }
}

pub(super) struct Ensemble {
    buckets: Buckets,
    models: Vec<Model>,
    costs: Costs,
    arm_costs: [f64; ARMS],
    arm_limits: [f64; ARMS],
    chosen: Option<usize>,
    floor: f64,
}

impl Ensemble {
    pub(super) fn new(resource: Resource, setting: &Setting) -> Self {
        let scale = scale(resource);
        let buckets = Buckets::new(scale.bucket_first, 1.1, scale.bucket_max);
        let count = buckets.count();
        let model =
            |decay| Model { decay, over: vec![0.0; count], under: vec![0.0; count], chosen: None };
        Self {
            buckets,
            models: DECAYS.into_iter().map(model).collect(),
            costs: Costs { over: setting.knob.unwrap_or(COSTS.over), ..COSTS },
            arm_costs: [0.0; ARMS],
            arm_limits: [f64::INFINITY; ARMS],
            chosen: None,
            floor: scale.floor,
        }
    }

    /// Moves every arm on and returns the cheapest, with the cost of leaving the one in use.
    fn step(&mut self, used: f64, in_force: f64) -> usize {
        let bucket = self.buckets.find(used);
        let costs = self.costs;
        let mut cheapest = (f64::INFINITY, 0);
        for (m, model) in self.models.iter_mut().enumerate() {
            model.observe(bucket);
            let edge = self.buckets.start(model.choose(&costs) + 1);
            for (k, margin) in MARGINS.into_iter().enumerate() {
                let arm = m * MARGINS.len() + k;
                let limit = (edge * (1.0 + margin)).max(self.floor);
                let moved = f64::from(u8::from(differ(limit, self.arm_limits[arm])));
                let within = self.buckets.find(limit);
                let cost = costs.over * f64::from(u8::from(bucket > within))
                    + costs.under * f64::from(u8::from(bucket < within))
                    + costs.limit_changed * moved;
                let total = &mut self.arm_costs[arm];
                *total = costs.decay * cost + (1.0 - costs.decay) * *total;
                self.arm_limits[arm] = limit;
                let leaves = self.chosen.is_some_and(|chosen| chosen != arm);
                let changes = differ(limit, in_force);
                let with_moves = *total
                    + costs.arm_changed * f64::from(u8::from(leaves))
                    + costs.limit_changed * f64::from(u8::from(changes));
                if with_moves < cheapest.0 {
                    cheapest = (with_moves, arm);
                }
            }
        }
        cheapest.1
    }
}

fn differ(a: f64, b: f64) -> bool {
    (a - b).abs() > 1e-9 * a.abs()
}

impl Policy for Ensemble {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let Some(used) = seen.used else {
            return Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        };
        // A use that hit its limit was more than that: it counts into the next bucket.
        let used = if seen.censored { used * 1.1 } else { used };
        let arm = self.step(used, seen.in_force);
        self.chosen = Some(arm);
        let limit = self.arm_limits[arm];
        Answer { limit, reason: Reason::new(Why::CheapestArm, limit) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{COSTS, Ensemble, Model, Policy as _, Seen, Setting};

    fn model(decay: f32) -> Model {
        Model { decay, over: vec![0.0; 4], under: vec![0.0; 4], chosen: None }
    }

    #[test]
    fn overrun_and_underrun_decay_as_in_equations_4_and_5() {
        let mut model = model(0.5);
        model.observe(2);
        assert_eq!(model.over, [0.5, 0.5, 0.0, 0.0]);
        assert_eq!(model.under, [0.0, 0.0, 0.0, 0.5]);
        model.observe(0);
        assert_eq!(model.over, [0.25, 0.25, 0.0, 0.0]);
        assert_eq!(model.under, [0.0, 0.5, 0.5, 0.75]);
    }

    #[test]
    fn the_limit_of_least_cost_is_taken_and_kept_while_moving_costs_more() {
        let mut model = model(0.5);
        model.observe(2);
        // 10 * over + under is least at the upper edge of bucket 2.
        assert_eq!(model.choose(&COSTS), 2);
        model.observe(1);
        // Costs are now 7.5, 2.5, 0.5 and 0.75: staying is still the least.
        assert_eq!(model.choose(&COSTS), 2);
        for _ in 0..4 {
            model.observe(1);
        }
        // Moving to edge 1 saves 0.97 - 0.16, less than the 1.0 it costs at this decay.
        assert_eq!(model.choose(&COSTS), 2);
    }

    #[test]
    fn a_constant_use_gets_a_constant_limit_just_above() {
        let mut ensemble = Ensemble::new(Resource::Cpu, &Setting::default());
        let mut limit = f64::INFINITY;
        for n in 0..600 {
            let t_s = 300.0 * f64::from(n);
            let used = Some(1.0_f64.min(limit));
            let censored = limit < 1.0;
            let seen = Seen { t_s, used, censored, in_force: limit, recorded_limit: None };
            limit = ensemble.decide(&seen).limit;
        }
        assert!((1.0..1.2).contains(&limit), "{limit}");
    }

    #[test]
    fn a_burst_that_returns_raises_the_limit_above_it() {
        let mut ensemble = Ensemble::new(Resource::Cpu, &Setting::default());
        let mut limit = f64::INFINITY;
        for n in 0..2000 {
            let wanted: f64 = if n % 5 == 0 { 2.0 } else { 1.0 };
            let t_s = 300.0 * f64::from(n);
            let used = Some(wanted.min(limit));
            let censored = wanted > limit;
            let seen = Seen { t_s, used, censored, in_force: limit, recorded_limit: None };
            limit = ensemble.decide(&seen).limit;
        }
        assert!(limit >= 2.0, "{limit}");
    }
}
