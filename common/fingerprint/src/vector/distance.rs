//! How far two vectors are apart: cell by cell (a group and an aspect of it), each cell weighed as
//! a whole, and only over components that both vectors have.

use std::sync::LazyLock;

use super::{
    Vector,
    group::{Aspect, Group},
    layout::LAYOUT,
};

/// Share of the weight that must be comparable before a distance says anything.
pub const COMPARABLE_MIN: f64 = 0.25;

/// One group and aspect in a distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// What is compared.
    pub group: Group,
    /// What of it.
    pub aspect: Aspect,
    /// Its part in the whole, relative to the other cells'.
    pub weight: f64,
    /// The difference that counts as entirely different: root mean square of the components'
    /// differences, or the Hellinger distance for [`Aspect::Share`].
    pub one: f64,
}

/// How far two vectors are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    /// Zero (alike) to one (different in everything that could be compared).
    pub distance: f64,
    /// Share of the weight that both vectors have components for, above zero and at most one.
    pub comparable: f64,
}

/// A cell of two vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Which.
    pub cell: Cell,
    /// Zero to one.
    pub distance: f64,
    /// Share of the cell's components that both vectors have, above zero.
    pub comparable: f64,
}

/// A choice and weighing of cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    cells: Vec<Cell>,
}

const fn cell(group: Group, aspect: Aspect, weight: f64, one: f64) -> Cell {
    Cell { group, aspect, weight, one }
}

/// What stays the same at any load tells what the program is.
const PROGRAM: &[Cell] = &[
    cell(Group::Syscalls, Aspect::Share, 3.0, 0.5),
    cell(Group::OrderSketch, Aspect::Share, 3.0, 0.5),
    // A clock takes few samples, so that two runs of one program differ by half of what is possible.
    cell(Group::CodeSketch, Aspect::Share, 0.75, 1.0),
    cell(Group::Syscalls, Aspect::Ratio, 2.0, 0.3),
    cell(Group::Cpu, Aspect::Ratio, 2.0, 0.3),
    cell(Group::Memory, Aspect::Ratio, 2.0, 0.3),
    cell(Group::Processes, Aspect::Ratio, 1.5, 0.3),
    cell(Group::Cache, Aspect::Ratio, 1.5, 0.3),
    cell(Group::Disk, Aspect::Ratio, 1.0, 0.3),
    cell(Group::Network, Aspect::Ratio, 1.5, 0.3),
    cell(Group::Gpu, Aspect::Ratio, 1.0, 0.3),
    cell(Group::Cpu, Aspect::Rhythm, 0.3, 0.7),
    cell(Group::Memory, Aspect::Rhythm, 0.2, 0.7),
    cell(Group::Disk, Aspect::Rhythm, 0.2, 0.7),
    cell(Group::Network, Aspect::Rhythm, 0.2, 0.7),
];

/// How much is used, and how that moves.
const DEMAND: &[Cell] = &[
    cell(Group::Cpu, Aspect::Level, 3.0, 0.5),
    cell(Group::Memory, Aspect::Level, 3.0, 0.5),
    cell(Group::Disk, Aspect::Level, 2.0, 0.5),
    cell(Group::Network, Aspect::Level, 2.0, 0.5),
    cell(Group::Gpu, Aspect::Level, 2.0, 0.5),
    cell(Group::Cache, Aspect::Level, 1.0, 0.5),
    cell(Group::Syscalls, Aspect::Level, 0.5, 0.5),
    cell(Group::Processes, Aspect::Level, 0.5, 0.5),
    cell(Group::Cpu, Aspect::Spread, 1.0, 0.3),
    cell(Group::Memory, Aspect::Spread, 1.0, 0.3),
    cell(Group::Disk, Aspect::Spread, 0.5, 0.3),
    cell(Group::Network, Aspect::Spread, 0.5, 0.3),
    cell(Group::Cpu, Aspect::Trend, 0.5, 0.3),
    cell(Group::Memory, Aspect::Trend, 1.0, 0.3),
    cell(Group::Cpu, Aspect::Rhythm, 1.0, 0.7),
    cell(Group::Disk, Aspect::Rhythm, 0.3, 0.7),
    cell(Group::Network, Aspect::Rhythm, 0.3, 0.7),
];

impl Distance {
    /// Whether two workloads run the same program, whatever their load. Only shares, ratios and,
    /// a little, rhythm.
    pub fn program() -> Self {
        Self { cells: PROGRAM.to_vec() }
    }

    /// Whether two workloads need alike amounts in alike ways, whatever they run. Only levels,
    /// spreads, trends and rhythm.
    pub fn demand() -> Self {
        Self { cells: DEMAND.to_vec() }
    }

    /// The cells of one group only; nothing is comparable when there is none.
    #[must_use]
    pub fn only(mut self, group: Group) -> Self {
        self.cells.retain(|cell| cell.group == group);
        self
    }

    /// All but the cells of one group.
    #[must_use]
    pub fn without(mut self, group: Group) -> Self {
        self.cells.retain(|cell| cell.group != group);
        self
    }

    /// With the cells of one group weighed `times` as much, and `one` as the difference in them that
    /// counts as entirely different. At zero times they do not count; what is negative or not finite
    /// counts as zero, and a `one` that is not above zero leaves it as it is.
    #[must_use]
    pub fn weighed(mut self, group: Group, times: f64, one: f64) -> Self {
        let times = if times.is_finite() { times.max(0.0) } else { 0.0 };
        for cell in self.cells.iter_mut().filter(|cell| cell.group == group) {
            cell.weight *= times;
            cell.one = if one > 0.0 { one } else { cell.one };
        }
        self
    }

    /// The cells, with their weights.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// How far `a` and `b` are apart: the root of the weighed mean square of the cells' distances,
    /// a cell counting by its weight and the share of it that both have. The same either way round.
    /// `None` when nothing can be compared.
    pub fn between(&self, a: &Vector, b: &Vector) -> Option<Similarity> {
        let whole: f64 = self.cells.iter().map(|cell| cell.weight).sum();
        let (mut weight, mut sum) = (0.0, 0.0);
        for part in self.parts(a, b) {
            let counts = part.cell.weight * part.comparable;
            weight += counts;
            sum += counts * part.distance * part.distance;
        }
        (weight > 0.0).then(|| Similarity {
            distance: (sum / weight).sqrt().min(1.0),
            comparable: (weight / whole).min(1.0),
        })
    }

    /// The cells that can be compared, one by one.
    pub fn parts(&self, a: &Vector, b: &Vector) -> Vec<Part> {
        self.cells.iter().filter_map(|cell| compare(*cell, a, b)).collect()
    }
}

fn compare(cell: Cell, a: &Vector, b: &Vector) -> Option<Part> {
    let positions = &POSITIONS[cell.group as usize][cell.aspect as usize];
    let (mut n, mut squares) = (0_u32, 0.0);
    for position in positions {
        if let (Some(a), Some(b)) = (a.get(*position), b.get(*position)) {
            squares += f64::from(a - b).powi(2);
            n += 1;
        }
    }
    if n == 0 {
        return None;
    }
    let difference = match cell.aspect {
        Aspect::Share => (squares / 2.0).sqrt(),
        _ => (squares / f64::from(n)).sqrt(),
    };
    Some(Part {
        cell,
        distance: (difference / cell.one).min(1.0),
        comparable: f64::from(n) / positions.len() as f64,
    })
}

/// Positions in the layout by group and aspect.
static POSITIONS: LazyLock<[[Vec<usize>; Aspect::ALL.len()]; Group::ALL.len()]> =
    LazyLock::new(|| {
        let mut positions: [[Vec<usize>; Aspect::ALL.len()]; Group::ALL.len()] = Default::default();
        for (position, component) in LAYOUT.iter().enumerate() {
            let (group, aspect) = (component.group() as usize, component.aspect() as usize);
            positions[group][aspect].push(position);
        }
        positions
    });

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, SKETCH_BINS, Sample, SketchCounts, Sketches};
    use proptest::{collection::vec, prelude::proptest};

    use super::{DEMAND, Distance, POSITIONS, PROGRAM};
    use crate::{SketchAccumulator, Vector, Window, vector::Group};

    /// A made-up program at some load: which system calls it makes and where its code is.
    fn run(program: usize, load: f64, sketched: bool) -> Vector {
        let mut window = Window::new(1.0);
        let mut sketches = SketchAccumulator::new();
        for i in 0..40 {
            let t_s = f64::from(i);
            let mut sample = Sample::empty(t_s);
            let wave = load * (1.0 + 0.3 * (t_s / 7.0).sin());
            sample.set(Feature::CpuCores, 0.2 * wave);
            sample.set(Feature::CpuSystemCores, 0.02 * (program + 1) as f64 * wave);
            for (k, class) in Feature::SYSCALLS.into_iter().enumerate() {
                let rate = if k % 3 == program % 3 { 200.0 } else { 3.0 };
                sample.set(class, rate * wave);
            }
            window.push(&sample).unwrap();
            if sketched {
                let mut counts = vec![0; SKETCH_BINS];
                counts[program * 7 % SKETCH_BINS] = 400;
                counts[program * 11 % SKETCH_BINS] = 300;
                let counts = SketchCounts::new(counts);
                sketches.add(t_s, &Sketches { order: counts.clone(), code: counts });
            }
        }
        Vector::of(&window, &sketches)
    }

    #[test]
    fn every_cell_has_components_and_stands_once() {
        for cells in [PROGRAM, DEMAND] {
            for (i, cell) in cells.iter().enumerate() {
                assert!(
                    !POSITIONS[cell.group as usize][cell.aspect as usize].is_empty(),
                    "{cell:?}"
                );
                let again =
                    |other: &&super::Cell| other.group == cell.group && other.aspect == cell.aspect;
                assert_eq!(cells.iter().filter(again).count(), 1, "{i}: {cell:?}");
                assert!(cell.weight > 0.0 && cell.one > 0.0);
            }
        }
    }

    #[test]
    fn a_program_is_known_again_at_another_load_and_its_demand_is_not() {
        let (a, b, other) = (run(0, 1.0, true), run(0, 20.0, true), run(1, 1.0, true));
        let program = Distance::program();
        let same = program.between(&a, &b).unwrap();
        let apart = program.between(&a, &other).unwrap();
        assert!(same.distance < 0.1 && apart.distance > 0.5, "{same:?} {apart:?}");
        let demand = Distance::demand();
        let more = demand.between(&a, &b).unwrap().distance;
        assert!(more > 1.2 * demand.between(&a, &other).unwrap().distance);
    }

    #[test]
    fn a_group_weighed_by_zero_is_left_out_and_by_one_as_it_is() {
        let (a, b) = (run(0, 1.0, true), run(1, 1.0, true));
        let of = |distance: Distance| distance.between(&a, &b).unwrap().distance;
        let program = Distance::program();
        let without = of(program.clone().without(Group::OrderSketch));
        for times in [0.0, f64::NAN, -1.0] {
            let weighed = program.clone().weighed(Group::OrderSketch, times, 0.0);
            assert!((of(weighed) - without).abs() < 1e-12, "{times}");
        }
        let as_it_is = program.clone().weighed(Group::OrderSketch, 1.0, 0.5);
        assert!((of(as_it_is) - of(program)).abs() < 1e-12);
    }

    #[test]
    fn only_what_both_have_is_compared_and_the_rest_is_told() {
        let (with, without) = (run(0, 1.0, true), run(0, 1.0, false));
        let program = Distance::program();
        let full = program.between(&with, &with).unwrap();
        let part = program.between(&with, &without).unwrap();
        assert!(part.distance.abs() < 1e-6 && part.comparable < full.comparable - 0.15);
        assert_eq!(program.clone().only(Group::OrderSketch).between(&with, &without), None);
        let empty = Vector::of(&Window::new(1.0), &SketchAccumulator::new());
        assert_eq!(program.between(&with, &empty), None);
    }

    #[test]
    fn a_group_of_many_components_does_not_drown_the_others() {
        // Only the cells of one of 64 components differ, or only one ratio does: the same weight.
        let (a, b) = (run(0, 1.0, true), run(3, 1.0, true));
        let parts = Distance::program().parts(&a, &b);
        let share = |group| parts.iter().find(|part| part.cell.group == group).unwrap().cell.weight;
        assert!((share(Group::OrderSketch) - share(Group::Syscalls)).abs() < 1e-12);
        let whole: f64 = Distance::program().cells().iter().map(|cell| cell.weight).sum();
        assert!(share(Group::OrderSketch) / whole < 0.2);
    }

    proptest! {
        #[test]
        fn it_is_the_same_either_way_and_zero_to_itself(
            loads in vec(0.1_f64..50.0, 2), programs in vec(0_usize..9, 2), sketched: bool,
        ) {
            let a = run(programs[0], loads[0], sketched);
            let b = run(programs[1], loads[1], true);
            for distance in [Distance::program(), Distance::demand()] {
                let there = distance.between(&a, &b).unwrap();
                assert_eq!(distance.between(&b, &a), Some(there));
                assert!((0.0..=1.0).contains(&there.distance) && there.comparable <= 1.0);
                assert!(distance.between(&a, &a).unwrap().distance.abs() < 1e-9);
            }
        }
    }
}
