//! Spark standalone: a master and a worker.

use std::process::Command;

use headroom_lake::engine::EngineName;
use headroom_tests::server::{Started, find, free_port};

use crate::{answers, same::answers_as_in_process};

#[tokio::test]
async fn a_spark_cluster_answers_as_the_engine_in_process() {
    let Some(class) = find("spark-class") else {
        println!("skipped: Spark is not on PATH; `cargo xtask engines` installs and starts it");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (port, page, worker_page) = (free_port(), free_port(), free_port());
    let of_spark = |server: &str| {
        let mut command = Command::new(&class);
        command
            .arg(format!("org.apache.spark.deploy.{server}"))
            .args(["--host", "127.0.0.1"])
            .env("SPARK_LOG_DIR", dir.path());
        command
    };
    let mut master = Started::new(
        of_spark("master.Master")
            .args(["--port", &port.to_string()])
            .args(["--webui-port", &page.to_string()]),
    )
    .unwrap();
    let url = format!("http://127.0.0.1:{page}/json/");
    master.wait_until(&url, || answers(&url, |_text| true)).unwrap();
    let master_url = format!("spark://127.0.0.1:{port}");
    let _worker = Started::new(
        of_spark("worker.Worker")
            .args(["--cores", "2", "--memory", "2g", "--webui-port", &worker_page.to_string()])
            .arg("--work-dir")
            .arg(dir.path().join("work"))
            .arg(&master_url),
    )
    .unwrap();
    let alive = |text: &str| text.replace(' ', "").contains("\"aliveworkers\":1");
    master.wait_until(&url, || answers(&url, alive)).unwrap();
    let engine = master_url.parse::<EngineName>().unwrap().start().unwrap();
    assert_eq!(engine.name(), master_url);
    answers_as_in_process(&*engine, dir.path()).await;
}
