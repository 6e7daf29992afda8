//! How long before its effect a change has to be decided here, as the running agent measured it.

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::app::{
    latency::DurationSummary,
    status::{self, Status},
};

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let asked = status::ask(&config.agent_socket).map_err(|error| {
        let socket = config.agent_socket.display();
        format!("measured by a running agent, and none answers on {socket}: {error}")
    });
    findings(asked.as_ref())
}

/// One finding per knob that was changed, and one on starts; one on all where there is none.
fn findings(asked: Result<&Status, &String>) -> Vec<Finding> {
    let finding = |name: String, state| Finding::new(Area::Acting, name, state, "");
    let status = match asked {
        Ok(status) => status,
        Err(reason) => return vec![finding("lead times".to_owned(), Fact::unknown(reason))],
    };
    let mut findings: Vec<Finding> = Vec::new();
    for (knob, lead) in &status.lead_times {
        findings.extend(said(lead).map(|said| finding(knob.to_string(), Fact::Known(said))));
    }
    if findings.is_empty() {
        let why = "the running agent has not changed anything yet";
        findings.push(finding("lead times".to_owned(), Fact::unknown(why)));
    }
    let starts = said(&status.starts.start_to_write).map_or_else(
        || Fact::unknown("no program that it knows has started since the agent did"),
        Fact::Known,
    );
    findings.push(finding("start of a known program".to_owned(), starts));
    findings
}

/// `None` while nothing was measured.
fn said(lead: &DurationSummary) -> Option<String> {
    let (p50_s, p99_s) = (lead.p50_s?, lead.p99_s?);
    let (p50_ms, p99_ms) = (p50_s * 1e3, p99_s * 1e3);
    Some(format!("median {p50_ms:.1} ms, 99 % {p99_ms:.1} ms, {} changes", lead.count))
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Knob;

    use super::findings;
    use crate::app::{latency::Durations, status::Status};

    #[test]
    fn what_was_not_measured_is_unknown_with_the_reason() {
        let reason = "nobody answers".to_owned();
        let [finding] = &findings(Err(&reason))[..] else { panic!("one finding") };
        assert_eq!(finding.state.reason(), Some("nobody answers"));
        let mut status = Status::default();
        assert!(findings(Ok(&status)).iter().all(|finding| finding.state.reason().is_some()));
        let mut lead = Durations::default();
        lead.push(0.004);
        status.lead_times.insert(Knob::CpuQuota, lead.summary());
        let found = findings(Ok(&status));
        assert_eq!((found.len(), found[0].name.as_str()), (2, "cpu_quota"));
        assert!(found[0].state.to_string().contains("median 4.0 ms"));
    }
}
