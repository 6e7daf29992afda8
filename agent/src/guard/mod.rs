//! The guard: a small process of its own that alone changes limits. It opens no connection, has no model and
//! no runtime; it knows its own policy, clamps every request to it, keeps every change as a lease,
//! writes a journal before each change, and gives everything back: when a lease runs out, when it
//! stops, when the kill switch is on, and when it starts again after a crash.
//!
//! Reading order: [`config`] (what it may do), [`protocol`] and [`client`] (what is said to it),
//! [`cpus`], [`devices`], [`setting`], [`policy`], [`leases`] and [`records`] (the pure parts),
//! [`path`], [`hierarchy`] and [`knob`] (the files), [`egress`] (the network), [`gpu`] (GPUs), [`owner`] (who else is asked), [`journal`],
//! `engine` (joins them), `server` (socket and threads).

pub mod client;
pub mod config;
pub mod cpus;
pub mod devices;
pub mod egress;
pub mod gpu;
pub mod hierarchy;
pub mod journal;
pub mod knob;
pub mod leases;
pub mod owner;
pub mod path;
pub mod policy;
pub mod protocol;
pub mod records;
pub mod setting;

mod engine;
mod host;
mod server;

use std::{io, sync::Arc, thread, time::Instant};

use thiserror::Error;
use tracing::{debug, error, info, warn};

pub use client::{ClientError, GuardClient};
pub use config::GuardConfig;
pub use protocol::{Applied, Request, Response};
pub use server::SocketError;

use crate::resident;

use egress::Egress;
use engine::{Engine, Parts, Unwatched};
use hierarchy::Hierarchies;
use journal::{Found, Journal, JournalError};
use leases::RETRY;
use owner::Owners;
use policy::Policy;
use protocol::Tally;

/// How often `restore` tries before it reports what is left.
const RESTORE_TRIES: u32 = 3;

/// Why the guard could not start or go on.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The journal could not be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The socket could not be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host does not tell something that is needed.
    #[error("{what}: {source}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What `restore` did.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// Outcomes of what the journal had open.
    pub tally: Tally,
    /// Limits that could not be given back, with the reason. They stay in the journal.
    pub pending: Vec<String>,
    /// What was lost or kept aside.
    pub warnings: Vec<String>,
    /// What is as it should be and worth a line.
    pub notes: Vec<String>,
}

/// Runs the guard until a signal stops it; everything is given back before it returns.
///
/// Takes over the process's SIGTERM, SIGINT, SIGHUP and SIGQUIT.
///
/// # Errors
/// When the configuration makes no sense, another guard runs, or the socket cannot be served.
pub fn run(config: &GuardConfig) -> Result<(), GuardError> {
    config.check().map_err(GuardError::Config)?;
    host::catch_stop_signals()
        .map_err(|source| GuardError::Host { what: "catching signals", source })?;
    if config.allow.is_empty() {
        warn!("the allow list is empty: nothing will be changed");
    }
    let start = Instant::now();
    let (mut engine, found) = open(config)?;
    log(&found);
    let owners = Arc::new(Owners::new(&config.owners));
    let open_count = found.open.len();
    let tally = engine.recover(found.open, &owners, start.elapsed());
    if open_count > 0 {
        warn!(?tally, "an earlier guard left {open_count} changed limits");
    }
    let listener = server::bind(config)?;
    if config.egress.on {
        log_egress(egress::restore());
        egress::prepare(&config.egress);
    }
    // No other thread runs yet.
    match resident::let_go(resident::Files::All) {
        Ok(bytes) => debug!(bytes, "pages of the program that only starting needed are let go"),
        Err(error) => debug!("the program stays resident as it is: {error}"),
    }
    let served = server::serve(engine, owners, listener, config, start, host::asked_to_stop);
    if config.egress.on {
        log_egress(egress::restore());
    }
    info!(tally = ?served?, "stopped");
    Ok(())
}

/// Gives back what a guard that is no longer there has left.
///
/// # Errors
/// When the configuration makes no sense, or a guard runs: that one is to be stopped or switched
/// off instead.
pub fn restore(config: &GuardConfig) -> Result<RestoreReport, GuardError> {
    config.check().map_err(GuardError::Config)?;
    let start = Instant::now();
    let (mut engine, found) = open(config)?;
    let owners = Owners::new(&config.owners);
    let mut tally = engine.recover(found.open, &owners, start.elapsed());
    for _try in 1..RESTORE_TRIES {
        if engine.pending().is_empty() {
            break;
        }
        thread::sleep(RETRY);
        let again = engine.recover(Vec::new(), &owners, start.elapsed() + RETRY);
        tally = Tally {
            restored: tally.restored + again.restored,
            foreign: tally.foreign + again.foreign,
            gone: tally.gone + again.gone,
            pending: again.pending,
        };
    }
    let pending = engine.pending();
    engine.stop(start.elapsed());
    let (devices, failed) = egress::restore();
    let mut report = RestoreReport { tally, pending, warnings: found.warnings, notes: found.notes };
    report.pending.extend(failed);
    report.notes.extend(devices.iter().map(|name| format!("{name} has its own qdisc again")));
    Ok(report)
}

fn open(config: &GuardConfig) -> Result<(Engine<Unwatched>, Found), GuardError> {
    let host = |what| move |source| GuardError::Host { what, source };
    let boot_id = host::boot_id().map_err(host("reading the boot id"))?;
    let capacity = host::capacity().map_err(host("counting CPUs"))?;
    let paced = match config.egress.on {
        true => Ok(Arc::new(Egress::default())),
        false => Err("it is off: `on` in [egress] of guard.toml".to_owned()),
    };
    let (journal, found) = Journal::open(&config.state_dir, &boot_id)?;
    let engine = Engine::new(Parts {
        config: config.clone(),
        policy: Policy::new(config, capacity, host::own_cgroups()),
        hierarchies: Hierarchies::detect().with_egress(paced).with_gpus(&config.gpu),
        journal,
        page_bytes: host::page_bytes(),
        steps: Unwatched,
    });
    Ok((engine, found))
}

fn log_egress((devices, failed): (Vec<String>, Vec<String>)) {
    for device in devices {
        info!("{device} has its own qdisc again");
    }
    for failure in failed {
        error!("{failure}");
    }
}

fn log(found: &Found) {
    for warning in &found.warnings {
        error!("{warning}");
    }
    for note in &found.notes {
        info!("{note}");
    }
}
