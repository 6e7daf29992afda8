//! An aggregator and two made-up hosts in one process, to look at the dashboard:
//! `cargo run -p headroom-tests --example fleet -- DIR SECONDS`.
//!
//! The hosts' numbers are invented; predictor, uplink, wire and aggregator are the real ones. Five
//! minutes of the past are sent first.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use headroom_agent::uplink::{Identity, Uplink, UplinkConfig, UplinkHandle};
use headroom_aggregator::{app::App, config::AggregatorConfig, pki};
use headroom_allocate::{Knob, Limit};
use headroom_predict::{Predictor, PredictorConfig};
use headroom_telemetry::{Fact, Feature, Sample, Sketches, Workload};
use headroom_wire::{AppliedAction, HostReport, ProbeReport, TickReport, WorkloadReport};

const PAST_S: u32 = 300;
const GIB: f64 = 1_073_741_824.0;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("usage: fleet DIR SECONDS")?;
    let seconds: u32 = arguments.next().context("usage: fleet DIR SECONDS")?.parse()?;
    let dir = Path::new(&dir);
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    pki::init(dir, &["localhost".to_owned()])?;
    let (ready, started) = mpsc::channel();
    let config = AggregatorConfig { dir: dir.to_owned(), ..AggregatorConfig::default() };
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let app = App::build(config).await?;
            ready.send(app.addresses()?).context("nobody waits")?;
            app.run(std::future::pending()).await;
            anyhow::Ok(())
        })
    });
    let (quic, http) = started.recv().context("the aggregator did not start")?;
    println!("http://{http}/");
    let mut hosts = Vec::new();
    for node in ["host-1", "host-2"] {
        let out = dir.join(node);
        pki::issue(dir, "headroom", node, &out)?;
        let config = UplinkConfig {
            server: quic.to_string(),
            server_name: "localhost".to_owned(),
            ca: out.join("ca.pem"),
            cert: out.join("agent.pem"),
            key: out.join("agent.key"),
            ..UplinkConfig::default()
        };
        let identity = Identity {
            node: node.to_owned(),
            agent_version: "0.1.0".to_owned(),
            kernel: "6.1.0-13-amd64".to_owned(),
        };
        hosts.push(Host::new(node, Uplink::start(config, identity)?));
    }
    let begin_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() - f64::from(PAST_S);
    for i in 0..PAST_S + seconds {
        for host in &mut hosts {
            host.tick(begin_s + f64::from(i));
        }
        thread::sleep(Duration::from_millis(if i < PAST_S { 10 } else { 1_000 }));
    }
    for host in &hosts {
        println!("{}: {:?}", host.node, host.uplink.stats());
    }
    Ok(())
}

struct Host {
    node: &'static str,
    uplink: UplinkHandle,
    predictor: Predictor,
    limits: [f64; 6],
}

impl Host {
    fn new(node: &'static str, uplink: UplinkHandle) -> Self {
        Self {
            node,
            uplink,
            predictor: Predictor::new(PredictorConfig::default(), 1.0),
            limits: [0.5; 6],
        }
    }

    fn tick(&mut self, t_s: f64) {
        let workloads: Vec<_> = (0..6).map(|w| self.workload(w, t_s)).collect();
        let used: f32 = workloads.iter().filter_map(|w| w.sample.get(Feature::CpuCores)).sum();
        let probe = |name: &str, state| ProbeReport { name: name.to_owned(), state };
        self.uplink.report(TickReport {
            t_s,
            host: HostReport {
                cpus: 4,
                cpu_used_cores: Some(f64::from(used)),
                memory_total_bytes: Some(8 << 30),
                memory_available_bytes: Some(5 << 30),
                load_1m: Some(1.2),
                psi_cpu_some: Some(0.03),
                psi_io_some: Some(0.0),
                agent_cpu_cores: Some(0.006),
                agent_memory_bytes: Some(24 << 20),
                ..HostReport::default()
            },
            workloads,
            probes: vec![
                probe("syscalls", Fact::Known("raw tracepoint sys_enter".to_owned())),
                probe("run queue", Fact::Known("tracepoint sched_switch".to_owned())),
                probe("pmu", Fact::absent("no PMU in this guest")),
                probe("gpu", Fact::absent("no NVML library on this host")),
                probe("psi", Fact::unknown("cannot read /proc/pressure/memory: I/O error")),
            ],
        });
    }

    fn workload(&mut self, w: usize, t_s: f64) -> WorkloadReport {
        const PATHS: [&str; 6] = [
            "/demo/ramp.service",
            "/demo/batch",
            "/demo/memory-ramp",
            "/system.slice/nginx.service",
            "/system.slice/cron.service",
            "/docker/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        ];
        let phase = (t_s / 40.0).fract();
        let wobble = 0.05 * (t_s * 1.7).sin() + 0.03 * (t_s * 0.61 + w as f64).cos();
        let (cores, memory) = match w {
            0 => (0.2 + 1.6 * (4.0 * (phase - 0.6)).clamp(0.0, 1.0), 0.3 * GIB),
            1 => (if phase < 0.5 { 1.1 } else { 0.15 }, 0.6 * GIB),
            2 => (0.1, (0.4 + phase) * GIB),
            3 => (0.35, 0.2 * GIB),
            4 => (0.0, 0.01 * GIB),
            _ => (0.6, 0.5 * GIB),
        };
        let mut sample = Sample::empty(t_s);
        let cores = if w == 4 { 0.0 } else { (cores + wobble).max(0.0) };
        let limited = cores.min(self.limits[w].max(0.5));
        sample.set(Feature::CpuCores, limited);
        sample.set(Feature::CpuThrottledRatio, (cores - limited).max(0.0));
        sample.set(Feature::MemoryBytes, memory);
        sample.set(Feature::DiskReadBps, if w == 1 && phase > 0.5 { 4.0e7 } else { 0.0 });
        sample.set(Feature::NetRxBps, 2.0e5 * cores);
        sample.set(Feature::Tasks, 5.0);
        let path = PATHS[w];
        self.predictor.observe(path, &sample);
        let forecasts = self.predictor.predict(path).unwrap_or_default();
        let mut actions = Vec::new();
        if w == 0
            && let Some(cpu) = forecasts.first()
        {
            let wanted = (cpu.peak(0.99, 5.0) * 1.15).clamp(0.5, 3.0);
            if (wanted / self.limits[w] - 1.0).abs() > 0.25 {
                actions.push(AppliedAction {
                    knob: Knob::CpuQuota,
                    before: Limit::At(self.limits[w]),
                    after: Limit::At(wanted),
                    at_s: t_s,
                    reason: format!("p99 within 5 s is {:.2} cores, margin 15 %", wanted / 1.15),
                });
                self.limits[w] = wanted;
            }
        }
        let mut limits = vec![(Knob::MemoryMax, Limit::Unlimited)];
        limits.push(match w {
            0 => (Knob::CpuQuota, Limit::At(self.limits[0])),
            _ => (Knob::CpuQuota, Limit::Unlimited),
        });
        if w == 0 {
            sample.set(Feature::CpuLimitCores, self.limits[0]);
        } else {
            self.limits[w] = f64::INFINITY;
        }
        WorkloadReport {
            workload: Workload::from_path(path),
            sample,
            forecasts,
            limits,
            actions,
            sketches: Sketches::default(),
        }
    }
}
