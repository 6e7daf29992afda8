//! Detection: a jump and a broken relation are seen, a daily job and noise are not.

use proptest::{collection::vec, option, prelude::any, proptest};

use super::{Detector, DetectorConfig, Verdict};

/// Noise in -1 to 1 that is the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

fn watch(step_s: f64, steps: &[Vec<Option<f32>>]) -> Vec<Verdict> {
    let columns = steps.first().map_or(0, Vec::len);
    let config = DetectorConfig { columns, step_s, false_alarms_per_day: 0.5 };
    let mut detector = Detector::new(&config, 7);
    let verdicts = steps.iter().enumerate();
    verdicts.map(|(at, values)| detector.push(at as f64 * step_s, values)).collect()
}

/// How often an anomaly begins.
fn alarms(verdicts: &[Verdict]) -> usize {
    verdicts.windows(2).filter(|pair| !pair[0].is_anomalous && pair[1].is_anomalous).count()
}

#[test]
fn a_jump_in_noise_is_an_anomaly_and_what_comes_after_is_not() {
    let mut noise = Noise(1);
    let mut steps: Vec<_> = (0..2_000).map(|_| vec![Some(10.0 + noise.next())]).collect();
    steps[1_500][0] = Some(40.0);
    let verdicts = watch(300.0, &steps);
    assert!(
        verdicts[1_500].is_anomalous && verdicts[1_500].score > 0.9999,
        "{:?}",
        verdicts[1_500]
    );
    assert!(!verdicts[1_499].is_anomalous && !verdicts[1_520].is_anomalous);
    // Half an alarm a day is the budget; a week of noise stays near it.
    assert!(alarms(&verdicts) <= 8, "{}", alarms(&verdicts));
}

#[test]
fn a_job_at_the_same_time_every_day_does_not_alarm_every_day() {
    let mut noise = Noise(2);
    let steps: Vec<_> = (0..288 * 14)
        .map(|at| {
            let is_job = (100..112).contains(&(at % 288));
            vec![Some(if is_job { 8.0 } else { 1.0 } + 0.1 * noise.next())]
        })
        .collect();
    let verdicts = watch(300.0, &steps);
    let late = &verdicts[288 * 4..];
    let days_with_alarm =
        late.chunks(288).filter(|day| day[95..120].iter().any(|v| v.is_anomalous));
    assert!(days_with_alarm.count() <= 1);
    // The same job at another time is one.
    let mut moved = steps;
    for step in &mut moved[288 * 13 + 200..288 * 13 + 206] {
        *step = vec![Some(8.0)];
    }
    let verdicts = watch(300.0, &moved);
    assert!(verdicts[288 * 13 + 200..288 * 13 + 206].iter().any(|v| v.is_anomalous));
}

#[test]
fn columns_that_part_are_seen_though_each_is_usual() {
    let mut noise = Noise(3);
    let steps: Vec<_> = (0..3_000)
        .map(|at| {
            let load = (f64::from(at) * 0.05).sin() as f32 * 5.0;
            let follows = if (2_500..2_510).contains(&at) { -load } else { load };
            vec![Some(load + 0.2 * noise.next()), Some(follows + 0.2 * noise.next())]
        })
        .collect();
    let verdicts = watch(300.0, &steps);
    let mean = |part: &[Verdict]| part.iter().map(|v| v.score).sum::<f64>() / part.len() as f64;
    let (broken, usual) = (mean(&verdicts[2_500..2_510]), mean(&verdicts[1_000..2_500]));
    assert!(broken > usual + 0.2, "{broken} {usual}");
}

proptest! {
    #[test]
    fn scores_are_between_zero_and_one_whatever_comes(
        steps in vec(vec(option::of(any::<f32>()), 2), 0..400),
    ) {
        for verdict in watch(60.0, &steps) {
            assert!((0.0..=1.0).contains(&verdict.score));
        }
    }
}
