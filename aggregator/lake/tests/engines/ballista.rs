//! Ballista: a scheduler and two executors.

use std::{path::Path, process::Command};

use headroom_lake::{
    Root,
    engine::{Ballista, Embedded, Engine, EngineName},
};
use headroom_tests::server::{Started, find, free_port};

use crate::{
    answers,
    fixture::{QUERIES, csv, make_lake, snapshot},
    same::answers_as_in_process,
};

/// A cluster on this machine; it ends with this value.
struct Cluster {
    port: u16,
    _scheduler: Started,
    executors: Vec<Started>,
}

impl Cluster {
    /// `None` where Ballista is not installed, which is told.
    fn start(dir: &Path) -> Option<Self> {
        let (Some(scheduler), Some(executor)) =
            (find("ballista-scheduler"), find("ballista-executor"))
        else {
            println!(
                "skipped: Ballista is not on PATH; `cargo xtask engines` installs and starts it"
            );
            return None;
        };
        let port = free_port();
        let place = ["--bind-host", "127.0.0.1", "--external-host", "127.0.0.1"];
        let mut scheduler = Started::new(
            Command::new(scheduler)
                .args(place)
                .args(["--bind-port", &port.to_string(), "--min-ready-executors", "2"])
                .args(["--executor-timeout-seconds", "10"])
                .args(["--expire-dead-executor-interval-seconds", "1"]),
        )
        .unwrap();
        let wait = |scheduler: &mut Started, page: &str| {
            let url = format!("http://127.0.0.1:{port}/{page}");
            scheduler.wait_until(&url, || answers(&url, |_text| true)).unwrap();
        };
        wait(&mut scheduler, "healthz");
        let executors = (0..2)
            .map(|n| {
                Started::new(
                    Command::new(&executor)
                        .args(place)
                        .args(["--scheduler-host", "127.0.0.1"])
                        .args(["--scheduler-port", &port.to_string()])
                        .args(["--bind-port", &free_port().to_string()])
                        .args(["--bind-grpc-port", &free_port().to_string()])
                        .args(["--bind-health-port", &free_port().to_string()])
                        .args(["--executor-heartbeat-interval-seconds", "2", "--vcores", "1"])
                        .arg("--work-dir")
                        .arg(dir.join(format!("executor-{n}"))),
                )
                .unwrap()
            })
            .collect();
        wait(&mut scheduler, "readyz");
        Some(Self { port, _scheduler: scheduler, executors })
    }

    fn engine(&self) -> Box<dyn Engine> {
        let name: EngineName = format!("ballista://127.0.0.1:{}", self.port).parse().unwrap();
        name.start().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ballista_cluster_answers_as_the_engine_in_process() {
    let dir = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(dir.path()) else { return };
    answers_as_in_process(&*cluster.engine(), dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_dies_costs_time_and_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut cluster) = Cluster::start(dir.path()) else { return };
    let root = Root::from(dir.path().join("lake"));
    let _lake = make_lake(&root);
    let (engine, snapshot) = (cluster.engine(), snapshot(&root));
    let ours = csv(&Embedded::default(), &snapshot, QUERIES[3]).await;
    drop(cluster.executors.pop());
    assert_eq!(csv(&*engine, &snapshot, QUERIES[3]).await, ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_files_has_its_columns_and_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(dir.path()) else { return };
    let none = snapshot(&Root::from(dir.path().to_owned()));
    let engine = cluster.engine();
    for sql in ["SELECT host, knob FROM actions", "SELECT COUNT(*) AS n FROM samples"] {
        assert_eq!(csv(&*engine, &none, sql).await, csv(&Embedded::default(), &none, sql).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Ballista::at(&format!("127.0.0.1:{}", free_port()));
    let refused = engine
        .sql(&snapshot(&Root::from(dir.path().to_owned())), "SELECT COUNT(*) FROM samples")
        .await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(&engine.name()), "{text}");
    // What only reads goes to it, as everywhere.
    let refused = engine
        .sql(&snapshot(&Root::from(dir.path().to_owned())), "DROP TABLE samples")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("SELECT"), "{refused}");
}
