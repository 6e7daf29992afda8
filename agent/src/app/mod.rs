//! The live loop: one tick a period, from facts to a plan to the guard and the aggregator.
//!
//! [`App::build`] opens everything and starts nothing that acts; [`App::run`] ticks until told to
//! stop. `tick` is one period, `planning` calls the pure crates for one workload and `knobs` for
//! all of them, `actuator` talks to the guard, `starts` provides for programs that start between
//! ticks, `models` loads what arrives, `notes` reads what workloads say of
//! themselves, `status` and `audit` tell.

pub mod actuator;
pub mod audit;
pub mod clock;
pub mod fleet_policy;
mod gpus;
mod knobs;
pub mod latency;
pub mod models;
mod notes;
mod offers;
pub mod planning;
pub mod policy_file;
pub mod self_cost;
mod starts;
pub mod starts_file;
pub mod status;
mod status_text;
mod tick;

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use headroom_predict::Starts;

use self::{
    actuator::Actuator, audit::AuditTrail, fleet_policy::PolicyDoor, knobs::Knobs,
    models::ModelDoor, notes::NotesReader, planning::Planner, policy_file::PolicyFile,
    starts_file::StartsFile, status::Status, tick::Loop,
};
use crate::{
    config::AgentConfig,
    observe::{annotations, sampler::Sampler},
    uplink::{Identity, Uplink},
};

/// The agent, opened and ready to run.
pub struct App {
    period: Duration,
    ticks: Loop,
}

/// A flag that SIGTERM and SIGINT raise.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("install signal handlers")?;
    }
    Ok(stop)
}

impl App {
    /// Opens sources of facts, policy, guard connection, uplink and status socket.
    ///
    /// # Errors
    /// When the configuration is wrong or something it names cannot be opened. What the host
    /// merely lacks is no error but an absence in the status.
    pub fn build(config: AgentConfig) -> anyhow::Result<Self> {
        let AgentConfig {
            node,
            observe,
            predict,
            policy,
            act,
            uplink,
            model,
            starts,
            audit,
            status,
        } = config;
        let period = Duration::try_from_secs_f64(observe.period_s)
            .ok()
            .filter(|period| *period >= Duration::from_millis(100))
            .with_context(|| {
                format!("observe.period_s = {}: at least 0.1 seconds", observe.period_s)
            })?;
        let sampler = Sampler::start(&observe).context("start observing")?;
        let knobs = Knobs::new(&observe.root, observe.period_s);
        let node = node_name(&node.name)?;
        let step_s = observe.period_s;
        let (door, kept) = PolicyDoor::open(&policy, model.public_key.as_deref(), &node)
            .with_context(|| format!("open the public key {:?}", model.public_key))?;
        let policy = PolicyFile::open(policy.file)?;
        let root = observe.root.clone();
        let notes = NotesReader::start(move |path| annotations::of(&root, path));
        let mut policy = policy.hearing(notes.context("start the thread that reads annotations")?);
        policy.of_fleet(kept);
        let actuator = act.map(Actuator::start).transpose().context("start the guard's client")?;
        let models = ModelDoor::open(&model).with_context(|| {
            format!("open the public key {:?} of model.public_key", model.public_key)
        })?;
        let uplink = uplink
            .map(|uplink| {
                let identity = Identity {
                    node: node.clone(),
                    agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                    kernel: sampler.facts().kernel.clone(),
                };
                Uplink::start(uplink, identity)
            })
            .transpose()
            .context("start the uplink")?;
        let audit = AuditTrail::open(&audit).with_context(|| format!("open {:?}", audit.file))?;
        let shared = Arc::new(RwLock::new(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node,
            started_s: clock::unix_s(),
            ..Status::default()
        }));
        if let Some(socket) = &status.socket {
            status::serve(socket, Arc::clone(&shared))
                .with_context(|| format!("listen on {}", socket.display()))?;
        }
        let (starts_file, starts) = starts
            .file
            .map(|path| StartsFile::open(path.clone()).with_context(|| format!("read {path:?}")))
            .transpose()?
            .map_or((None, Starts::default()), |(file, starts)| (Some(file), starts));
        let planner = Planner::new(&predict, step_s, starts);
        let mut ticks =
            Loop::new(sampler, knobs, planner, policy, actuator, models, uplink, audit, shared);
        ticks.keep_starts_in(starts_file);
        ticks.take_policies_by(door);
        Ok(Self { period, ticks })
    }

    /// Ticks until `stop` is raised. Leases that are held end by themselves in the guard.
    ///
    /// # Errors
    /// None while running; an error in a tick is counted and told.
    pub fn run(mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        notify(&[sd_notify::NotifyState::Ready]);
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now < next {
                self.ticks.wait(next - now);
                continue;
            }
            let late = now.duration_since(next) > self.period / 2;
            self.ticks.tick(late);
            notify(&[sd_notify::NotifyState::Watchdog]);
            next += self.period;
            if next < Instant::now() {
                // Ticks that were missed are not made up for.
                next = Instant::now();
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        self.ticks.finish();
        Ok(())
    }
}

/// Sleeps for `time` at most; a stop signal ends it early when the kernel delivers it here, as it
/// does to the first thread unless that one blocks it.
fn nap(time: Duration) {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let longest = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
    let whole = rustix::thread::Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
    let _left = rustix::thread::nanosleep(if seconds > 0 { &longest } else { &whole });
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The configured name, or the host's.
///
/// # Errors
/// When there is neither.
pub fn node_name(configured: &str) -> anyhow::Result<String> {
    if !configured.is_empty() {
        return Ok(configured.to_owned());
    }
    let name = rustix::system::uname();
    let name = name.nodename().to_str().context("the host name is not text: set node.name")?;
    anyhow::ensure!(!name.is_empty(), "the host has no name: set node.name");
    Ok(name.to_owned())
}
