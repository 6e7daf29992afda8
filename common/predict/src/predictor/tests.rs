//! The predictor over synthetic workloads, with real (small) models.

use std::sync::Arc;

use headroom_telemetry::{Feature, Resource, Sample};

use super::{Predictor, PredictorConfig};
use crate::{
    Bundle, SequenceModel, Source,
    bundle::{Evaluation, Manifest},
    models::{Linear, key_pair, manifest, public_key},
};

/// Repeatable noise (xorshift).
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in 0..1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn model(linear: &Linear, version: u64, evaluation: Evaluation) -> Arc<SequenceModel> {
    let manifest = Manifest { evaluation, ..manifest(version) };
    let bundle = Bundle::sign(manifest, linear.onnx(), &linear.golden(), &key_pair(1)).unwrap();
    Arc::new(SequenceModel::load(&bundle, &public_key(1)).unwrap())
}

fn sample(t_s: f64, cores: f64) -> Sample {
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, cores);
    sample.set(Feature::MemoryBytes, 1.0e8);
    sample
}

/// A series that the last value tells well and no smoothing does: it stays, then jumps.
fn steps(noise: &mut Noise, i: usize, level: &mut f64) -> f64 {
    if i.is_multiple_of(9) {
        *level = 1.0 + 3.0 * noise.uniform();
    }
    *level
}

#[test]
fn only_measured_resources_are_forecast() {
    let mut predictor = Predictor::new(PredictorConfig::default(), 1.0);
    assert!(predictor.predict("/a").is_none());
    for i in 0..10 {
        predictor.observe("/a", &sample(f64::from(i), 1.0));
    }
    let forecasts = predictor.predict("/a").unwrap();
    let resources: Vec<Resource> = forecasts.iter().map(|forecast| forecast.resource).collect();
    assert_eq!(resources, [Resource::Cpu, Resource::Memory]);
    assert_eq!(forecasts[0].source, Source::Base);
    assert!((forecasts[0].origin_t_s - 9.0).abs() < 1e-9);
    assert_eq!(predictor.predict("/a").unwrap(), forecasts, "the same until the next sample");
}

#[test]
fn a_model_answers_once_it_has_proved_itself_and_not_before() {
    let mut predictor = Predictor::new(PredictorConfig::default(), 1.0);
    let (mut noise, mut level) = (Noise::new(12), 1.0);
    for i in 0..40 {
        predictor.observe("/a", &sample(i as f64, steps(&mut noise, i, &mut level)));
        predictor.predict("/a");
    }
    // An oracle for memory only: the base layer is right about it too, CPU is what differs.
    let mut wrong = Linear::persistence(0.05);
    wrong.bias.iter_mut().for_each(|bias| *bias += 2.0);
    predictor.swap_model(Some(model(&wrong, 1, Evaluation::default()))).unwrap();
    for i in 40..200 {
        predictor.observe("/a", &sample(i as f64, steps(&mut noise, i, &mut level)));
        let forecasts = predictor.predict("/a").unwrap();
        if i < 50 {
            assert_eq!(forecasts[0].source, Source::Base, "in the shadow at step {i}");
        }
    }
    let score = &predictor.score("/a").unwrap()[0];
    assert!(score.model.as_ref().unwrap().outcomes > 100);
    predictor.swap_model(None).unwrap();
    assert_eq!(predictor.predict("/a").unwrap()[0].source, Source::Base);
    assert!(predictor.score("/a").unwrap()[0].model.is_none());
}

/// Memory announces CPU one step ahead: the base layer cannot know, a linear model can.
fn announced(predictor: &mut Predictor, noise: &mut Noise, from: usize, to: usize) -> usize {
    let mut next = 1.0;
    let mut n_model = 0;
    for i in from..to {
        let cores = next;
        next = 1.0 + f64::from(u8::from(noise.uniform() < 0.5));
        let mut sample = sample(i as f64, cores);
        sample.set(Feature::PsiCpuSome, next / 2.0);
        predictor.observe("/a", &sample);
        let forecasts = predictor.predict("/a");
        n_model += usize::from(
            forecasts.is_some_and(|forecasts| matches!(forecasts[0].source, Source::Model(_))),
        );
    }
    n_model
}

fn announced_model(version: u64, evaluation: Evaluation) -> Arc<SequenceModel> {
    let mut linear = Linear::persistence(0.0);
    let row = linear.weights.len() / linear.n_outputs - Feature::COUNT;
    // At one step ahead the announcement is right; further on the middle is the best guess.
    for (output, bias) in linear.bias.iter_mut().enumerate().take(30) {
        linear.weights[(row + Feature::CpuCores.index()) * linear.n_outputs + output] = 0.0;
        if output < 5 {
            let announced = (row + Feature::PsiCpuSome.index()) * linear.n_outputs + output;
            linear.weights[announced] = 1.0;
        } else {
            *bias = [0.5, 0.75, 1.0, 1.0, 1.0][output % 5];
        }
    }
    model(&linear, version, evaluation)
}

#[test]
fn a_better_model_takes_over_and_its_successor_inherits() {
    let mut predictor = Predictor::new(PredictorConfig::default(), 1.0);
    let mut noise = Noise::new(13);
    predictor.swap_model(Some(announced_model(1, Evaluation::default()))).unwrap();
    announced(&mut predictor, &mut noise, 0, 150);
    assert_eq!(predictor.predict("/a").unwrap()[0].source, Source::Model(1));

    let better = Evaluation { pinball: 0.1, pinball_incumbent: Some(0.2), ..Evaluation::default() };
    predictor.swap_model(Some(announced_model(2, better))).unwrap();
    assert_eq!(announced(&mut predictor, &mut noise, 150, 170), 20, "no gap");
    assert_eq!(predictor.predict("/a").unwrap()[0].source, Source::Model(2));

    let worse = Evaluation { pinball: 0.3, pinball_incumbent: Some(0.2), ..Evaluation::default() };
    predictor.swap_model(Some(announced_model(3, worse))).unwrap();
    assert_eq!(announced(&mut predictor, &mut noise, 170, 175), 0, "in the shadow");
    assert!(predictor.score("/a").unwrap()[0].base.pinball.is_some());
}

#[test]
fn a_model_for_another_step_is_refused_and_the_old_one_stays() {
    let mut predictor = Predictor::new(PredictorConfig::default(), 5.0);
    let verdict =
        predictor.swap_model(Some(model(&Linear::persistence(0.1), 1, Evaluation::default())));
    assert!(verdict.unwrap_err().to_string().contains("step of 1 s expected 5 s"));
    assert!(predictor.model().is_none());
}

#[test]
fn memory_is_bounded_and_bad_samples_are_counted() {
    let mut predictor = Predictor::new(PredictorConfig { workloads_max: 3 }, 1.0);
    for i in 0..10 {
        predictor.observe(&format!("/{i}"), &sample(f64::from(i), 1.0));
    }
    predictor.observe("/9", &sample(3.0, 1.0));
    assert_eq!(predictor.len(), 3);
    assert_eq!(predictor.counts().workloads_evicted, 7);
    assert_eq!(predictor.counts().samples_refused, 1);
    assert!(predictor.score("/0").is_none() && predictor.score("/9").is_some());
    predictor.forget("/9");
    assert_eq!(predictor.len(), 2);
}
