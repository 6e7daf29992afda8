//! Steps: means, gaps, drifting clocks, and nothing from the future.

use proptest::{collection::vec, option, proptest};

use super::{Step, StepCounts, Steps};

fn steps(step_s: f64, rows: &[(f64, Option<f64>)]) -> (Vec<Step>, StepCounts) {
    let mut all = Vec::new();
    let mut steps = Steps::new(step_s);
    for (t_s, value) in rows {
        steps.push(*t_s, *value, |step| all.push(step));
    }
    steps.finish(|step| all.push(step));
    (all, steps.counts())
}

fn step(t_s: f64, value: impl Into<Option<f32>>) -> Step {
    Step { t_s, value: value.into() }
}

#[test]
fn a_trace_of_the_same_step_keeps_its_times_and_values() {
    let rows = [(17.0, Some(1.0)), (317.0, None), (617.0, Some(3.0))];
    let (steps, counts) = steps(300.0, &rows);
    assert_eq!(steps, [step(17.0, 1.0), step(317.0, None), step(617.0, 3.0)]);
    assert_eq!(counts, StepCounts { rows: 3, steps: 3, ..StepCounts::default() });
}

#[test]
fn a_clock_that_drifts_leaves_no_hole_and_doubles_nothing() {
    let rows: Vec<_> = (0..2_000).map(|i| (f64::from(i) * 300.7, Some(f64::from(i)))).collect();
    let (steps, counts) = steps(300.0, &rows);
    assert_eq!((steps.len(), counts.gaps), (2_000, 0));
    assert!(steps.iter().zip(&rows).all(|(step, row)| (step.t_s - row.0).abs() < 1e-9));
    let jitter = [(0.0, Some(1.0)), (301.0, Some(2.0)), (600.0, Some(3.0)), (899.0, Some(4.0))];
    assert_eq!(self::steps(300.0, &jitter).0.len(), 4);
}

#[test]
fn dense_rows_are_averaged_up_to_the_time_of_the_step() {
    let rows: Vec<_> = (0..=6).map(|i| (f64::from(i) * 10.0, Some(f64::from(i)))).collect();
    let (steps, _counts) = steps(30.0, &rows);
    assert_eq!(steps, [step(0.0, 0.0), step(30.0, 2.0), step(60.0, 5.0)]);
}

#[test]
fn gaps_are_steps_without_a_value() {
    let (own, counts) = steps(10.0, &[(0.0, Some(1.0)), (31.0, Some(2.0))]);
    assert_eq!(own, [step(0.0, 1.0), step(10.0, None), step(20.0, None), step(31.0, 2.0)]);
    assert_eq!(counts.gaps, 2);
    // Dense rows: those of the gap are missing, the grid goes on.
    let (dense, _counts) = steps(
        10.0,
        &[
            (0.0, Some(1.0)),
            (4.0, Some(2.0)),
            (8.0, Some(4.0)),
            (29.0, Some(5.0)),
            (30.0, Some(7.0)),
        ],
    );
    let expected = [step(0.0, 1.0), step(10.0, 3.0), step(20.0, None), step(30.0, 6.0)];
    assert_eq!(dense, expected);
}

#[test]
fn a_jump_of_years_makes_no_billions_of_steps() {
    let (steps, counts) = steps(1.0, &[(0.0, Some(1.0)), (1.7e9, Some(2.0)), (1.7e9 + 1.0, None)]);
    assert_eq!(steps, [step(0.0, 1.0), step(1.7e9, 2.0), step(1.7e9 + 1.0, None)]);
    assert_eq!(counts.restarts, 1);
}

#[test]
fn rows_of_the_past_and_values_that_are_none_do_not_count() {
    let rows = [(5.0, Some(f64::NAN)), (4.0, Some(9.0)), (f64::NAN, Some(9.0)), (6.0, Some(2.0))];
    let (steps, counts) = steps(1.0, &rows);
    assert_eq!(steps, [step(5.0, None), step(6.0, 2.0)]);
    assert_eq!(counts.dropped, 2);
}

proptest! {
    #[test]
    fn steps_ascend_and_hold_nothing_later_than_their_time(
        rows in vec((0.01_f64..3_000.0, option::of(0.0_f64..1.0e9)), 1..200),
        step_s in 0.5_f64..400.0,
    ) {
        let mut t_s = 0.0;
        let rows: Vec<_> = rows.into_iter().map(|(gap, value)| { t_s += gap; (t_s, value) }).collect();
        let (all, counts) = steps(step_s, &rows);
        assert_eq!(counts.steps, all.len() as u64);
        assert!(all.windows(2).all(|pair| pair[0].t_s < pair[1].t_s));
        // Changing everything after a step's time leaves all steps up to it as they are.
        let origin_s = all[all.len() / 2].t_s;
        let changed: Vec<_> = rows
            .iter()
            .map(|(t_s, value)| if *t_s > origin_s { (*t_s, Some(-1.0)) } else { (*t_s, *value) })
            .collect();
        let (after, _counts) = steps(step_s, &changed);
        for (one, other) in all.iter().zip(&after).take_while(|(one, _other)| one.t_s <= origin_s) {
            assert_eq!(one, other);
        }
    }
}
