//! `headroom-agent owners`: who holds the limits of a cgroup, and how quick asking them is.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use headroom_allocate::Knob;
use serde::Serialize;

use crate::{
    config,
    guard::{
        config::OwnersConfig,
        owner::{NoRoute, Owners, Systemd, decide, latency, rivals},
    },
};

/// What to tell of owners.
#[derive(Debug, Subcommand)]
pub enum OwnersCommand {
    /// Tell whom the guard would ask for changes of a cgroup, knob by knob
    Of(OfArgs),
    /// Measure the way from a decision to a limit in force, through systemd and to the file
    Bench(BenchArgs),
}

/// Arguments of `owners of`.
#[derive(Args, Debug)]
pub struct OfArgs {
    /// Path of the cgroup below the hierarchy's root, as in `/system.slice/nginx.service`
    path: String,
    /// The guard's configuration; what is built in otherwise
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `owners bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Changes each way
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    writes: u16,
    /// The guard's configuration; what is built in otherwise
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Carries a command out.
///
/// # Errors
/// When the configuration cannot be read, nobody can be asked, or the answer cannot be printed.
pub fn run(command: &OwnersCommand) -> anyhow::Result<()> {
    let (OwnersCommand::Of(OfArgs { config, .. }) | OwnersCommand::Bench(BenchArgs { config, .. })) =
        command;
    let owners = config::load_guard(config.as_deref())?.owners;
    match command {
        OwnersCommand::Of(args) => of(args, &owners),
        OwnersCommand::Bench(args) => bench(args, &owners),
    }
}

#[derive(Serialize)]
struct Told {
    path: String,
    knobs: Vec<(Knob, String)>,
    competing: Vec<String>,
}

fn of(args: &OfArgs, config: &OwnersConfig) -> anyhow::Result<()> {
    if !args.path.starts_with('/') {
        bail!("{:?}: cgroup paths begin with '/'", args.path);
    }
    let owners = Owners::new(config);
    let facts = owners.facts(&args.path, Instant::now() + config.timeout());
    let word = |knob| match decide::route(&args.path, &facts, knob, false) {
        Ok(Some(owner)) => format!("{owner} is asked"),
        Ok(None) if knob == Knob::NetEgress => "nobody is asked: the guard paces it".to_owned(),
        Ok(None) => "nobody is asked: the file is written".to_owned(),
        Err(NoRoute::Kubernetes) => {
            "refused: it is the kubelet's, unless the guard's rule says `kubernetes = true`"
                .to_owned()
        }
        Err(NoRoute::Unknown(why)) => format!("refused: {why}"),
    };
    let told = Told {
        path: args.path.clone(),
        knobs: Knob::ALL.into_iter().map(|knob| (knob, word(knob))).collect(),
        competing: rivals::found(Path::new("/")),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    for (knob, word) in &told.knobs {
        println!("{:<12} {word}", knob.name());
    }
    for line in &told.competing {
        println!("competing    {line}");
    }
    Ok(())
}

/// Quantiles of durations, microseconds.
#[derive(Serialize)]
struct Quantiles {
    n: usize,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Quantiles {
    /// By nearest rank; `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = (share * values.len() as f64).ceil() as usize;
            values.get(at.saturating_sub(1)).copied()
        };
        Some(Self {
            n: values.len(),
            p50_us: rank(0.5)?,
            p99_us: rank(0.99)?,
            max_us: values.last().copied()?,
        })
    }
}

fn bench(args: &BenchArgs, config: &OwnersConfig) -> anyhow::Result<()> {
    let mut systemd = Systemd::new(&config.system_bus, &config.systemd_private, Path::new("/"));
    let measured = latency::measure(&mut systemd, usize::from(args.writes))?;
    let through_systemd = Quantiles::of(measured.systemd_us).context("nothing was measured")?;
    let to_file = Quantiles::of(measured.file_us).context("nothing was measured")?;
    if args.json {
        let both = serde_json::json!({ "systemd": through_systemd, "file": to_file });
        println!("{}", serde_json::to_string_pretty(&both)?);
        return Ok(());
    }
    for (way, spread) in [("through systemd", through_systemd), ("to the file", to_file)] {
        println!(
            "{way:<16} p50 {:.0} us, p99 {:.0} us, longest {:.0} us, {} changes",
            spread.p50_us, spread.p99_us, spread.max_us, spread.n
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        assert!(Quantiles::of(vec![]).is_none());
        let one = Quantiles::of(vec![7.0]).unwrap();
        assert_eq!((one.p50_us, one.p99_us, one.max_us), (7.0, 7.0, 7.0));
        let many = Quantiles::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!((many.p50_us, many.p99_us, many.max_us), (100.0, 198.0, 200.0));
    }
}
