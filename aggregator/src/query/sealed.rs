//! Which lake, with all of history in it: what the journal still holds is written to files first, by
//! the aggregator that runs, or here when none does.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use headroom_lake::Root;

use crate::{
    config::AggregatorConfig,
    history::{self, History, HistoryConfig, Local},
};

/// The longest an aggregator may take to write what it holds.
const SEAL_TIME: Duration = Duration::from_secs(120);

/// Which history.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// Directory that `serve` uses.
    #[arg(long, default_value = "/var/lib/headroom-aggregator")]
    dir: PathBuf,
    /// Configuration of the aggregator, where its lake is elsewhere.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The aggregator that runs on the directory, if one does.
    #[arg(long, default_value = "http://127.0.0.1:7480")]
    url: String,
    /// Read only what is in files: rows of the last minutes are left out, and nobody is asked.
    #[arg(long)]
    sealed_only: bool,
}

impl Place {
    /// The root of the lake, in which every row is that was acknowledged before.
    pub(super) fn seal(&self) -> anyhow::Result<Root> {
        let dir = self.dir.join("history");
        let owner = match fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => meta.uid(),
            _ => {
                bail!("{} is not there: give --dir, the directory that `serve` uses", dir.display())
            }
        };
        let config = self.config(&dir)?;
        let place = history::Place::of(&dir, &config)?;
        if !self.sealed_only {
            refuse_strangers(&dir, owner)?;
            seal(&dir, config, &self.url)?;
        }
        let root = place.root()?;
        if let Some(missing) = root.directory().filter(|dir| !dir.is_dir()) {
            bail!("{} is not there: nothing was taken in yet", missing.display());
        }
        Ok(root)
    }

    /// Rows go to the lake and under the name that the aggregator knows, or they are lost to it.
    fn config(&self, dir: &Path) -> anyhow::Result<HistoryConfig> {
        let noted = history::Place::read(dir)?;
        let Some(path) = &self.config else {
            let Some(noted) = noted else {
                bail!(
                    "{} does not tell its lake: give --config, the aggregator's own, or start the \
                     aggregator once",
                    dir.display()
                );
            };
            let history::Place { name, lake, s3 } = noted;
            return Ok(HistoryConfig { name, lake: Some(lake), s3, ..HistoryConfig::default() });
        };
        let config = AggregatorConfig::read(path)?.history;
        let told = history::Place::of(dir, &config)?;
        if let Some(noted) = noted.filter(|noted| *noted != told) {
            bail!(
                "{} names lake {} and aggregator `{}`, but {} was opened with {} and `{}` last: give \
                 the configuration that `serve` uses",
                path.display(),
                told.lake.display(),
                told.name,
                dir.display(),
                noted.lake.display(),
                noted.name
            );
        }
        Ok(config)
    }
}

/// Files made by another user are closed to the aggregator afterwards.
fn refuse_strangers(dir: &Path, owner: u32) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if own == owner {
        return Ok(());
    }
    bail!(
        "{} belongs to user {owner}, and what user {own} writes there the aggregator could not use: \
         run this as `sudo -u '#{owner}' headroom-aggregator ...`, or with --sealed-only, which \
         writes nothing",
        dir.display()
    )
}

fn seal(dir: &Path, config: HistoryConfig, url: &str) -> anyhow::Result<()> {
    match History::open_with(dir, config, Arc::new(Local)) {
        Ok(history) => Ok(history.seal()?),
        Err(error) if error.is_in_use() => ask(url).with_context(|| {
            format!(
                "an aggregator runs on {}, and what it holds in memory is in no file yet: give --url \
                 where it serves HTTP, or --sealed-only to do without the last minutes",
                dir.display()
            )
        }),
        Err(error) => Err(error.into()),
    }
}

/// Asks the aggregator at `url` to write what it holds.
fn ask(url: &str) -> anyhow::Result<()> {
    let url = format!("{}/api/seal", url.trim_end_matches('/'));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(SEAL_TIME))
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = agent.post(&url).send_empty().with_context(|| format!("ask {url}"))?;
    let status = answer.status();
    if !status.is_success() {
        let said = answer.body_mut().read_to_string().unwrap_or_default();
        bail!("{url} answers {status}: {}", said.trim());
    }
    Ok(())
}
