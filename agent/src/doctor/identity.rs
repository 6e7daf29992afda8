//! How long the agent's certificate still is valid, as the running agent knows it.

use std::time::{SystemTime, UNIX_EPOCH};

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::{app::status, uplink::CertificateState};

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let now_s =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let state = match status::ask(&config.agent_socket) {
        Ok(status) => match &status.uplink {
            Some(uplink) => judge(&uplink.certificate, now_s),
            None => Fact::absent("no [uplink] in the configuration: the agent works alone"),
        },
        Err(error) => {
            let socket = config.agent_socket.display();
            Fact::unknown(format!(
                "known by a running agent, and none answers on {socket}: {error}"
            ))
        }
    };
    let gain = "history, models and the fleet's view: `headroom-agent join` gets a certificate";
    vec![Finding::new(Area::Aggregator, "certificate", state, gain)]
}

fn judge(certificate: &CertificateState, now_s: f64) -> Fact<String> {
    let fault = certificate.fault.as_deref();
    let Some(days) = certificate.days_left(now_s) else {
        return Fact::unknown(fault.unwrap_or("the running agent has not read it"));
    };
    if days <= 0.0 {
        let reason =
            format!("it ended {:.1} days ago: {}", -days, fault.unwrap_or("renewal is off"));
        return Fact::absent(reason);
    }
    let said = format!("{days:.1} days left");
    match (certificate.is_late(now_s), fault) {
        (true, fault) => {
            let why = fault.unwrap_or("renewal is off, or the aggregator is away");
            Fact::Degraded(said, format!("less than a third of its life: {why}"))
        }
        (false, Some(fault)) => Fact::Degraded(said, fault.to_owned()),
        (false, None) => Fact::Known(said),
    }
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::uplink::CertificateState;

    #[test]
    fn a_certificate_is_known_degraded_ended_or_unknown() {
        let state = CertificateState {
            valid_s: Some((0.0, 86_400.0 * 3.0)),
            ..CertificateState::default()
        };
        let fresh = judge(&state, 86_400.0);
        assert_eq!(fresh.known().map(String::as_str), Some("2.0 days left"));
        assert!(fresh.shortfall().is_none());
        let late = judge(&state, 86_400.0 * 2.5);
        assert!(late.shortfall().unwrap().contains("third"), "{late}");
        let faulty = CertificateState { fault: Some("no answer".to_owned()), ..state.clone() };
        assert_eq!(judge(&faulty, 86_400.0).shortfall(), Some("no answer"));
        assert!(judge(&state, 86_400.0 * 4.0).reason().unwrap().contains("1.0 days ago"));
        assert!(judge(&CertificateState::default(), 0.0).reason().is_some());
    }
}
