//! Whether an engine elsewhere answers as the one in process.

use std::path::Path;

use headroom_lake::{
    Root, Table,
    dataset::{self, Spec},
    engine::{Embedded, Engine, Job, read_all},
    output::{Format, render},
};

use crate::fixture::{QUERIES, T0_MS, csv, make_lake, quiet, snapshot};

/// Asks `engine` everything the engine in process is asked, over a lake below `dir`, and has it build
/// a training set.
pub(crate) async fn answers_as_in_process(engine: &dyn Engine, dir: &Path) {
    let root = Root::from(dir.join("lake"));
    let _lake = make_lake(&root);
    let snapshot = snapshot(&root);
    // Handed over together, as each start of some engines takes seconds.
    let jobs: Vec<Job> = QUERIES
        .iter()
        .enumerate()
        .map(|(i, sql)| Job { sql: (*sql).to_owned(), out: dir.join(format!("{i}.parquet")) })
        .collect();
    engine.write(&snapshot, &jobs).await.expect("the engine runs every query");
    for job in &jobs {
        let ours = csv(&Embedded::default(), &snapshot, &job.sql).await;
        assert_same(&job.sql, &ours, &text(&job.out));
    }
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 7_200_000, table: Table::Samples };
    let (here, there) = (dir.join("here"), dir.join("there"));
    let ours = dataset::build(&Embedded::default(), &root, &spec, &here, &quiet).await;
    let theirs = dataset::build(engine, &root, &spec, &there, &quiet).await;
    let (ours, theirs) = (ours.expect("it is built here"), theirs.expect("it is built there"));
    assert_eq!(ours.files, theirs.files);
    assert_eq!(theirs.engine, engine.name());
    for file in &ours.files {
        assert_same(&file.name, &text(&here.join(&file.name)), &text(&there.join(&file.name)));
    }
}

fn text(path: &Path) -> String {
    let rows = read_all(path).expect("a file that was written is read");
    String::from_utf8(render(&rows, Format::Csv).expect("rows are rendered")).expect("CSV is text")
}

/// Numbers equal but for the last bits, which depend on the order of additions.
fn assert_same(name: &str, ours: &str, theirs: &str) {
    assert!(ours.lines().count() > 1, "{name}: no rows prove nothing");
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{name}");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        for (a, b) in ours.split(',').zip(theirs.split(',')) {
            let same = match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 * a.abs().max(1.0),
                _ => a == b,
            };
            assert!(same, "{name}: {ours} is not {theirs}");
        }
    }
}
