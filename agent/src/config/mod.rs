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
    /// Where it is kept what programs needed when they started.
    pub starts: StartsConfig,
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
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySource {
    /// Policy file; re-read when it changes. Empty: recommend for every workload, change nothing.
    pub file: Option<PathBuf>,
    /// Whether a policy that the aggregator has for this host counts in place of the file; what the
    /// file denies stays denied. It must be signed by the key of models.
    pub from_aggregator: bool,
    /// The aggregator's policy is kept here and in force from the next start on.
    pub kept: PathBuf,
}

impl Default for PolicySource {
    fn default() -> Self {
        Self {
            file: None,
            from_aggregator: false,
            kept: PathBuf::from("/var/lib/headroom/agent/policy.offer"),
        }
    }
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

/// What programs needed when they started.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StartsConfig {
    /// JSON file that keeps it over restarts. Empty: learned anew after each.
    pub file: Option<PathBuf>,
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

/// A share from an argument: `2%`, `0.5 %` or `0.02`.
///
/// # Errors
/// When it is no number, or not above 0 and at most 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(number) => (number.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    let share = number.parse::<f64>().map_err(|error| format!("{number:?}: {error}"))? / unit;
    if share > 0.0 && share <= 1.0 {
        return Ok(share);
    }
    Err("must be above 0 and at most 1, or 100%".to_owned())
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

#[cfg(test)]
mod policy_doc;
#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use headroom_allocate::Policy;
    use serde::Serialize;

    use super::{AgentConfig, load_guard, parse_share};
    use crate::guard::GuardConfig;

    fn shipped(name: &str) -> (PathBuf, toml::Table) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/config").join(name);
        let table = fs::read_to_string(&path).unwrap().parse().unwrap();
        (path, table)
    }

    /// Keys of `file` whose value is not the one of `defaults`, as `table.key`.
    fn other_than(defaults: &impl Serialize, file: &toml::Table) -> Vec<String> {
        fn walk(prefix: &str, defaults: &toml::Table, file: &toml::Table, out: &mut Vec<String>) {
            for (key, value) in file {
                let name = format!("{prefix}{key}");
                match (defaults.get(key), value) {
                    (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => {
                        walk(&format!("{name}."), inner, value, out);
                    }
                    (Some(default), value) if default == value => {}
                    _ => out.push(name),
                }
            }
        }
        let mut out = Vec::new();
        walk("", &toml::Table::try_from(defaults).unwrap(), file, &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn the_shipped_agent_file_is_valid_and_shows_the_defaults() {
        let (path, table) = shipped("agent.toml");
        let config = AgentConfig::load(Some(&path)).unwrap();
        assert!(config.act.is_some() && config.uplink.is_some());
        assert_eq!(
            other_than(&AgentConfig::default(), &table),
            [
                "act",
                "audit.file",
                "model.dir",
                "model.public_key",
                "policy.file",
                "starts.file",
                "status.socket",
                "uplink"
            ],
            "the comments in agent.toml say that these alone differ"
        );
        let uplink = table["uplink"].as_table().unwrap();
        assert_eq!(
            other_than(&crate::uplink::UplinkConfig::default(), uplink),
            ["server", "spool_dir"]
        );
    }

    #[test]
    fn the_shipped_guard_file_is_valid_and_shows_the_defaults() {
        let (path, table) = shipped("guard.toml");
        load_guard(Some(&path)).unwrap();
        assert_eq!(other_than(&GuardConfig::default(), &table), ["uids"]);
    }

    #[test]
    fn the_shipped_policy_is_valid_and_shows_the_defaults() {
        let (path, _table) = shipped("policy.toml");
        let policy = Policy::from_toml(&fs::read_to_string(path).unwrap()).unwrap();
        let built_in = Policy::default();
        assert_eq!(policy.defaults(), built_in.defaults());
        assert_eq!((policy.rules(), policy.deny()), (built_in.rules(), built_in.deny()));
        assert_eq!(policy.host(), built_in.host());
        assert_eq!(policy.hears_annotations(), built_in.hears_annotations());
    }

    #[test]
    fn a_share_may_be_in_percent() {
        assert_eq!(parse_share("2%"), Ok(0.02));
        assert_eq!(parse_share(" 0.5 % "), Ok(0.005));
        assert_eq!(parse_share("1"), Ok(1.0));
        for wrong in ["", "%", "2", "0", "-1%", "nan", "two"] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_key_is_told_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "[observe]\nperiod = 1.0\n").unwrap();
        let message = AgentConfig::load(Some(&path)).unwrap_err().to_string();
        assert!(message.contains("agent.toml") && message.contains("period_s"), "{message}");
    }
}
