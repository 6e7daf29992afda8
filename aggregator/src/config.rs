//! The aggregator's configuration: one TOML file, each table owned by its part.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    enrol::{EnrolConfig, TlsConfig},
    export::ExportConfig,
    history::HistoryConfig,
    learn::LearnConfig,
    rollout::PolicyFor,
};

/// Configuration of `headroom-aggregator serve`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AggregatorConfig {
    /// Where certificates, history and models are kept.
    pub dir: PathBuf,
    /// Addresses.
    pub listen: ListenConfig,
    /// Which certificates are used.
    pub tls: TlsConfig,
    /// How certificates are given to agents.
    pub enrol: EnrolConfig,
    /// What is taken in.
    pub ingest: IngestLimits,
    /// How long history is kept.
    pub history: HistoryConfig,
    /// Training.
    pub train: LearnConfig,
    /// Summaries that are sent to other systems.
    pub export: ExportConfig,
    /// Policies that hosts are offered, first match first.
    pub policies: Vec<PolicyFor>,
}

impl Default for AggregatorConfig {
    fn default() -> Self {
        Self {
            dir: "/var/lib/headroom-aggregator".into(),
            listen: ListenConfig::default(),
            tls: TlsConfig::default(),
            enrol: EnrolConfig::default(),
            ingest: IngestLimits::default(),
            history: HistoryConfig::default(),
            train: LearnConfig::default(),
            export: ExportConfig::default(),
            policies: Vec::new(),
        }
    }
}

/// Addresses.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// UDP address agents connect to.
    pub quic: SocketAddr,
    /// Whether agents may also connect by TLS over TCP, at the same address and port, where UDP does not
    /// get through.
    pub tcp: bool,
    /// TCP address of dashboard, API and metrics. They ask for no login: keep it local, or put a
    /// proxy that does in front.
    pub http: SocketAddr,
    /// Host names, besides addresses and `localhost`, under which the dashboard may be opened.
    pub http_names: Vec<String>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            quic: SocketAddr::from(([127, 0, 0, 1], 7443)),
            tcp: true,
            http: SocketAddr::from(([127, 0, 0, 1], 7480)),
            http_names: Vec::new(),
        }
    }
}

/// What is taken in.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestLimits {
    /// Agents connected at once at most.
    pub agents_max: usize,
    /// Largest difference between an agent's clock and ours, seconds.
    pub clock_skew_s_max: f64,
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self { agents_max: 10_000, clock_skew_s_max: 300.0 }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Names in certificates.
    #[error("configuration: {sentence}")]
    Identity {
        /// Setting, value and rule.
        sentence: String,
    },
    /// A setting makes no sense.
    #[error("configuration: {setting} is {value}, it must be {rule}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What it may be.
        rule: &'static str,
    },
}

impl AggregatorConfig {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, holds an unknown setting, or one that makes no sense.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    ///
    /// Names the first setting that makes no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |setting, value: &dyn ToString, rule| {
            Err(ConfigError::Setting { setting, value: value.to_string(), rule })
        };
        if let Some((setting, value, rule)) = self.history.fault() {
            return refuse(setting, &value, rule);
        }
        if !(1.0..=86_400.0).contains(&self.ingest.clock_skew_s_max) {
            let skew_s = &self.ingest.clock_skew_s_max;
            return refuse("ingest.clock_skew_s_max", skew_s, "1 second to a day");
        }
        if !(2.0..=398.0 * 86_400.0).contains(&self.enrol.life_s) {
            return refuse("enrol.life_s", &self.enrol.life_s, "2 seconds to 398 days");
        }
        if !(0.0..=3_650.0 * 86_400.0).contains(&self.enrol.return_s) {
            return refuse("enrol.return_s", &self.enrol.return_s, "0 seconds to 3650 days");
        }
        if !(1..=4_096).contains(&self.enrol.at_once_max) {
            return refuse("enrol.at_once_max", &self.enrol.at_once_max, "1 to 4096");
        }
        if self.enrol.failures_max == 0 {
            return refuse("enrol.failures_max", &0, "at least 1");
        }
        if let Err(sentence) = self.tls.templates() {
            return Err(ConfigError::Identity { sentence });
        }
        if self.ingest.agents_max == 0 {
            return refuse("ingest.agents_max", &0, "at least 1");
        }
        if !(1.0..=1.0e7).contains(&self.train.every_s) {
            return refuse("train.every_s", &self.train.every_s, "1 to 10000000 seconds");
        }
        if !(60.0..=1.0e9).contains(&self.train.window_s) {
            return refuse("train.window_s", &self.train.window_s, "at least a minute");
        }
        if !(1.0..=3_600.0).contains(&self.export.every_s) {
            return refuse("export.every_s", &self.export.every_s, "1 to 3600 seconds");
        }
        if let Err(error) = self.train.model.check() {
            return refuse("train.model", &error, "within its bounds");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::Path};

    use super::AggregatorConfig;

    #[test]
    fn an_empty_file_is_the_default_and_unknown_settings_are_refused() {
        let empty: AggregatorConfig = toml::from_str("").unwrap();
        assert_eq!(empty, AggregatorConfig::default());
        let unknown =
            toml::from_str::<AggregatorConfig>("[history]\nretention_dayz = 1").unwrap_err();
        assert!(unknown.to_string().contains("retention_dayz"), "{unknown}");
    }

    #[test]
    fn the_default_survives_writing_and_reading() {
        let text = toml::to_string(&AggregatorConfig::default()).unwrap();
        assert_eq!(toml::from_str::<AggregatorConfig>(&text).unwrap(), AggregatorConfig::default());
        AggregatorConfig::default().check().unwrap();
    }

    #[test]
    fn settings_of_history_are_checked() {
        let mut config = AggregatorConfig::default();
        config.history.raw_hours = 0.0;
        assert!(config.check().unwrap_err().to_string().contains("history.raw_hours"));
    }

    #[test]
    fn the_shipped_file_is_valid_and_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/aggregator.toml");
        let shipped = AggregatorConfig::read(&path).unwrap();
        let mut expected = AggregatorConfig::default();
        expected.listen.quic = SocketAddr::from(([0, 0, 0, 0], 7443));
        assert_eq!(shipped, expected);
    }
}
