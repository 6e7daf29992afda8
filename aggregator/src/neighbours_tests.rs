//! From batches that arrive to the nearest workloads.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use headroom_telemetry::{
    Feature, SKETCH_BINS, Sample, SketchCounts, Sketches, Workload, schema::SchemaHash,
};
use headroom_wire::{BootId, Contents, Hello, limits::PROTOCOL};

use super::{Neighbours, nearest};
use crate::{
    fleet::Fleet,
    history::{Arrival, History},
    ingest::session::Delivery,
};

/// What runs where: `/gzip/0` and `/gzip/1` alike but at another load, `/web/0` otherwise.
const PATHS: [(&str, f64, u32); 4] =
    [("/gzip/0", 1.0, 3), ("/gzip/1", 0.1, 3), ("/web/0", 1.0, 40), ("/young", 1.0, 3)];

fn sample(t_s: f64, load: f64, kind: u32) -> Sample {
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, load);
    sample.set(Feature::CpuSystemCores, load * f64::from(kind) / 100.0);
    sample.set(Feature::PageFaults, load * 2_000.0 / f64::from(kind));
    sample.set(Feature::VoluntarySwitches, load * 10.0 * f64::from(kind));
    sample.set(Feature::SyscallRead, load * 100.0 * f64::from(50 - kind));
    sample.set(Feature::SyscallPoll, load * 100.0 * f64::from(kind));
    sample
}

fn delivery(seq: u64, times: std::ops::Range<u32>) -> Delivery {
    let mut samples = Vec::new();
    let mut contents = Contents::default();
    let mut workloads = HashMap::new();
    for (index, (path, load, kind)) in (0..).zip(PATHS) {
        let workload = Workload::from_path(path);
        workloads.insert(index, Arc::new(workload.clone()));
        let skipped = if path == "/young" { times.end - 3 } else { times.start };
        for t in skipped..times.end {
            samples.push((workload.clone(), sample(1.0e6 + f64::from(t), load, kind)));
        }
        let mut counts = vec![0; SKETCH_BINS];
        counts[kind as usize] = 500;
        let counts = SketchCounts::new(counts);
        contents.sketches.push((index, Sketches { order: counts.clone(), code: counts }));
    }
    let boot = BootId(1);
    let arrival = Arrival {
        host: "n".to_owned(),
        number: Some((boot, seq)),
        samples: samples.into(),
        actions: Vec::new(),
    };
    Delivery { arrival, boot, seq, contents, workloads, n_dropped: 0 }
}

fn fleet() -> Fleet {
    let fleet = Fleet::default();
    let hello = Hello {
        protocol: PROTOCOL,
        schema: SchemaHash::current(),
        node: "n".to_owned(),
        boot: BootId(1),
        agent_version: "0".to_owned(),
        kernel: "6".to_owned(),
        model_version: None,
        now_s: 1.0e6,
        protocol_oldest: None,
        policy_version: None,
    };
    fleet.arrived(&hello, SocketAddr::from(([127, 0, 0, 1], 1)), 1.0e6);
    fleet
}

#[test]
fn the_same_program_at_another_load_is_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    let fleet = fleet();
    let delivery = delivery(1, 0..40);
    history.commit(std::slice::from_ref(&delivery.arrival)).unwrap();
    fleet.delivered(delivery, 1.0e6);
    let neighbours = Neighbours::default();
    let points = neighbours.points(&fleet, &history).unwrap();
    assert_eq!(points.points.len(), 3, "a workload of three samples is not compared");
    let asked = points.points.iter().find(|point| point.path == "/gzip/0").unwrap();
    let found = nearest(&points.points, asked, 10);
    let paths: Vec<&str> = found.iter().map(|neighbour| neighbour.path.as_str()).collect();
    assert_eq!(paths, ["/gzip/1", "/web/0"]);
    assert!(found[0].distance < 0.05 && found[1].distance > 0.4, "{found:?}");
    assert!(found[0].demand_distance.unwrap() > 0.05);
    assert!((0.25..1.0).contains(&found[0].comparable));
    assert_eq!(nearest(&points.points, asked, 1).len(), 1);
}

#[test]
fn points_are_kept_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    let neighbours = Neighbours::default();
    let first = neighbours.points(&fleet(), &history).unwrap();
    let again = neighbours.points(&fleet(), &history).unwrap();
    assert!(first.points.is_empty() && Arc::ptr_eq(&first, &again));
}
