//! A new model reaches every agent, connected or later, and its verdict comes back.

use std::{sync::Arc, time::Duration};

use headroom_aggregator::history::History;
use headroom_predict::Bundle;

use crate::{
    ingest::Ingest,
    world::{self, World, eventually},
};

fn bundle(onnx: u8) -> Arc<Bundle> {
    Arc::new(Bundle {
        manifest: vec![1; 300],
        onnx: vec![onnx; 150_000],
        golden: vec![2; 10_000],
        signature: vec![3; 64],
    })
}

fn next(models: &mut tokio::sync::mpsc::Receiver<Bundle>) -> Bundle {
    for _ in 0..2_000 {
        if let Ok(bundle) = models.try_recv() {
            return bundle;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no model came")
}

#[test]
fn models_reach_agents_now_and_later_and_verdicts_come_back() {
    let world = World::new();
    let history = Arc::new(History::open(&world.dir.path().join("history")).unwrap());
    let ingest = Ingest::start(&world, history);
    let (fleet, offer) = (&ingest.fleet, &ingest.offer);

    let mut early = world.agent("host-1", None);
    let mut early_models = early.models();
    early.report(world::tick(0, 1));
    eventually("it is connected", || early.stats().connected);
    offer.send_replace(Some((5, bundle(5))));
    assert_eq!(next(&mut early_models).onnx[0], 5);
    early.verdict(5, Ok(()));
    let verdict = |node: &str, version: u64| {
        fleet.read(|hosts| Some(hosts.get(node)?.verdicts.get(&version)?.refused.clone()))
    };
    eventually("acceptance is recorded", || verdict("host-1", 5) == Some(None));
    assert_eq!(fleet.read(|hosts| hosts["host-1"].hello.model_version), Some(5));

    let mut late = world.agent("host-2", None);
    let mut late_models = late.models();
    assert_eq!(next(&mut late_models), *bundle(5));
    late.verdict(5, Err("the golden vectors differ by 0.3".to_owned()));
    eventually("refusal is recorded with its reason", || {
        verdict("host-2", 5) == Some(Some("the golden vectors differ by 0.3".to_owned()))
    });

    offer.send_replace(Some((6, bundle(6))));
    assert_eq!(next(&mut early_models).onnx[0], 6);
    assert_eq!(next(&mut late_models).onnx[0], 6);
}
