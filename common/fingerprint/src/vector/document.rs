//! The feature schema and the layout of the vector as text for people; `docs/FINGERPRINT.md` is
//! made from it and checked against it.

use std::fmt::Write as _;

use headroom_telemetry::{
    Feature, SKETCH_BINS,
    schema::{SCHEMA_VERSION, Scaling, SchemaHash},
};

use super::{
    Aspect, Distance, Group, LAYOUT, VECTOR_VERSION, VectorHash,
    distance::COMPARABLE_MIN,
    group,
    layout::{Component, DIMENSION, Rhythm, STARTS},
    ratio::{RATIOS, SYSCALLS_MIN},
    scale::{self, COMPONENT_MAX},
};
use crate::{
    WINDOW,
    sketches::{SKETCH_EVENTS_MIN, SKETCH_HALF_LIFE_S},
    summary::SPAN_STEPS,
};

/// The whole document, Markdown.
pub fn document() -> String {
    let mut text = String::new();
    let written = write_all(&mut text);
    debug_assert!(written.is_ok(), "a String takes everything");
    text
}

fn write_all(out: &mut String) -> std::fmt::Result {
    writeln!(out, "# The fingerprint\n")?;
    writeln!(
        out,
        "Made by `cargo xtask schema` from the code; a test fails when it is not up to date.\n"
    )?;
    features(out)?;
    vector(out)?;
    spans(out)?;
    rhythms(out)?;
    ratios(out)?;
    distributions(out)?;
    distances(out)
}

fn features(out: &mut String) -> std::fmt::Result {
    let (n, hash) = (Feature::COUNT, SchemaHash::current());
    writeln!(out, "## Features\n")?;
    writeln!(
        out,
        "Schema {SCHEMA_VERSION}, hash `{hash}`, {n} features, one value each per workload and period. What is"
    )?;
    writeln!(
        out,
        "not measured is missing, never zero. Order, names, units and scaling make the hash; agents, models"
    )?;
    writeln!(
        out,
        "and stored history of another hash do not mix. Column `model` is how a model sees the value: `level`"
    )?;
    writeln!(
        out,
        "relative to the workload's own recent use, `log R` as ln(1+x)/ln(1+R), `unit` as it is.\n"
    )?;
    writeln!(
        out,
        "| # | name | unit | group | what | model | vector r, R |\n|---|---|---|---|---|---|---|"
    )?;
    for feature in Feature::ALL {
        let scaling = match feature.scaling() {
            Scaling::Level => "level".to_owned(),
            Scaling::Log { reference } => format!("log {reference:e}"),
            Scaling::Unit => "unit".to_owned(),
        };
        let (index, name, unit) = (feature.index(), feature.name(), feature.unit());
        let group = group::of_feature(*feature).name();
        let what = feature.description();
        let scale = scale::of_feature(*feature);
        let (resolution, reference) = (scale.resolution, scale.reference);
        writeln!(
            out,
            "| {index} | `{name}` | {unit} | {group} | {what} | {scaling} | {resolution:e}, {reference:e} |"
        )?;
    }
    Ok(())
}

fn vector(out: &mut String) -> std::fmt::Result {
    let hash = VectorHash::current();
    writeln!(out, "\n## The vector\n")?;
    writeln!(
        out,
        "Layout {VECTOR_VERSION}, hash `{hash}`, {DIMENSION} components: a window of at most {WINDOW} samples and the sketches"
    )?;
    writeln!(
        out,
        "of the last minutes as one point. Every component is within ±{COMPONENT_MAX} or missing, and means the same"
    )?;
    writeln!(out, "for every workload and host.\n")?;
    writeln!(out, "| components | what | aspects |\n|---|---|---|")?;
    let rows = [
        ("features over spans", "level, spread, trend"),
        ("rhythm of resources", "rhythm"),
        ("ratios", "ratio"),
        ("mix of system calls", "share"),
        ("order sketch", "share"),
        ("code sketch", "share"),
    ];
    for (part, (what, aspects)) in rows.iter().enumerate() {
        writeln!(out, "| {} to {} | {what} | {aspects} |", STARTS[part], STARTS[part + 1] - 1)?;
    }
    writeln!(out, "\nComponents by group and aspect:\n")?;
    write!(out, "| group |")?;
    Aspect::ALL.iter().try_for_each(|aspect| write!(out, " {} |", aspect.name()))?;
    writeln!(out, "\n|---|{}", "---|".repeat(Aspect::ALL.len()))?;
    for group in Group::ALL {
        write!(out, "| {} |", group.name())?;
        for aspect in Aspect::ALL {
            let here =
                |component: &&Component| component.group() == group && component.aspect() == aspect;
            write!(out, " {} |", LAYOUT.iter().filter(here).count())?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn spans(out: &mut String) -> std::fmt::Result {
    let [short, middle, long] = SPAN_STEPS;
    let [per_feature, per_statistic] = [9, 3];
    writeln!(out, "\n### Features over spans\n")?;
    writeln!(
        out,
        "Each feature over its last {short}, {middle} and {long} steps, in that order within each of: `level`, the median;"
    )?;
    writeln!(
        out,
        "`spread`, the interquartile range; `trend`, the median of the newest third less that of the oldest."
    )?;
    writeln!(
        out,
        "They are taken of scaled values, ln(1+x/r)/ln(1+R/r) with r and R of the table of features, so that"
    )?;
    writeln!(
        out,
        "spread and trend are relative. Fewer than four values known: missing. Component of feature f, statistic s"
    )?;
    writeln!(
        out,
        "and span k: {per_feature}f + {per_statistic}s + k; its name is `FEATURE.STATISTIC_STEPS`, as in `{}`.",
        LAYOUT[0].name()
    )
}

fn rhythms(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n### Rhythm of resources\n")?;
    writeln!(
        out,
        "Of the use of CPU, memory, disk and network over the whole window; the same at any height of use. Missing"
    )?;
    writeln!(out, "below twelve values or when nothing is used.\n")?;
    writeln!(out, "| measure | what |\n|---|---|")?;
    for (i, measure) in Rhythm::ALL.into_iter().enumerate() {
        let what = match measure {
            Rhythm::Burstiness => "(σ-μ)/(σ+μ), -1 steady to 1 in bursts (Goh and Barabási 2008)",
            Rhythm::Entropy => {
                "Shannon entropy of the values in eight equal bins, relative to the highest"
            }
            Rhythm::LagOne => "autocorrelation one step apart",
            Rhythm::LagBest => "highest autocorrelation from two steps to two fifths of the window",
            Rhythm::PhaseChanges => {
                "changes of level by binary segmentation with CUSUM at 1 %, an eighth each"
            }
            Rhythm::PeriodStrength => "autocorrelation at the period, zero without one",
            Rhythm::Period => "ln(period in steps)/ln(window), missing without a period",
        };
        let name = LAYOUT[STARTS[1] + i].name();
        writeln!(out, "| `{}` | {what} |", name.split('.').next_back().unwrap_or_default())?;
    }
    Ok(())
}

fn ratios(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n### Ratios\n")?;
    writeln!(
        out,
        "Sums over the window, one for each of the other; the same at any load. Missing when the lower side is"
    )?;
    writeln!(out, "next to nothing.\n")?;
    writeln!(
        out,
        "| # | name | unit | group | what | for each | scale r, R |\n|---|---|---|---|---|---|---|"
    )?;
    for (i, ratio) in RATIOS.iter().enumerate() {
        let scale = ratio.scale.map_or_else(
            || "as it is".to_owned(),
            |scale| format!("{:e}, {:e}", scale.resolution, scale.reference),
        );
        writeln!(
            out,
            "| {} | `{}` | {} | {} | {} | {} | {scale} |",
            STARTS[2] + i,
            ratio.name,
            ratio.unit,
            ratio.group.name(),
            ratio.over_in_words(),
            ratio.under_in_words(),
        )?;
    }
    Ok(())
}

fn distributions(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n### Distributions\n")?;
    writeln!(
        out,
        "Square roots of shares, so that half the squared Euclidean distance of two is the squared Hellinger"
    )?;
    writeln!(
        out,
        "distance. The mix of system calls is over {} classes and known from {SYSCALLS_MIN} calls in the window on; the order",
        Feature::SYSCALLS.len()
    )?;
    writeln!(
        out,
        "sketch (which call follows on which two) and the code sketch (where instruction pointers are) have {SKETCH_BINS}"
    )?;
    writeln!(
        out,
        "bins each, fade by half in {SKETCH_HALF_LIFE_S} s, and are known from {SKETCH_EVENTS_MIN} events on."
    )
}

fn distances(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Distances\n")?;
    writeln!(
        out,
        "A distance weighs cells, each one group and aspect, and compares only components that both vectors have;"
    )?;
    writeln!(
        out,
        "a cell counts by its weight and the share of it that could be compared, and the share of the whole weight"
    )?;
    writeln!(
        out,
        "is told beside the distance. Below {COMPARABLE_MIN} of it, a distance is no answer. A cell's distance is the root mean"
    )?;
    writeln!(
        out,
        "square of its differences (Hellinger for shares) over `one`, at most 1; the whole is the root of the"
    )?;
    writeln!(out, "weighed mean square.\n")?;
    writeln!(out, "| distance | group | aspect | weight | one |\n|---|---|---|---|---|")?;
    for (name, distance) in [("program", Distance::program()), ("demand", Distance::demand())] {
        for cell in distance.cells() {
            let (group, aspect) = (cell.group.name(), cell.aspect.name());
            writeln!(out, "| {name} | {group} | {aspect} | {} | {} |", cell.weight, cell.one)?;
        }
    }
    Ok(())
}
