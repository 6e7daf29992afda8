//! Which carrier is tried next: QUIC wherever it gets through. Pure.

use serde::{Deserialize, Serialize};

use crate::reach::Carrier;

/// What carries the connection to the aggregator.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC, and TLS over TCP where UDP does not get through.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tcp,
}

impl Transport {
    /// As it is written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }

    /// Whether `carrier` may be used.
    pub fn allows(self, carrier: Carrier) -> bool {
        match self {
            Self::Auto => true,
            Self::Quic => carrier == Carrier::Quic,
            Self::Tcp => carrier == Carrier::Tcp,
        }
    }
}

/// What was learned about the way.
#[derive(Debug)]
pub(super) struct Road {
    setting: Transport,
    quic_again_s: f64,
    /// Since when QUIC is known not to get through while TCP does, seconds of the clock passed in.
    quic_blocked_s: Option<f64>,
}

impl Road {
    pub(super) fn new(setting: Transport, quic_again_s: f64) -> Self {
        Self { setting, quic_again_s, quic_blocked_s: None }
    }

    /// The carrier to begin with.
    pub(super) fn first(&self, now_s: f64) -> Carrier {
        match self.setting {
            Transport::Tcp => Carrier::Tcp,
            Transport::Auto if self.is_known_blocked(now_s) => Carrier::Tcp,
            Transport::Auto | Transport::Quic => Carrier::Quic,
        }
    }

    pub(super) fn may_take(&self, carrier: Carrier) -> bool {
        self.setting.allows(carrier)
    }

    /// A connection by `carrier` was accepted.
    pub(super) fn arrived(&mut self, carrier: Carrier, now_s: f64) {
        self.quic_blocked_s = match carrier {
            Carrier::Quic => None,
            Carrier::Tcp => Some(self.quic_blocked_s.unwrap_or(now_s)),
        };
    }

    /// QUIC was tried beside TCP, and did not get through.
    pub(super) fn quic_failed(&mut self, now_s: f64) {
        self.quic_blocked_s = Some(now_s);
    }

    /// No carrier got through: what was known of one says nothing any more.
    pub(super) fn lost(&mut self) {
        self.quic_blocked_s = None;
    }

    /// Whether to try, beside a connection over TCP, if QUIC gets through by now.
    pub(super) fn is_quic_due(&self, now_s: f64) -> bool {
        self.setting == Transport::Auto
            && self.quic_blocked_s.is_some()
            && !self.is_known_blocked(now_s)
    }

    /// A clock that was set back makes what was learned old, not everlasting.
    fn is_known_blocked(&self, now_s: f64) -> bool {
        self.quic_blocked_s
            .is_some_and(|since_s| (0.0..self.quic_again_s).contains(&(now_s - since_s)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Road, Transport};
    use crate::reach::Carrier;

    #[test]
    fn what_got_through_is_taken_first_until_quic_is_due_again() {
        let mut road = Road::new(Transport::Auto, 600.0);
        assert_eq!(road.first(0.0), Carrier::Quic);
        assert!(!road.is_quic_due(0.0), "there is no TCP to go back from");
        road.arrived(Carrier::Tcp, 100.0);
        assert_eq!(road.first(150.0), Carrier::Tcp);
        assert!(!road.is_quic_due(699.0) && road.is_quic_due(700.0));
        road.quic_failed(701.0);
        assert!(!road.is_quic_due(1_300.0) && road.is_quic_due(1_302.0));
        road.arrived(Carrier::Quic, 1_302.0);
        assert!(!road.is_quic_due(9_999.0));
        assert_eq!(road.first(9_999.0), Carrier::Quic);
    }

    #[test]
    fn a_tcp_connection_made_again_does_not_put_quic_off() {
        let mut road = Road::new(Transport::Auto, 600.0);
        road.arrived(Carrier::Tcp, 100.0);
        road.arrived(Carrier::Tcp, 650.0);
        assert!(road.is_quic_due(700.0));
    }

    #[test]
    fn where_nothing_gets_through_both_are_tried_anew() {
        let mut road = Road::new(Transport::Auto, 600.0);
        road.arrived(Carrier::Tcp, 100.0);
        road.lost();
        assert_eq!(road.first(110.0), Carrier::Quic);
    }

    #[test]
    fn a_clock_set_back_does_not_bind_to_tcp() {
        let mut road = Road::new(Transport::Auto, 600.0);
        road.arrived(Carrier::Tcp, 1.0e9);
        assert!(road.is_quic_due(1.0e6));
    }

    #[test]
    fn a_setting_leaves_no_choice() {
        let mut tcp = Road::new(Transport::Tcp, 600.0);
        tcp.arrived(Carrier::Tcp, 0.0);
        assert!(!tcp.is_quic_due(1.0e6) && !tcp.may_take(Carrier::Quic));
        assert_eq!(tcp.first(0.0), Carrier::Tcp);
        let quic = Road::new(Transport::Quic, 600.0);
        assert!(quic.may_take(Carrier::Quic) && !quic.may_take(Carrier::Tcp));
    }
}
