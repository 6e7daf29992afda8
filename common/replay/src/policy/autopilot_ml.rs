//! Autopilot's ensemble of arg-min models (Rzadca et al., EuroSys 2020, equations 4 to 9).
//!
//! Every arm has a decay and a margin. It keeps, for each candidate limit, how much of the use was
//! above and how much below, and takes the limit of least cost; the ensemble takes the arm of
//! least cost so far. The cost of every arm is known from use alone, so nothing is explored.
//!
//! The paper tunes five scalars per fleet and does not print them; `costs` has the ones used here.
//! Arms are decays of 1/12, 1/72, 1/288 and 1/1440 per five minutes with margins of 0, 5, 15 and
//! 30 %, chosen by hand. Candidates are bucket edges 10 % apart. A step has one sample, so its
//! histogram is one bucket. Where bursts take less than about one part in `over` of the time, being
//! above the limit then costs less than a higher limit always: the cheapest limit is below them.

use headroom_telemetry::Resource;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::histogram::Buckets;

const DECAYS: [f64; 4] = [1.0 / 12.0, 1.0 / 72.0, 1.0 / 288.0, 1.0 / 1440.0];
const MARGINS: [f64; 4] = [0.0, 0.05, 0.15, 0.3];
const ARMS: usize = DECAYS.len() * MARGINS.len();
/// Weight of the newest sample at which all weights are made small again.
const NEWEST_MAX: f64 = 1e60;
/// Share of the weight below which a bucket at either end counts as empty.
const EMPTY: f64 = 1e-12;

/// The five tuned scalars.
#[derive(Clone, Copy, Debug)]
struct Costs {
    decay: f64,
    over: f64,
    under: f64,
    limit_changed: f64,
    arm_changed: f64,
}

/// Chosen by random search on the tuning half of a trace of virtual machines: for CPU the set with
/// the mean slack that the paper tells of its fleet (23 %) and the least use unmet, for memory the
/// one with the fewest kills that does not change limits more often than once in two days.
fn costs(resource: Resource) -> Costs {
    if resource == Resource::Memory {
        Costs { decay: 0.1, over: 20.0, under: 1.0, limit_changed: 2.0, arm_changed: 0.02 }
    } else {
        Costs { decay: 0.03, over: 15.0, under: 1.0, limit_changed: 0.03, arm_changed: 0.02 }
    }
}

/// Weights of use per bucket at one decay, from which the costs of every candidate follow.
///
/// Instead of all weights decaying, the newest grows; the costs of a candidate are sums over the
/// buckets above and below it, so no candidate is touched until one is chosen.
struct Model {
    decay: f64,
    weights: Vec<f64>,
    /// Weight of the newest sample, and of all.
    newest: f64,
    total: f64,
    /// Buckets that are not empty are within.
    lowest: usize,
    highest: usize,
    chosen: Option<usize>,
}

impl Model {
    fn new(decay: f64, count: usize) -> Self {
        let weights = vec![0.0; count];
        Self {
            decay,
            weights,
            newest: 1.0,
            total: 0.0,
            lowest: count - 1,
            highest: 0,
            chosen: None,
        }
    }

    /// Adds a use that fell into `bucket`: above all candidates up to its lower edge, below those
    /// beyond its upper edge.
    fn observe(&mut self, bucket: usize) {
        self.newest /= 1.0 - self.decay;
        let weight = self.newest * self.decay;
        self.weights[bucket] += weight;
        self.total += weight;
        self.lowest = self.lowest.min(bucket);
        self.highest = self.highest.max(bucket);
        if self.newest > NEWEST_MAX {
            let scale = self.newest.recip();
            self.weights.iter_mut().for_each(|weight| *weight *= scale);
            self.total = self.weights.iter().sum();
            self.newest = 1.0;
        }
        let empty = EMPTY * self.newest;
        while self.lowest < self.highest && self.weights[self.lowest] < empty {
            self.lowest += 1;
        }
        while self.highest > self.lowest && self.weights[self.highest] < empty {
            self.highest -= 1;
        }
    }

    /// The candidate of least cost; moving away from the last one costs. Candidate `edge` is the
    /// upper edge of bucket `edge`; one whose bucket is empty is never the cheapest.
    fn choose(&mut self, costs: &Costs) -> usize {
        let mut best = (f64::INFINITY, self.highest);
        let mut stays = f64::INFINITY;
        let mut below: f64 = self.weights[..self.lowest].iter().sum();
        if let Some(last) = self.chosen.filter(|last| *last < self.lowest || *last > self.highest) {
            let over = if last < self.lowest { self.total } else { 0.0 };
            stays = costs.over * over + costs.under * (self.total - over);
        }
        for edge in self.lowest..=self.highest {
            let weight = self.weights[edge];
            let above = self.total - below - weight;
            let cost = costs.over * above + costs.under * below;
            below += weight;
            if cost < best.0 {
                best = (cost, edge);
            }
            if self.chosen == Some(edge) {
                stays = cost;
            }
        }
        let moving = costs.limit_changed * self.newest;
        let edge = match self.chosen {
            Some(last) if stays <= best.0 + moving => last,
            _ => best.1,
        };
        self.chosen = Some(edge);
        edge
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
        let costs = costs(resource);
        Self {
            buckets,
            models: DECAYS.into_iter().map(|decay| Model::new(decay, count)).collect(),
            costs: Costs { over: setting.knob.unwrap_or(costs.over), ..costs },
            arm_costs: [0.0; ARMS],
            arm_limits: [f64::INFINITY; ARMS],
            chosen: None,
            floor: scale.floor,
        }
    }

    /// Moves every arm on and returns the cheapest, with the cost of leaving the one in use.
    fn step(&mut self, used: f64, in_force: f64) -> usize {
        let bucket = self.buckets.find(used);
        let bucket_end = self.buckets.start(bucket + 1);
        let costs = self.costs;
        let mut cheapest = (f64::INFINITY, 0);
        for (m, model) in self.models.iter_mut().enumerate() {
            model.observe(bucket);
            let edge = self.buckets.start(model.choose(&costs) + 1);
            for (k, margin) in MARGINS.into_iter().enumerate() {
                let arm = m * MARGINS.len() + k;
                let limit = (edge * (1.0 + margin)).max(self.floor);
                let moved = f64::from(u8::from(differ(limit, self.arm_limits[arm])));
                // Over when the use's bucket ends above the limit, under when it ends below.
                let cost = costs.over * f64::from(u8::from(bucket_end > limit * (1.0 + 1e-9)))
                    + costs.under * f64::from(u8::from(bucket_end < limit * (1.0 - 1e-9)))
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

    use super::{Costs, Ensemble, Model, Policy as _, Seen, Setting};

    const COSTS: Costs =
        Costs { decay: 0.01, over: 10.0, under: 1.0, limit_changed: 2.0, arm_changed: 0.5 };

    #[test]
    fn weights_decay_as_in_equations_4_and_5() {
        let mut model = Model::new(0.5, 4);
        model.observe(2);
        model.observe(0);
        model.observe(0);
        let shares: Vec<f64> = model.weights.iter().map(|weight| weight / model.newest).collect();
        // 0.5 of the newest, half of that before it, a quarter before that.
        assert_eq!(shares, [0.75, 0.0, 0.125, 0.0]);
    }

    #[test]
    fn the_limit_of_least_cost_is_taken() {
        let mut model = Model::new(0.5, 4);
        model.observe(2);
        // No use is above or below the upper edge of bucket 2.
        assert_eq!(model.choose(&Costs { limit_changed: 0.1, ..COSTS }), 2);
        for _ in 0..4 {
            model.observe(1);
        }
        // 0.9375 at bucket 1 and 0.03125 at bucket 2: 10 * 0.03 against 0.94 below.
        assert_eq!(model.choose(&Costs { limit_changed: 0.1, ..COSTS }), 1);
    }

    #[test]
    fn the_limit_is_kept_while_moving_costs_more_than_it_saves() {
        let mut model = Model::new(0.5, 4);
        model.observe(2);
        assert_eq!(model.choose(&COSTS), 2);
        for _ in 0..40 {
            model.observe(1);
            // Moving saves less than 1, the cost of being under, and costs 2.
            assert_eq!(model.choose(&COSTS), 2);
        }
        model.observe(3);
        model.observe(3);
        // Now the old limit has 0.75 of the use above it, at 10 each.
        assert_eq!(model.choose(&COSTS), 3);
    }

    #[test]
    fn a_long_run_stays_finite_and_forgets() {
        let mut model = Model::new(1.0 / 12.0, 4);
        model.observe(3);
        for _ in 0..20_000 {
            model.observe(1);
        }
        assert!(model.newest.is_finite() && model.total.is_finite());
        assert_eq!((model.lowest, model.highest), (1, 1));
        assert_eq!(model.choose(&COSTS), 1);
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
