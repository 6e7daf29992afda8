//! A lake in a bucket holds and answers what one in a directory does.

use std::{collections::HashSet, path::Path, sync::Arc};

use headroom_lake::{
    Lake, LakeError, Root, Rows, S3, Table,
    dataset::{self, Spec},
    engine::{Embedded, EngineName, read_all},
    lake::Keeping,
    storage::Local,
};
use headroom_telemetry::Feature;
use headroom_tests::{
    s3::{BUCKET, S3Server},
    server::free_port,
};

use crate::fixture::{QUERIES, T0_MS, csv, identity, make_lake, quiet, rows, snapshot};

fn settings(server: &S3Server) -> S3 {
    S3 {
        endpoint: server.endpoint(),
        allow_http: true,
        credentials: Some(server.credentials()),
        ..S3::default()
    }
}

fn at(server: &S3Server, prefix: &str) -> Root {
    let lake = format!("s3://{BUCKET}{prefix}");
    Root::open(Path::new(&lake), &settings(server)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_answers_as_a_directory() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let here = Root::from(dir.path().join("lake"));
    let (lake, _lake) = (make_lake(&here), make_lake(&at(&server, "/deep/down")));
    let there = at(&server, "/deep/down");
    let far = Lake::open(there.clone(), "main", Arc::new(Local), None).unwrap();
    assert_eq!((far.n_files(), far.hi_max()), (lake.n_files(), lake.hi_max()));
    assert_eq!(far.bytes(), lake.bytes(), "the same bytes");
    let engine = Embedded::default();
    let snapshots = (snapshot(&here), snapshot(&there));
    for sql in QUERIES {
        let ours = csv(&engine, &snapshots.0, sql).await;
        assert_eq!(csv(&engine, &snapshots.1, sql).await, ours, "{sql}");
    }
    let range = (T0_MS + 1_000, T0_MS + 5_000_000);
    for (ids, numbers) in [(vec![1], None), (vec![0, 2], Some(&[0_usize, 1][..])), (vec![9], None)]
    {
        let ids: HashSet<u32> = ids.into_iter().collect();
        let read = |lake: &Lake| {
            let found = lake.series(&ids, range, &HashSet::new(), numbers).unwrap();
            // Not a number is not equal to itself: bits are.
            let bits = |rows: &Rows| rows.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            found.iter().map(|(id, rows)| (*id, rows.t_ms.clone(), bits(rows))).collect::<Vec<_>>()
        };
        assert_eq!(read(&far), read(&lake));
        assert_eq!(read(&far), read(&lake), "with footers that are known");
    }
    let none = HashSet::new();
    let actions = |lake: &Lake| lake.actions(range, &none).unwrap().len();
    assert_eq!((actions(&far), actions(&lake)), (2, 2));
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 7_200_000, table: Table::Samples };
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let built = dataset::build(&engine, &here, &spec, &ours, &quiet).await.unwrap();
    assert_eq!(dataset::build(&engine, &there, &spec, &theirs, &quiet).await.unwrap(), built);
    for file in &built.files {
        let read = |dir: &Path| read_all(&dir.join(&file.name)).unwrap();
        assert_eq!(read(&ours), read(&theirs));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_many_parts_is_whole_and_what_is_merged_away_is_noticed() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let root = at(&server, "");
    let lake = Lake::open(root.clone(), "main", Arc::new(Local), None).unwrap();
    // Bits that no codec makes smaller, so that one file is larger than what is sent together.
    let mut state = 1_u32;
    let noise = |seconds: std::ops::Range<i64>, state: &mut u32| {
        let mut noise = rows(seconds, 0);
        for value in &mut noise.values {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = f32::from_bits((*state >> 9) | 0x3f80_0000);
        }
        noise
    };
    let series = |n: i64, state: &mut u32| {
        (0..20).map(|id| (identity(id), noise(n * 1_800..(n + 1) * 1_800, state))).collect()
    };
    for n in 0..2_i64 {
        lake.adopt(lake.seal(n.unsigned_abs(), series(n, &mut state), Vec::new()).unwrap());
    }
    assert!(lake.bytes() > 2 * (8 << 20), "{} bytes are sent at once", lake.bytes());
    let before = snapshot(&root);
    assert!(!before.is_outdated().unwrap());
    let sql = "SELECT COUNT(*) AS n, SUM(cpu_cores) AS cores, SUM(net_tx_bps) AS sent FROM samples";
    let counted = csv(&Embedded::default(), &before, sql).await;
    assert!(counted.lines().nth(1).unwrap().starts_with("72000,"), "{counted}");
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    assert_eq!(lake.tend(T0_MS + 4_300_000, 9, &keeping).unwrap().merged, 1);
    assert!(before.is_outdated().unwrap());
    let after = snapshot(&root);
    let n_rows = csv(&Embedded::default(), &after, "SELECT COUNT(*) AS n FROM samples").await;
    assert_eq!(n_rows, "n\n72000\n");
    let found =
        lake.series(&[7].into(), (T0_MS, T0_MS + 3_600_000), &HashSet::new(), None).unwrap();
    let cores = |rows: &Rows, row: usize| rows.row(row)[Feature::CpuCores.index()];
    let n: usize = found.iter().map(|(_, rows)| rows.len()).sum();
    assert_eq!(n, 3_600);
    assert!(found.iter().all(|(_, rows)| (0..rows.len()).all(|row| cores(rows, row) >= 1.0)));
}

#[test]
fn several_aggregators_share_a_bucket_and_leave_each_other_alone() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let open = |name| Lake::open(at(&server, "/shared"), name, Arc::new(Local), None).unwrap();
    let (a, b) = (open("a"), open("b"));
    for lake in [&a, &b] {
        for number in 0..2_i64 {
            let series = vec![(identity(0), rows(number * 10..number * 10 + 10, 0))];
            let written = lake.seal(number.unsigned_abs(), series, Vec::new()).unwrap();
            lake.adopt(written);
        }
    }
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    assert_eq!(a.tend(T0_MS + 4_300_000, 9, &keeping).unwrap().merged, 1);
    // Of our own, from number 1 on, the journal would write them again.
    let again = Lake::open(at(&server, "/shared"), "b", Arc::new(Local), Some(1)).unwrap();
    assert_eq!((open("a").n_files(), again.n_files(), open("b").n_files()), (3, 1, 1));
    assert_eq!(snapshot(&at(&server, "/shared")).files["samples"].len(), 2);
}

#[test]
fn a_bucket_that_cannot_be_used_is_named_with_the_way_out() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let told = |lake: &str, s3: &S3| match Root::open(Path::new(lake), s3) {
        Err(error @ LakeError::Url { .. }) => error.to_string(),
        other => panic!("{lake}: {other:?}"),
    };
    let fine = settings(&server);
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let with_keys = |text: &str| {
        std::fs::write(&keys, text).unwrap();
        S3 { credentials: Some(keys.clone()), ..fine.clone() }
    };
    let wrong =
        with_keys("aws_access_key_id = HEADROOM\naws_secret_access_key = secret-of-others\n");
    let text = told("s3://fleet/x", &wrong);
    assert!(text.contains("s3://fleet/x") && text.contains("closed to us"), "{text}");
    assert!(!text.contains("secret-of-others"), "{text}");
    let other_section = with_keys("[else]\naws_access_key_id = a\naws_secret_access_key = b\n");
    let text = told("s3://fleet", &other_section);
    assert!(text.contains("keys") && text.contains("[default]"), "{text}");
    let text = told("s3://nothing-here/x", &fine);
    assert!(text.contains("there is no bucket `nothing-here`"), "{text}");
    assert!(told("s3://", &fine).contains("s3://BUCKET/PREFIX"));
    let in_the_clear = S3 { allow_http: false, ..fine.clone() };
    assert!(told("s3://fleet", &in_the_clear).contains("allow_http"));
    let nobody = S3 { endpoint: format!("http://127.0.0.1:{}", free_port()), ..fine };
    assert!(told("s3://fleet", &nobody).contains("endpoint"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spark_says_that_it_reads_directories_only() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let root = at(&server, "");
    let Ok(spark) = "spark://local".parse::<EngineName>().unwrap().start() else {
        println!("\nskipped: Spark is not on PATH; `cargo xtask engines` installs and starts it");
        return;
    };
    let refused = spark.sql(&snapshot(&root), "SELECT 1").await.unwrap_err().to_string();
    assert!(refused.contains("--engine embedded"), "{refused}");
}
