//! What is true of the fleet now: hosts, their workloads, the newest forecasts and limits.
//!
//! Held in memory only; history is elsewhere. Past forecasts are kept for some minutes so that a
//! chart can lay the band that was promised under the use that came.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use headroom_allocate::{Knob, Limit};
use headroom_fingerprint::SketchAccumulator;
use headroom_predict::{
    Forecast, Source,
    forecast::{HORIZON_STEPS, LEVELS},
};
use headroom_telemetry::{Resource, Sample, Workload};
use headroom_wire::{AppliedAction, Hello, HostReport, ProbeReport};
use tokio::sync::watch;

use crate::ingest::session::Delivery;

/// The horizon whose past answers are kept: five steps ahead.
pub const PAST_HORIZON: usize = 3;
/// Past answers kept per workload and resource.
const PAST_MAX: usize = 900;
/// A workload that was not reported for so long is no longer listed, seconds.
const GONE_S: f64 = 120.0;
/// Actions kept per host for the overview.
const ACTIONS_MAX: usize = 200;
/// Offered models whose verdicts are kept per host.
const VERDICTS_MAX: usize = 32;

/// One host.
#[derive(Clone, Debug)]
pub struct Host {
    /// What it said when it last connected.
    pub hello: Hello,
    /// Where it last connected from.
    pub address: SocketAddr,
    /// Whether it is connected.
    pub connected: bool,
    /// When it connected or left last, seconds since the Unix epoch.
    pub since_s: f64,
    /// When its last batch became durable, seconds since the Unix epoch.
    pub heard_s: Option<f64>,
    /// Its own state, with the time it describes.
    pub report: Option<(f64, HostReport)>,
    /// Its sources of facts.
    pub probes: Vec<ProbeReport>,
    /// Its workloads by path.
    pub workloads: BTreeMap<String, Live>,
    /// What became of offered models, by version.
    pub verdicts: BTreeMap<u64, ModelVerdict>,
    /// What became of the policy it was offered last.
    pub policy: Option<PolicyVerdict>,
    /// Its last actions, oldest first, with the workload's path.
    pub actions: VecDeque<(String, AppliedAction)>,
    visit: u64,
}

/// What became of an offered model.
#[derive(Clone, Debug)]
pub struct ModelVerdict {
    /// When it was told, seconds since the Unix epoch.
    pub at_s: f64,
    /// Why it was refused; `None` when it is in use.
    pub refused: Option<String>,
}

/// What became of an offered policy.
#[derive(Clone, Debug)]
pub struct PolicyVerdict {
    /// Version of the offer.
    pub version: u64,
    /// When it was told, seconds since the Unix epoch.
    pub at_s: f64,
    /// Why it was refused; `None` when it is in force.
    pub refused: Option<String>,
}

/// One workload.
#[derive(Clone, Debug)]
pub struct Live {
    /// Who.
    pub workload: Workload,
    /// The newest sample.
    pub sample: Option<Sample>,
    /// The newest forecasts.
    pub forecasts: BTreeMap<Resource, Forecast>,
    /// Limits in force.
    pub limits: Vec<(Knob, Limit)>,
    /// Past answers at [`PAST_HORIZON`].
    pub past: BTreeMap<Resource, VecDeque<Past>>,
    /// Time of the newest sample, seconds since the Unix epoch.
    pub t_s: f64,
    /// Sketches of the last minutes.
    pub sketches: SketchAccumulator,
}

/// What was expected for one moment.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// The moment, seconds since the Unix epoch.
    pub t_s: f64,
    /// Quantiles in the unit of the resource.
    pub quantiles: [f64; LEVELS],
}

/// All hosts.
#[derive(Debug)]
pub struct Fleet {
    hosts: Mutex<BTreeMap<String, Host>>,
    changes: watch::Sender<u64>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { hosts: Mutex::default(), changes: watch::channel(0).0 }
    }
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Resolves whenever something changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads the hosts by name.
    pub fn read<T>(&self, with: impl FnOnce(&BTreeMap<String, Host>) -> T) -> T {
        with(&self.lock())
    }

    /// A host was accepted. Returns the number of this visit, for [`Self::left`].
    pub fn arrived(&self, hello: &Hello, address: SocketAddr, now_s: f64) -> u64 {
        let visit = {
            let mut hosts = self.lock();
            let host = hosts.entry(hello.node.clone()).or_insert_with(|| Host {
                hello: hello.clone(),
                address,
                connected: true,
                since_s: now_s,
                heard_s: None,
                report: None,
                probes: Vec::new(),
                workloads: BTreeMap::new(),
                verdicts: BTreeMap::new(),
                policy: None,
                actions: VecDeque::new(),
                visit: 0,
            });
            host.hello = hello.clone();
            host.address = address;
            host.connected = true;
            host.since_s = now_s;
            host.visit += 1;
            host.visit
        };
        self.changed();
        visit
    }

    /// A host's connection ended. An older visit that ends late does not hide a newer one.
    pub fn left(&self, node: &str, visit: u64, now_s: f64) {
        if let Some(host) = self.lock().get_mut(node)
            && host.visit == visit
        {
            host.connected = false;
            host.since_s = now_s;
        }
        self.changed();
    }

    /// A host told the state of its sources of facts.
    pub fn probes(&self, node: &str, probes: Vec<ProbeReport>) {
        if let Some(host) = self.lock().get_mut(node) {
            host.probes = probes;
        }
        self.changed();
    }

    /// A host told what became of a model.
    pub fn verdict(&self, node: &str, version: u64, refused: Option<String>, now_s: f64) {
        if let Some(host) = self.lock().get_mut(node) {
            if refused.is_none() {
                host.hello.model_version = Some(version);
            }
            host.verdicts.insert(version, ModelVerdict { at_s: now_s, refused });
            while host.verdicts.len() > VERDICTS_MAX {
                host.verdicts.pop_first();
            }
        }
        self.changed();
    }

    /// A host told what became of a policy.
    pub fn policy_verdict(&self, node: &str, version: u64, refused: Option<String>, now_s: f64) {
        if let Some(host) = self.lock().get_mut(node) {
            if refused.is_none() {
                host.hello.policy_version = Some(version);
            }
            host.policy = Some(PolicyVerdict { version, at_s: now_s, refused });
        }
        self.changed();
    }

    /// A batch became durable.
    pub fn delivered(&self, delivery: Delivery, now_s: f64) {
        if let Some(host) = self.lock().get_mut(&delivery.arrival.host) {
            host.heard_s = Some(now_s);
            host.take(delivery);
        }
        self.changed();
    }
}

impl Host {
    fn take(&mut self, delivery: Delivery) {
        let contents = delivery.contents;
        if let Some((t_s, report)) = contents.host
            && self.report.as_ref().is_none_or(|(known_s, _)| *known_s <= t_s)
        {
            self.report = Some((t_s, report));
        }
        for (workload, sample) in delivery.arrival.samples.newest() {
            let live = self.live(workload);
            if sample.t_s >= live.t_s {
                live.t_s = sample.t_s;
                live.sample = Some(sample.clone());
            }
        }
        for (index, forecast) in contents.forecasts {
            if let Some(workload) = delivery.workloads.get(&index) {
                self.live(workload).forecast(forecast);
            }
        }
        for (index, sketches) in contents.sketches {
            if let Some(workload) = delivery.workloads.get(&index) {
                let live = self.live(workload);
                live.sketches.add(live.t_s, &sketches);
            }
        }
        let mut limits: BTreeMap<u32, Vec<(Knob, Limit)>> = BTreeMap::new();
        for (index, knob, limit) in contents.limits {
            limits.entry(index).or_default().push((knob, limit));
        }
        for (index, limits) in limits {
            if let Some(workload) = delivery.workloads.get(&index) {
                self.live(workload).limits = limits;
            }
        }
        for (workload, action) in delivery.arrival.actions {
            self.actions.push_back((workload.path, action));
            if self.actions.len() > ACTIONS_MAX {
                self.actions.pop_front();
            }
        }
        let newest_s = self.workloads.values().map(|live| live.t_s).fold(0.0, f64::max);
        self.workloads.retain(|_, live| newest_s - live.t_s <= GONE_S);
    }

    fn live(&mut self, workload: &Workload) -> &mut Live {
        let live = self.workloads.entry(workload.path.clone()).or_insert_with(|| Live {
            workload: workload.clone(),
            sample: None,
            forecasts: BTreeMap::new(),
            limits: Vec::new(),
            past: BTreeMap::new(),
            t_s: 0.0,
            sketches: SketchAccumulator::new(),
        });
        if live.workload != *workload {
            live.workload = workload.clone();
        }
        live
    }

    /// How many of its workloads each source forecasts CPU for.
    pub fn sources(&self) -> BTreeMap<Source, usize> {
        let mut counts = BTreeMap::new();
        for live in self.workloads.values() {
            if let Some(forecast) = live.forecasts.get(&Resource::Cpu) {
                *counts.entry(forecast.source.clone()).or_default() += 1;
            }
        }
        counts
    }
}

impl Live {
    fn forecast(&mut self, forecast: Forecast) {
        let known = self.forecasts.get(&forecast.resource);
        if known.is_some_and(|known| known.origin_t_s > forecast.origin_t_s) {
            return;
        }
        let past = self.past.entry(forecast.resource).or_default();
        past.push_back(Past {
            t_s: forecast.origin_t_s + f64::from(HORIZON_STEPS[PAST_HORIZON]) * forecast.step_s,
            quantiles: forecast.quantiles[PAST_HORIZON],
        });
        if past.len() > PAST_MAX {
            past.pop_front();
        }
        self.forecasts.insert(forecast.resource, forecast);
    }

    /// The limit in force of `knob`; `None` when the host has no such knob for it.
    pub fn limit(&self, knob: Knob) -> Option<Limit> {
        self.limits.iter().find(|(known, _)| *known == knob).map(|(_, limit)| *limit)
    }
}
