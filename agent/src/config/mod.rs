//! The agent's configuration: one TOML file, each table owned by the stage that reads it.

use std::{
    io,
    path::{Path, PathBuf},
};

use headroom_predict::predictor::PredictorConfig;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{guard::GuardConfig, observe::sampler::ObserveConfig, uplink::UplinkConfig};

/// Configuration of `headroom-agent run`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Who this host is.
    pub node: NodeConfig,
    /// What is read, and how often.
    pub observe: ObserveConfig,
    /// The forecasting layers.
    pub predict: PredictorConfig,
    /// Which workloads may be acted on, and how.
    pub policy: PolicySource,
    /// How plans reach the guard. Without this table nothing is changed.
    pub act: Option<ActConfig>,
    /// The aggregator. Without this table the agent works alone.
    pub uplink: Option<UplinkConfig>,
    /// Where models are kept and whose signature they need.
    pub model: ModelConfig,
    /// Where every decision is written.
    pub audit: AuditConfig,
    /// The local status socket.
    pub status: StatusConfig,
}

/// Who this host is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name in the fleet; the host name when empty.
    pub name: String,
}

/// Where the policy is read from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySource {
    /// Policy file; re-read when it changes. Empty: recommend for every workload, change nothing.
    pub file: Option<PathBuf>,
}

/// How plans reach the guard.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActConfig {
    /// Socket of the guard.
    pub socket: PathBuf,
}

impl Default for ActConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/headroom/guard.sock") }
    }
}

/// Where models are kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The last accepted bundle is kept here and loaded at the next start.
    pub dir: PathBuf,
    /// Ed25519 public key (32 bytes, raw) models must be signed with. Without it none is accepted.
    pub public_key: Option<PathBuf>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/headroom/models"), public_key: None }
    }
}

/// Where decisions are written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// One JSON object per line. Empty: not written.
    pub file: Option<PathBuf>,
    /// The file is renamed to `.1` beyond this size, bytes; one older file is kept.
    pub max_bytes: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { file: None, max_bytes: 64 << 20 }
    }
}

/// The local status socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusConfig {
    /// Unix socket that answers each connection with one JSON object. Empty: none.
    pub socket: Option<PathBuf>,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self { socket: Some(PathBuf::from("/run/headroom/agent.sock")) }
    }
}

/// Why a configuration file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not valid; the message names line, key and the keys that exist.
    #[error("configuration {}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, key, and what was expected.
        message: String,
    },
}

impl AgentConfig {
    /// Reads `path`; defaults when `None`.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and key.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        read(path, |text| toml::from_str(text).map_err(|error| error.to_string()))
    }
}

/// Reads the guard's configuration; defaults when `path` is `None`.
///
/// # Errors
/// [`ConfigError`], naming file, line and key.
pub fn load_guard(path: Option<&Path>) -> Result<GuardConfig, ConfigError> {
    read(path, GuardConfig::from_toml)
}

fn read<T: Default>(
    path: Option<&Path>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
}
