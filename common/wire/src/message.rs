//! What travels on the streams.

use std::fmt;

use headroom_predict::Bundle;
use headroom_telemetry::{ContainerNames, Workload, schema::SchemaHash};
use serde::{Deserialize, Serialize};

use crate::{batch::Batch, limits, policy::PolicyOffer, report::ProbeReport};

/// Tells one life of an agent process from the next; sequence numbers begin anew with it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Any message, either way.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(clippy::large_enum_variant, reason = "the largest, a batch, is also nearly all of them")]
pub enum Message {
    /// Agent: who speaks and in which version. Always first.
    Hello(Hello),
    /// Aggregator: the hello is accepted.
    Welcome(Welcome),
    /// Aggregator: the hello is not accepted, and why. The connection ends.
    Refused {
        /// A sentence with the way out.
        reason: String,
    },
    /// Agent: names workloads for the batches that follow.
    Workloads(Definitions),
    /// Agent: measured samples and what was made of them.
    Batch(Batch),
    /// Agent: the state of its sources of facts, complete.
    Probes(Vec<ProbeReport>),
    /// Aggregator: the batch `seq` of `boot` is durable. Says nothing of others.
    Ack {
        /// The life of the agent that numbered it.
        boot: BootId,
        /// Its number.
        seq: u64,
    },
    /// Aggregator: a newer model.
    ModelOffer(Bundle),
    /// Agent: what became of an offered model.
    ModelVerdict {
        /// Version of the bundle.
        version: u64,
        /// Why it was refused; `None` when it is in use.
        refused: Option<String>,
    },
    /// Agent: batches of `boot` numbered below `before` that are not acknowledged were given up and
    /// will never come.
    Settled {
        /// The life of the agent that numbered them.
        boot: BootId,
        /// The lowest number that may still come.
        before: u64,
    },
    /// Aggregator: nothing more can be made durable now. What is not acknowledged is sent again after
    /// the wait.
    Wait {
        /// How long, seconds; at most [`limits::WAIT_S_MAX`].
        for_s: u32,
        /// Why, for people.
        reason: String,
    },
    /// Aggregator, from version 5 on: the policy it has for this host.
    PolicyOffer(PolicyOffer),
    /// Agent, from version 5 on: what became of an offered policy.
    PolicyVerdict {
        /// Version of the offer.
        version: u64,
        /// Why it was refused; `None` when it is in force.
        refused: Option<String>,
    },
}

/// The first words of an agent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Hello {
    /// [`limits::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Feature schema of the samples that follow.
    pub schema: SchemaHash,
    /// Name of the host; must be the one in the client certificate.
    pub node: String,
    /// This life of the agent.
    pub boot: BootId,
    /// Version of the agent program.
    pub agent_version: String,
    /// Kernel release of the host.
    pub kernel: String,
    /// Model in use; `None` is the base layer alone.
    pub model_version: Option<u64>,
    /// The agent's clock, seconds since the Unix epoch.
    pub now_s: f64,
    /// The oldest protocol version the agent speaks; `None` where it speaks `protocol` alone, as all
    /// before version 4.
    #[serde(default)]
    pub protocol_oldest: Option<u32>,
    /// Version of the aggregator's policy that was taken last, if one ever was.
    #[serde(default)]
    pub policy_version: Option<u64>,
}

/// The answer to an accepted hello.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Welcome {
    /// The version spoken from here on: the newest that both sides speak.
    pub protocol: u32,
    /// Version of the aggregator program.
    pub aggregator_version: String,
    /// The number of the agent's current life up to and with which everything is durable, if any.
    /// Batches above it may be durable too; those come again and are told to be repeats.
    pub durable_seq: Option<u64>,
    /// The aggregator's clock, seconds since the Unix epoch.
    pub now_s: f64,
}

/// Names for workloads: an index stands for the same workload for the whole life of an agent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Definitions {
    /// The life of the agent that numbered them.
    pub boot: BootId,
    /// Index and identity.
    pub entries: Vec<(u32, Workload)>,
}

impl Message {
    /// Short name for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Refused { .. } => "refused",
            Self::Workloads(_) => "workloads",
            Self::Batch(_) => "batch",
            Self::Probes(_) => "probes",
            Self::Ack { .. } => "ack",
            Self::ModelOffer(_) => "model_offer",
            Self::ModelVerdict { .. } => "model_verdict",
            Self::Settled { .. } => "settled",
            Self::Wait { .. } => "wait",
            Self::PolicyOffer(_) => "policy_offer",
            Self::PolicyVerdict { .. } => "policy_verdict",
        }
    }

    /// The first bound of [`limits`] that this message exceeds, as (what, is, at most).
    pub(crate) fn excess(&self) -> Option<(&'static str, usize, usize)> {
        let text = |what, text: &str| {
            (text.len() > limits::TEXT_BYTES_MAX).then_some((
                what,
                text.len(),
                limits::TEXT_BYTES_MAX,
            ))
        };
        let count = |what, n: usize, max: usize| (n > max).then_some((what, n, max));
        match self {
            Self::Hello(hello) => {
                count("bytes in the node name", hello.node.len(), limits::NODE_BYTES_MAX)
                    .or_else(|| text("bytes in the agent version", &hello.agent_version))
                    .or_else(|| text("bytes in the kernel release", &hello.kernel))
            }
            Self::Welcome(welcome) => {
                text("bytes in the aggregator version", &welcome.aggregator_version)
            }
            Self::Refused { reason } => text("bytes in the reason", reason),
            Self::Workloads(definitions) => count(
                "workloads",
                definitions.entries.len(),
                limits::DEFINITIONS_MAX,
            )
            .or_else(|| {
                definitions.entries.iter().find_map(|(_, workload)| {
                    text("bytes in a workload's path", &workload.path)
                        .or_else(|| text("bytes in a workload's name", &workload.name))
                        .or_else(|| text("bytes in a workload's key", &workload.model_key.0))
                        .or_else(|| {
                            let names = workload.names.iter().flat_map(ContainerNames::texts);
                            names
                                .into_iter()
                                .find_map(|one| text("bytes in a container's name", one))
                        })
                })
            }),
            Self::Batch(batch) => batch.excess(),
            Self::Probes(probes) => {
                count("probes", probes.len(), limits::PROBES_MAX).or_else(|| {
                    probes.iter().find_map(|probe| {
                        let state = probe.state.known().map(String::as_str);
                        text("bytes in a probe's name", &probe.name)
                            .or_else(|| {
                                text(
                                    "bytes in a probe's state",
                                    state.or(probe.state.reason()).unwrap_or(""),
                                )
                            })
                            .or_else(|| {
                                let shortfall = probe.state.shortfall().unwrap_or("");
                                text("bytes in a probe's state", shortfall)
                            })
                    })
                })
            }
            Self::PolicyOffer(offer) => offer.excess(),
            Self::ModelVerdict { refused, .. } | Self::PolicyVerdict { refused, .. } => {
                refused.as_deref().and_then(|reason| text("bytes in the reason", reason))
            }
            Self::Wait { for_s, reason } => text("bytes in the reason", reason).or_else(|| {
                let seconds = |s: u32| usize::try_from(s).unwrap_or(usize::MAX);
                count("seconds to wait", seconds(*for_s), seconds(limits::WAIT_S_MAX))
            }),
            Self::Ack { .. } | Self::Settled { .. } | Self::ModelOffer(_) => None,
        }
    }
}
