//! Workloads that live for less than a period are named and counted all the same.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{fs, path::PathBuf, process::Command};

use headroom_agent::observe::{ObserveConfig, Sampler, kernel::Topic};
use headroom_telemetry::Feature;
use headroom_tests::cgroup::Hierarchies;

/// Where the cgroup is made, as systemd names a transient scope.
const PATH: &str = "/headroom-brief/run-r0123456789abcdef0123456789abcdef.scope";

struct Parents(Vec<PathBuf>);

impl Drop for Parents {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir.join(PATH.trim_start_matches('/')));
            let _ = fs::remove_dir(dir.join("headroom-brief"));
        }
    }
}

#[test]
fn a_cgroup_that_lives_between_two_ticks_is_sampled_once_with_its_name() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let config = ObserveConfig {
        include: vec![headroom_telemetry::Glob("/headroom-brief/*".to_owned())],
        gpu: false,
        ..ObserveConfig::default()
    };
    let mut sampler = Sampler::start(&config).unwrap();
    let states = sampler.probe_states();
    let lacking = states.iter().find(|state| {
        let is_needed = [Topic::CgroupEvents, Topic::Execs, Topic::RunQueue]
            .iter()
            .any(|topic| topic.name() == state.name);
        is_needed && !state.state.is_known()
    });
    if let Some(lacking) = lacking {
        println!("skipped: {}: {}", lacking.name, lacking.state);
        return;
    }
    let parents = Parents(Hierarchies::detect().unwrap().roots);
    for root in &parents.0 {
        fs::create_dir_all(root.join("headroom-brief")).unwrap();
    }
    sampler.sample(1.0);
    let dirs: Vec<PathBuf> =
        parents.0.iter().map(|root| root.join(PATH.trim_start_matches('/'))).collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let joins: Vec<String> =
        dirs.iter().map(|dir| format!("echo $$ > '{}/cgroup.procs'", dir.display())).collect();
    let script = format!("{} && /bin/true && exec /bin/true", joins.join(" && "));
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    for dir in &dirs {
        fs::remove_dir(dir).unwrap();
    }
    let tick = sampler.sample(2.0);
    let found = tick.workloads.iter().find(|(workload, _sample)| workload.path == PATH);
    let (workload, sample) = found.expect("the workload that ended is in the tick");
    assert_eq!(workload.model_key.0, "unit:run-*.scope");
    assert!(sample.get(Feature::Execs).unwrap() > 0.0);
    assert!(sample.get(Feature::ContextSwitches).unwrap() > 0.0);
    assert_eq!(sample.get(Feature::MemoryBytes), None, "its files were not read");
    let reasons = sampler.missing_reasons(PATH, sample);
    let memory = reasons.iter().find(|(feature, _)| *feature == Feature::MemoryBytes).unwrap();
    assert!(memory.1.contains("ended before"), "{}", memory.1);
    assert_eq!(sampler.counts().brief, 1);
    let next = sampler.sample(3.0);
    assert!(next.gone.iter().any(|path| path == PATH), "{:?}", next.gone);
    assert!(next.workloads.iter().all(|(workload, _sample)| workload.path != PATH));
}
