//! What the demo asks of the aggregator, over the same HTTP API a person's scripts would use.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::report::ModelReport;

/// The aggregator's HTTP side.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    address: String,
}

impl Fleet {
    /// A client for the aggregator that listens at `address` (`host:port`).
    pub(crate) fn new(address: String) -> Self {
        Self { address }
    }

    /// Where the aggregator listens for HTTP, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The dashboard's address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Waits until the aggregator answers.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub(crate) fn wait_ready(&self, patience: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let answer = ureq::get(format!("http://{}/healthz", self.address)).call();
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > patience => {
                    return Err(error).context("the aggregator does not answer /healthz");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until a host has sent its first samples.
    ///
    /// # Errors
    /// When none does within `patience`.
    pub(crate) fn wait_host(&self, patience: Duration) -> Result<()> {
        let started = Instant::now();
        while self.get("/api/hosts")?.as_array().is_none_or(Vec::is_empty) {
            if started.elapsed() > patience {
                bail!("no agent reached the aggregator within {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Asks for a training run on what was received so far.
    ///
    /// # Errors
    /// When the aggregator refuses.
    pub(crate) fn train(&self) -> Result<()> {
        ureq::post(format!("http://{}/api/train", self.address))
            .send_empty()
            .context("ask for a training run")?;
        Ok(())
    }

    /// Vectors received since the aggregator started.
    ///
    /// # Errors
    /// When the metric is not there.
    pub(crate) fn vectors(&self) -> Result<u64> {
        let text = ureq::get(format!("http://{}/metrics", self.address))
            .call()
            .context("read /metrics")?
            .body_mut()
            .read_to_string()?;
        text.lines()
            .find_map(|line| {
                line.strip_prefix("headroom_ingest_vectors_total ")?.trim().parse().ok()
            })
            .context("/metrics has no headroom_ingest_vectors_total")
    }

    /// Models that were promoted, oldest first.
    ///
    /// # Errors
    /// When the answer is not what the API promises.
    pub(crate) fn models(&self) -> Result<Vec<ModelReport>> {
        let answer = self.get("/api/models")?;
        let versions = answer["versions"].as_array().context("/api/models has no versions")?;
        let mut models: Vec<ModelReport> = versions
            .iter()
            .filter(|model| model["verdict"] == "promote")
            .map(|model| ModelReport {
                version: model["version"].as_u64().unwrap_or_default(),
                pinball: model["evaluation"]["pinball"].as_f64().unwrap_or(f64::NAN),
                pinball_persistence: model["evaluation"]["pinball_persistence"]
                    .as_f64()
                    .unwrap_or(f64::NAN),
                pinball_incumbent: model["evaluation"]["pinball_incumbent"].as_f64(),
                accepted_by: model["accepted_by"]
                    .as_array()
                    .map_or(0, |agents| agents.len() as u64),
            })
            .collect();
        models.sort_by_key(|model| model.version);
        Ok(models)
    }

    /// One line on how far learning is.
    ///
    /// # Errors
    /// When the aggregator does not answer.
    pub(crate) fn progress(&self) -> Result<String> {
        let workloads = self.get("/api/workloads")?.as_array().map_or(0, Vec::len);
        let newest = self.models()?.pop();
        let model = newest.map_or_else(
            || "no model yet, the base layer forecasts".to_owned(),
            |model| {
                format!(
                    "model v{} (held-back loss {:.4}, repeating the last value {:.4}), accepted by {}",
                    model.version, model.pinball, model.pinball_persistence, model.accepted_by
                )
            },
        );
        Ok(format!("{workloads} workloads, {} vectors; {model}", self.vectors()?))
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// When the request fails or the answer is not JSON.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        ureq::get(format!("http://{}{path}", self.address))
            .call()
            .with_context(|| format!("get {path}"))?
            .body_mut()
            .read_json()
            .with_context(|| format!("{path} did not answer with JSON"))
    }
}
