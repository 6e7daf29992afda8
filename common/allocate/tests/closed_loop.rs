//! Forecasts and decisions in a closed loop with a simulated service: its load comes in pulses, it
//! gets no more CPU than its limit, and what it could not serve waits.

use headroom_allocate::{
    Above, Action, Controller, HostCapacity, Knob, KnobMemory, Limit, Mode, Objective,
    WorkloadFacts, WorkloadPolicy, decide,
};
use headroom_predict::{Predictor, PredictorConfig};
use headroom_telemetry::{Feature, Sample};

const IDLE_CORES: f64 = 0.1;
const PEAK_CORES: f64 = 0.7;
/// Share of the period after which the load begins to rise, and at which it has fallen again.
const RISE_SHARE: f64 = 0.6;
const FALL_SHARE: f64 = 0.93;
/// Steps without a change of limits.
const LEARN_STEPS: usize = 110;

/// What came of a run, once limits moved.
#[derive(Debug)]
struct Outcome {
    pulses: usize,
    /// Pulses whose peak the limit covered before the load began to rise.
    covered: usize,
    throttled_s: f64,
    mean_limit_cores: f64,
}

struct Service {
    period_s: f64,
    noise: u64,
    backlog_cores_s: f64,
}

impl Service {
    fn noise(&mut self) -> f64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        (self.noise >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    }

    /// Load offered on average over the second that ends at `t_s`.
    fn offered(&mut self, t_s: f64) -> f64 {
        let mean = (0..10).map(|i| {
            let into = ((t_s - 0.1 * f64::from(i)) / self.period_s).fract();
            if (RISE_SHARE..FALL_SHARE).contains(&into) { PEAK_CORES } else { IDLE_CORES }
        });
        let mean = mean.sum::<f64>() / 10.0;
        mean * (1.0 + 0.1 * self.noise())
    }

    /// The second that ends at `t_s` under `limit`.
    fn step(&mut self, t_s: f64, limit: Limit) -> Sample {
        let wanted = self.offered(t_s) + self.backlog_cores_s;
        let used = wanted.min(limit.amount());
        self.backlog_cores_s = wanted - used;
        let throttled = if wanted > used { 1.0 - used / wanted } else { 0.0 };
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, used);
        sample.set(Feature::CpuThrottledRatio, throttled);
        sample.set(Feature::CpuThrottledPeriods, if throttled > 0.0 { 10.0 } else { 0.0 });
        sample
    }
}

fn run(controller: Controller, period_s: f64, seed: u64, steps: usize) -> Outcome {
    let policy = WorkloadPolicy {
        mode: Mode::Reclaim,
        controller,
        objective: Objective::LatencyCritical,
        floor_cores: 0.15,
        ceiling_cores: Some(1.0),
        look_ahead_s: 3.0,
        dwell_s: 2.0,
        ..WorkloadPolicy::default()
    };
    let host = HostCapacity { cores: 2.0, memory_bytes: 8e9, memory_spare_bytes: 4e9 };
    let own = Limit::At(1.0);
    let mut service = Service { period_s, noise: seed * 77 + 1, backlog_cores_s: 0.0 };
    let mut predictor = Predictor::new(PredictorConfig::default(), 1.0);
    let (mut limit, mut memory) = (own, KnobMemory::default());
    let mut outcome = Outcome { pulses: 0, covered: 0, throttled_s: 0.0, mean_limit_cores: 0.0 };
    for step in 0..steps {
        let t_s = 1.7e9 + step as f64 + 0.03 * service.noise();
        let sample = service.step(t_s, limit);
        predictor.observe("/service", &sample);
        let forecasts = predictor.predict("/service").unwrap_or_default();
        if step < LEARN_STEPS {
            continue;
        }
        outcome.throttled_s +=
            f64::from(sample.get(Feature::CpuThrottledRatio).expect("set by the service"));
        outcome.mean_limit_cores += limit.amount() / (steps - LEARN_STEPS) as f64;
        let limits = [(Knob::CpuQuota, limit)];
        let facts = WorkloadFacts {
            path: "/service",
            sample: &sample,
            forecasts: &forecasts,
            limits: &limits,
            gpus: &[],
            above: &Above::UNLIMITED,
        };
        let decision = decide(&facts, Knob::CpuQuota, &policy, &host, &mut memory, t_s)
            .expect("the knob is listed and the policy is not off");
        match decision.action {
            Action::Set { limit: new, .. } => {
                limit = new;
                memory.leased(own, t_s);
            }
            Action::Release => {
                limit = own;
                memory.released();
            }
            _ => {}
        }
        let into = |t_s: f64| (t_s / period_s).fract();
        if into(t_s) < RISE_SHARE && into(t_s + 1.0) >= RISE_SHARE && step > LEARN_STEPS + 15 {
            outcome.pulses += 1;
            outcome.covered += usize::from(limit.amount() >= PEAK_CORES);
        }
    }
    outcome
}

#[test]
fn limits_rise_before_a_periodic_load_does() {
    for (seed, period_s) in [15.0, 17.3, 20.0].into_iter().enumerate() {
        let seed = seed as u64 + 1;
        let ours = run(Controller::Predictive, period_s, seed, 400);
        let theirs = run(Controller::Reactive, period_s, seed, 400);
        println!("period {period_s} s: predictive {ours:?}, reactive {theirs:?}");
        assert!(ours.covered * 10 >= ours.pulses * 8, "period {period_s} s: {ours:?}");
        assert!(ours.throttled_s < 0.5 * theirs.throttled_s, "{ours:?} against {theirs:?}");
        assert!(ours.mean_limit_cores < 0.85, "period {period_s} s: {ours:?}");
    }
}
