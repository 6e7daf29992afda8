//! What an agent's messages mean, without socket, clock or disk.

use std::{collections::HashMap, sync::Arc};

use headroom_telemetry::{Workload, schema::SchemaHash};
use headroom_wire::{
    AppliedAction, Batch, BatchError, BootId, Contents, Hello, Message, Numbering, ProbeReport,
    limits::{PROTOCOL, PROTOCOL_OLDEST, WORKLOADS_MAX},
    message::Definitions,
};
use thiserror::Error;

use crate::history::{Arrival, Samples};

/// Why a connection ends, told to the agent and counted by [`Refusal::kind`].
#[derive(Debug, Error, PartialEq)]
pub enum Refusal {
    /// Other protocol version.
    #[error(
        "the agent speaks protocol {theirs}, this aggregator {PROTOCOL_OLDEST} to {PROTOCOL}: install \
         agent and aggregator of the same release"
    )]
    Protocol {
        /// The agent's newest.
        theirs: u32,
    },
    /// Other feature schema.
    #[error("feature schema {theirs} is not {ours}: use agent and aggregator of the same release")]
    Schema {
        /// The agent's.
        theirs: SchemaHash,
        /// Of this program.
        ours: SchemaHash,
    },
    /// The certificate is another host's.
    #[error("the certificate is that of `{certified}`, the agent says it is `{claimed}`")]
    Identity {
        /// In the certificate.
        certified: String,
        /// In the hello.
        claimed: String,
    },
    /// The clocks disagree too much for a common history.
    #[error("the agent's clock is {off_s:.0} s off, at most {max_s:.0} s are allowed: set it")]
    Clock {
        /// How much, seconds.
        off_s: f64,
        /// How much may be, seconds.
        max_s: f64,
    },
    /// More gaps in the numbers of batches than an agent that keeps the protocol leaves.
    #[error("batch {seq} leaves more gaps than are remembered: connect again")]
    Gaps {
        /// The batch's number.
        seq: u64,
    },
    /// More workloads than a connection may define.
    #[error("more than {WORKLOADS_MAX} workloads on one connection: connect again")]
    Workloads,
    /// A message that does not belong here.
    #[error("{kind} was not expected")]
    OutOfPlace {
        /// Which.
        kind: &'static str,
    },
}

impl Refusal {
    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Protocol { .. } => "protocol",
            Self::Schema { .. } => "schema",
            Self::Identity { .. } => "identity",
            Self::Clock { .. } => "clock",
            Self::Gaps { .. } => "gaps",
            Self::Workloads => "workloads",
            Self::OutOfPlace { .. } => "out_of_place",
        }
    }
}

/// What to do about a message.
#[derive(Debug)]
pub enum Step {
    /// Accept the agent, in this version of the protocol.
    Welcome(Hello, u32),
    /// Make `arrival` durable, then acknowledge.
    Arrival(Box<Delivery>),
    /// Acknowledge again; it is durable already.
    Repeat {
        /// The agent's life.
        boot: BootId,
        /// The batch's number.
        seq: u64,
    },
    /// Cannot be read now or ever: count it, make its number durable and acknowledge, so that it does not
    /// come again.
    Unreadable {
        /// The agent's life.
        boot: BootId,
        /// The batch's number.
        seq: u64,
        /// Samples it said it had.
        samples: usize,
        /// Why.
        error: BatchError,
    },
    /// Show these probe states.
    Probes(Vec<ProbeReport>),
    /// Record what became of an offered model.
    Verdict {
        /// Version of the bundle.
        version: u64,
        /// Why it was refused; `None` when it is in use.
        refused: Option<String>,
    },
    /// Record what became of an offered policy.
    PolicyVerdict {
        /// Version of the offer.
        version: u64,
        /// Why it was refused; `None` when it is in force.
        refused: Option<String>,
    },
    /// Remember that batches of `boot` below `before` will never come.
    Settled {
        /// The agent's life.
        boot: BootId,
        /// The lowest number that may still come.
        before: u64,
    },
    /// Nothing.
    Nothing,
}

/// A batch in terms of workloads.
#[derive(Debug)]
pub struct Delivery {
    /// What becomes durable.
    pub arrival: Arrival,
    /// The agent's life.
    pub boot: BootId,
    /// The batch's number.
    pub seq: u64,
    /// What the dashboard shows: forecasts and limits by workload, and the host; no samples.
    pub contents: Contents,
    /// Names for the indexes in `contents`.
    pub workloads: HashMap<u32, Arc<Workload>>,
    /// Samples of workloads that were never named, or of no plausible time; they are dropped.
    pub n_dropped: usize,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    certified: String,
    clock_skew_s_max: f64,
    node: Option<String>,
    workloads: HashMap<(BootId, u32), Arc<Workload>>,
}

impl Session {
    /// A connection whose certificate names `certified`.
    pub fn new(certified: String, clock_skew_s_max: f64) -> Self {
        Self { certified, clock_skew_s_max, node: None, workloads: HashMap::new() }
    }

    /// What `message` asks for. `numbering` says what is durable of a host and life.
    ///
    /// # Errors
    ///
    /// When the connection must end; the reason is for the agent.
    pub fn on_message(
        &mut self,
        message: Message,
        now_s: f64,
        numbering: impl Fn(&str, BootId) -> Numbering,
    ) -> Result<Step, Refusal> {
        match (self.node.clone(), message) {
            (None, Message::Hello(hello)) => self.greet(hello, now_s),
            (Some(_), Message::Workloads(definitions)) => self.define(definitions),
            (Some(node), Message::Batch(batch)) => self.take_batch(node, batch, now_s, numbering),
            (Some(_), Message::Probes(probes)) => Ok(Step::Probes(probes)),
            (Some(_), Message::ModelVerdict { version, refused }) => {
                Ok(Step::Verdict { version, refused })
            }
            (Some(_), Message::PolicyVerdict { version, refused }) => {
                Ok(Step::PolicyVerdict { version, refused })
            }
            (Some(_), Message::Settled { boot, before }) => Ok(Step::Settled { boot, before }),
            (_, other) => Err(Refusal::OutOfPlace { kind: other.kind() }),
        }
    }

    fn greet(&mut self, hello: Hello, now_s: f64) -> Result<Step, Refusal> {
        let theirs = hello.protocol;
        let oldest = hello.protocol_oldest.unwrap_or(theirs);
        let spoken = theirs.min(PROTOCOL);
        if spoken < oldest.max(PROTOCOL_OLDEST) {
            return Err(Refusal::Protocol { theirs });
        }
        let ours = SchemaHash::current();
        if hello.schema != ours {
            return Err(Refusal::Schema { theirs: hello.schema, ours });
        }
        if hello.node != self.certified {
            return Err(Refusal::Identity {
                certified: self.certified.clone(),
                claimed: hello.node,
            });
        }
        let off_s = hello.now_s - now_s;
        // A clock that is not a number is off as well.
        if off_s.is_nan() || off_s.abs() > self.clock_skew_s_max {
            return Err(Refusal::Clock { off_s, max_s: self.clock_skew_s_max });
        }
        self.node = Some(hello.node.clone());
        Ok(Step::Welcome(hello, spoken))
    }

    fn define(&mut self, definitions: Definitions) -> Result<Step, Refusal> {
        for (index, workload) in definitions.entries {
            self.workloads.insert((definitions.boot, index), Arc::new(workload));
        }
        if self.workloads.len() > WORKLOADS_MAX {
            Err(Refusal::Workloads)
        } else {
            Ok(Step::Nothing)
        }
    }

    fn take_batch(
        &self,
        node: String,
        batch: Batch,
        now_s: f64,
        numbering: impl Fn(&str, BootId) -> Numbering,
    ) -> Result<Step, Refusal> {
        let (boot, seq) = (batch.boot, batch.seq);
        let mut durable = numbering(&node, boot);
        if durable.contains(seq) {
            return Ok(Step::Repeat { boot, seq });
        }
        if !durable.insert(seq) {
            return Err(Refusal::Gaps { seq });
        }
        let mut contents = match batch.decode() {
            Ok(contents) => contents,
            Err(error) => {
                return Ok(Step::Unreadable { boot, seq, samples: batch.samples(), error });
            }
        };
        let latest_s = now_s + self.clock_skew_s_max;
        let mut workloads: HashMap<u32, Arc<Workload>> = HashMap::new();
        let mut named = |index: u32| -> Option<Arc<Workload>> {
            let workload = self.workloads.get(&(boot, index))?;
            workloads.entry(index).or_insert_with(|| Arc::clone(workload));
            Some(Arc::clone(workload))
        };
        let n_samples = contents.samples.len();
        let actions: Vec<(Workload, AppliedAction)> = contents
            .actions
            .iter()
            .filter(|(_, action)| action.at_s <= latest_s)
            .filter_map(|(index, action)| Some(((*named(*index)?).clone(), action.clone())))
            .collect();
        let decoded = std::mem::take(&mut contents.samples);
        let samples = Samples::from_batch(batch, decoded, latest_s, named);
        contents.forecasts.retain(|(_, forecast)| forecast.origin_t_s <= latest_s);
        let n_dropped = n_samples - samples.len();
        let arrival = Arrival { host: node, number: Some((boot, seq)), samples, actions };
        let delivery = Delivery { arrival, boot, seq, contents, workloads, n_dropped };
        Ok(Step::Arrival(Box::new(delivery)))
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample, Workload, schema::SchemaHash};
    use headroom_wire::{
        BootId, Contents, Hello, Message, Numbering,
        limits::{NUMBER_RANGES_MAX, PROTOCOL, PROTOCOL_OLDEST},
        message::Definitions,
    };

    use super::{Refusal, Session, Step};

    const NOW_S: f64 = 1_000_000.0;

    fn none(_: &str, _: BootId) -> Numbering {
        Numbering::default()
    }

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            schema: SchemaHash::current(),
            node: "n".to_owned(),
            boot: BootId(1),
            agent_version: "0".to_owned(),
            kernel: "6".to_owned(),
            model_version: None,
            now_s: NOW_S,
            protocol_oldest: Some(PROTOCOL_OLDEST),
            policy_version: None,
        }
    }

    fn refused(hello: Hello) -> Refusal {
        Session::new("n".to_owned(), 300.0)
            .on_message(Message::Hello(hello), NOW_S, none)
            .unwrap_err()
    }

    fn greeted() -> Session {
        let mut session = Session::new("n".to_owned(), 300.0);
        session.on_message(Message::Hello(hello()), NOW_S, none).unwrap();
        session
    }

    fn batch(seq: u64, t_s: f64) -> Message {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, 1.0);
        let contents = Contents { samples: vec![(0, sample)], ..Contents::default() };
        Message::Batch(contents.encode(BootId(1), seq).unwrap())
    }

    fn define(session: &mut Session) {
        let entries = vec![(0, Workload::from_path("/x"))];
        let message = Message::Workloads(Definitions { boot: BootId(1), entries });
        session.on_message(message, NOW_S, none).unwrap();
    }

    #[test]
    fn strangers_are_refused_with_the_reason() {
        let schema = SchemaHash([0; 16]);
        assert!(matches!(refused(Hello { schema, ..hello() }), Refusal::Schema { .. }));
        let node = "other".to_owned();
        assert!(matches!(refused(Hello { node, ..hello() }), Refusal::Identity { .. }));
    }

    #[test]
    fn the_newest_protocol_that_both_speak_is_spoken() {
        let cases = [
            (PROTOCOL, Some(PROTOCOL_OLDEST), Some(PROTOCOL)),
            (3, None, Some(3)),
            (2, None, None),
            (PROTOCOL + 2, Some(PROTOCOL), Some(PROTOCOL)),
            (PROTOCOL + 2, Some(PROTOCOL + 1), None),
            (PROTOCOL + 2, None, None),
        ];
        for (protocol, protocol_oldest, expected) in cases {
            let message = Message::Hello(Hello { protocol, protocol_oldest, ..hello() });
            let step = Session::new("n".to_owned(), 300.0).on_message(message, NOW_S, none);
            match (step, expected) {
                (Ok(Step::Welcome(_, spoken)), Some(expected)) => assert_eq!(spoken, expected),
                (Err(refusal), None) => {
                    assert_eq!(refusal, Refusal::Protocol { theirs: protocol });
                    assert!(refusal.to_string().contains("of the same release"), "{refusal}");
                }
                (other, _) => panic!("{protocol}: {other:?}"),
            }
        }
    }

    #[test]
    fn clocks_may_differ_up_to_the_bound() {
        for off_s in [-300.0, 0.0, 300.0] {
            let message = Message::Hello(Hello { now_s: NOW_S + off_s, ..hello() });
            assert!(Session::new("n".to_owned(), 300.0).on_message(message, NOW_S, none).is_ok());
        }
        for off_s in [-301.0, 301.0, f64::NAN, f64::INFINITY] {
            let refusal = refused(Hello { now_s: NOW_S + off_s, ..hello() });
            assert_eq!(refusal.kind(), "clock");
        }
    }

    #[test]
    fn nothing_is_taken_before_the_hello_and_no_second_hello() {
        let mut session = Session::new("n".to_owned(), 300.0);
        let early = session.on_message(batch(1, NOW_S), NOW_S, none);
        assert_eq!(early.unwrap_err(), Refusal::OutOfPlace { kind: "batch" });
        let again = greeted().on_message(Message::Hello(hello()), NOW_S, none);
        assert_eq!(again.unwrap_err(), Refusal::OutOfPlace { kind: "hello" });
    }

    #[test]
    fn repeats_are_told_by_life_and_number() {
        let mut session = greeted();
        define(&mut session);
        let mut numbering = Numbering::up_to(4);
        assert!(numbering.insert(6));
        let durable = |_: &str, boot| {
            if boot == BootId(1) { numbering.clone() } else { Numbering::default() }
        };
        for (seq, repeat) in [(3, true), (4, true), (5, false), (6, true), (7, false)] {
            let step = session.on_message(batch(seq, NOW_S), NOW_S, durable).unwrap();
            assert_eq!(matches!(step, Step::Repeat { .. }), repeat, "{seq}");
        }
    }

    #[test]
    fn gaps_without_bound_end_the_connection() {
        let mut session = greeted();
        let mut numbering = Numbering::default();
        assert!((1..=NUMBER_RANGES_MAX as u64).all(|i| numbering.insert(3 * i)));
        let seq = 1_000_000;
        let step = session.on_message(batch(seq, NOW_S), NOW_S, |_, _| numbering.clone());
        assert_eq!(step.unwrap_err(), Refusal::Gaps { seq });
    }

    #[test]
    fn samples_of_no_workload_or_of_the_future_are_dropped_and_counted() {
        let mut session = greeted();
        for (define_first, t_s, expected) in
            [(false, NOW_S, (0, 1)), (true, NOW_S + 400.0, (0, 1)), (true, NOW_S, (1, 0))]
        {
            if define_first {
                define(&mut session);
            }
            let Step::Arrival(delivery) = session.on_message(batch(1, t_s), NOW_S, none).unwrap()
            else {
                panic!("not an arrival")
            };
            assert_eq!((delivery.arrival.samples.len(), delivery.n_dropped), expected);
        }
    }
}
