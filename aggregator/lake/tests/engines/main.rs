//! The same lake, asked by each engine: rows equal to those of the engine in process. And what the
//! lake promises to all of them.

#![cfg(feature = "sql")]
#![cfg_attr(
    feature = "sql",
    expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")
)]

#[cfg(feature = "ballista")]
mod ballista;
#[cfg(feature = "s3")]
mod bucket;
mod fixture;
mod same;
mod spark;

use std::sync::Arc;

use headroom_lake::{
    Lake, Root, Table,
    dataset::{self, Spec},
    engine::{Embedded, Engine as _, EngineName, Hot, Snapshot, check_reads},
    lake::Keeping,
    output::{Format, render},
    schema,
    storage::Local,
};

use fixture::{QUERIES, T0_MS, csv, identity, make_lake, quiet, rows, snapshot};

/// Whether `url` answers with a text that `is_ready`.
fn answers(url: &str, is_ready: impl Fn(&str) -> bool) -> bool {
    let text =
        ureq::get(url).call().ok().and_then(|mut answer| answer.body_mut().read_to_string().ok());
    text.is_some_and(|text| is_ready(&text))
}

#[tokio::test]
async fn sql_sees_every_row_once_and_missing_as_null() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().to_owned());
    let _lake = make_lake(&root);
    let (engine, snapshot) = (Embedded::default(), snapshot(&root));
    let counted = csv(&engine, &snapshot, QUERIES[0]).await;
    let last = T0_MS + 7_199_000;
    assert_eq!(counted, format!("n,with_memory,first,last\n21600,14400,{T0_MS},{last}\n"));
    let by_host = csv(&engine, &snapshot, QUERIES[1]).await;
    assert_eq!(by_host.lines().nth(1), Some("host-0,/w/0,7200,9.0"));
    let fine = csv(&engine, &snapshot, QUERIES[2]).await;
    assert_eq!(fine.lines().nth(1), Some(&*format!("/w/2,{T0_MS},10,3.125,4.25")));
    assert_eq!(csv(&engine, &snapshot, QUERIES[3]).await.lines().count(), 1 + 3 * 12);
    assert_eq!(
        csv(&engine, &snapshot, QUERIES[4]).await.lines().nth(1),
        Some(&*format!("w1,cpu.max,{}", T0_MS + 500))
    );
    let json = render(
        &engine.sql(&snapshot, "SELECT memory_bytes FROM samples LIMIT 1").await.unwrap(),
        Format::Json,
    )
    .unwrap();
    assert_eq!(String::from_utf8(json).unwrap(), "[{}]\n", "missing is left out, not zero");
}

#[tokio::test]
async fn rows_in_no_file_are_joined_and_sealed_ones_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().to_owned());
    let _lake = make_lake(&root);
    let schema = schema::of(Table::Samples);
    let (who, lately) = (identity(0), rows(7_200..7_300, 0));
    let batch = schema::batch(Table::Samples, &schema, &[(&who, &lately)], dir.path()).unwrap();
    let hot = Hot { samples: vec![batch], actions: Vec::new() };
    let engine = Embedded { hot };
    let engine = &engine;
    let counted = |snapshot: Snapshot| async move {
        csv(engine, &snapshot, "SELECT COUNT(*) AS n FROM samples").await
    };
    assert_eq!(counted(snapshot(&root)).await, "n\n21700\n");
    let without = snapshot(&root).without("main", &[3].into());
    assert_eq!(counted(without).await, "n\n16300\n");
}

#[tokio::test]
async fn a_query_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().to_owned());
    let _lake = make_lake(&root);
    let out = dir.path().join("out.csv");
    for sql in [
        format!("COPY samples TO '{}'", out.display()),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "DROP TABLE samples".to_owned(),
    ] {
        let refused = Embedded::default().sql(&snapshot(&root), &sql).await;
        assert!(refused.is_err(), "{sql}");
    }
    assert!(!out.exists());
}

#[tokio::test]
async fn a_training_set_is_built_once_and_taken_up_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().join("lake"));
    let _lake = make_lake(&root);
    let out = dir.path().join("set");
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 7_200_000, table: Table::Samples };
    let manifest = dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    assert_eq!(manifest.files.iter().map(|file| file.rows).sum::<i64>(), 3 * 720);
    assert!(out.join("manifest.json").is_file() && !out.join("_tmp").exists());
    // A second build finds it; another span is refused; without its manifest it is taken up.
    let again = dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    assert_eq!(again, manifest);
    let other = Spec { from_ms: T0_MS + 1, ..spec.clone() };
    let refused =
        dataset::build(&Embedded::default(), &root, &other, &out, &quiet).await.unwrap_err();
    assert!(refused.to_string().contains("--out"), "{refused}");
    std::fs::remove_file(out.join("manifest.json")).unwrap();
    let written = std::fs::metadata(out.join(&manifest.files[0].name)).unwrap().modified().unwrap();
    dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    let kept = std::fs::metadata(out.join(&manifest.files[0].name)).unwrap().modified().unwrap();
    assert_eq!(written, kept, "a day that is there is not built again");
}

#[tokio::test]
async fn a_training_set_is_widened_and_is_then_as_one_built_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().join("lake"));
    let _lake = make_lake(&root);
    let (wide, whole) = (dir.path().join("wide"), dir.path().join("whole"));
    let engine = Embedded::default();
    let none = dataset::backfill(&engine, &root, (T0_MS, T0_MS + 1), &wide, &quiet).await;
    assert!(none.unwrap_err().to_string().contains("dataset build"));
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 7_200_000, table: Table::Samples };
    let middle = Spec { from_ms: T0_MS + 600_000, to_ms: T0_MS + 1_800_000, table: Table::Samples };
    dataset::build(&engine, &root, &middle, &wide, &quiet).await.unwrap();
    // Back, and then forward; the days at the ends are built anew.
    let back = (T0_MS, T0_MS + 900_000);
    let first = dataset::backfill(&engine, &root, back, &wide, &quiet).await.unwrap();
    assert_eq!((first.spec.from_ms, first.spec.to_ms), (T0_MS, T0_MS + 1_800_000));
    // Cut off before the old manifest went, and after.
    let text = serde_json::to_vec(&spec).unwrap();
    std::fs::write(wide.join("_spec.json"), text).unwrap();
    let forward = (i64::MAX, spec.to_ms);
    let second = dataset::backfill(&engine, &root, forward, &wide, &quiet).await.unwrap();
    let at_once = dataset::build(&engine, &root, &spec, &whole, &quiet).await.unwrap();
    assert_eq!(second, at_once);
    for file in &at_once.files {
        let read = |dir: &std::path::Path| {
            let rows = headroom_lake::engine::read_all(&dir.join(&file.name)).unwrap();
            String::from_utf8(render(&rows, Format::Csv).unwrap()).unwrap()
        };
        assert_eq!(read(&wide), read(&whole), "{}", file.name);
    }
    std::fs::rename(wide.join("manifest.json"), wide.join("_spec.json")).unwrap();
    std::fs::write(wide.join("_spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let again = dataset::backfill(&engine, &root, back, &wide, &quiet).await.unwrap();
    assert_eq!(again, at_once);
    // What it has already changes nothing.
    let same = dataset::backfill(&engine, &root, back, &wide, &quiet).await.unwrap();
    assert_eq!(same, at_once);
}

#[test]
fn an_engine_that_is_not_there_says_how_to_get_it() {
    let error = |name: &str| name.parse::<EngineName>().unwrap_err().to_string();
    assert!(error("ballista://without-a-port").contains("ballista://HOST:PORT"));
    assert!(error("flink").contains("embedded"));
    #[cfg(not(feature = "ballista"))]
    {
        let started = "ballista://h:50050".parse::<EngineName>().unwrap().start();
        assert!(started.unwrap_err().to_string().contains("--features ballista"));
    }
}

#[tokio::test]
async fn files_that_were_merged_away_are_noticed_as_they_may_read_as_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::from(dir.path().to_owned());
    let lake = Lake::open(root.clone(), "main", Arc::new(Local), None).unwrap();
    for (number, from) in [0, 1_800].into_iter().enumerate() {
        let series = vec![(identity(0), rows(from..from + 1_800, 0))];
        lake.adopt(lake.seal(number as u64, series, Vec::new()).unwrap());
    }
    let before = snapshot(&root);
    assert!(!before.is_outdated().unwrap());
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    assert!(lake.tend(T0_MS + 4_300_000, 9, &keeping).unwrap().merged > 0);
    assert!(before.is_outdated().unwrap());
    let after = snapshot(&root);
    assert!(!after.is_outdated().unwrap());
    let counted = csv(&Embedded::default(), &after, "SELECT COUNT(*) AS n FROM samples").await;
    assert_eq!(counted, "n\n3600\n");
}

#[test]
fn only_one_statement_that_selects_is_run_whichever_engine() {
    for sql in [
        "SELECT 1",
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a UNION ALL SELECT 2 ORDER BY 1;",
        "(SELECT host FROM samples)",
        "VALUES (1)",
    ] {
        assert!(check_reads(sql).is_ok(), "{sql}");
    }
    for sql in [
        "",
        "SELECT 1; SELECT 2",
        "INSERT INTO samples VALUES (1)",
        "INSERT OVERWRITE DIRECTORY '/tmp/x' SELECT 1",
        "CREATE TABLE t AS SELECT 1",
        "DROP TABLE samples",
        "COPY samples TO '/tmp/x'",
        "SET a = 1",
        "SELECT 1 INTO t",
        "EXPLAIN ANALYZE SELECT 1",
    ] {
        assert!(check_reads(sql).is_err(), "{sql}");
    }
}
