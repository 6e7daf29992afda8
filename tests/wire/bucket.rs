//! An aggregator whose lake is in a bucket: what an agent told is there after a restart, for readers and
//! for SQL, and nothing of it is on the aggregator's own disk.

use std::{process::Command, time::Duration};

use headroom_aggregator::history::HistoryConfig;
use headroom_lake::S3;
use headroom_telemetry::Feature;
use headroom_tests::s3::{BUCKET, S3Server};

use crate::world::{self, World, eventually};

#[test]
fn history_in_a_bucket_is_there_after_a_restart_and_for_queries() {
    let Some(storage) = S3Server::start().unwrap() else { return };
    let world = World::new();
    let s3 = S3 {
        endpoint: storage.endpoint(),
        allow_http: true,
        credentials: Some(storage.credentials()),
        ..S3::default()
    };
    let serve = || {
        world.serve_with(|config| {
            let lake = Some(format!("s3://{BUCKET}/history").into());
            let history = HistoryConfig { lake, s3: s3.clone(), ..config.history.clone() };
            // Actions of these tests are of long ago, as samples are.
            let kept = HistoryConfig { rollup_5m_days: 3_650.0, ..history };
            config.history = HistoryConfig { hot_minutes: 0.0, ..kept };
        })
    };
    let server = serve();
    let agent = world.agent("host-1", None);
    for i in 0..30 {
        agent.report(world::tick(i, 3));
        std::thread::sleep(Duration::from_millis(5));
    }
    eventually("90 samples are acknowledged", || agent.stats().vectors_acked == 90);
    drop(agent);
    let answer = ureq::post(format!("http://{}/api/seal", server.http)).send_empty().unwrap();
    assert_eq!(answer.status(), 200);
    server.stop();
    let lake = world.aggregator_dir().join("history/lake");
    assert!(!lake.exists(), "{} is on this disk", lake.display());
    let server = serve();
    let history = &server.view().history;
    assert_eq!(history.unsealed_bytes(), 0);
    let window = history.window("host-1", "/w/2", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 30);
    assert_eq!(window[7].get(Feature::CpuCores), Some(2.5));
    let actions = history.actions("host-1", "/w/0", 0.0, 4.0e9).unwrap();
    assert_eq!(actions.len(), 3);
    // Where the lake is, and how it is reached, the command knows from the aggregator's directory.
    let output = Command::new(headroom_tests::program("headroom-aggregator").unwrap())
        .args(["query", "SELECT path, COUNT(*) AS n FROM samples GROUP BY path ORDER BY path"])
        .args(["--csv", "--url", &format!("http://{}", server.http)])
        .arg("--dir")
        .arg(world.aggregator_dir())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "path,n\n/w/0,30\n/w/1,30\n/w/2,30\n");
}
