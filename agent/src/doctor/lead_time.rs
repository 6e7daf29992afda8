//! How long before its effect a change has to be decided here, as the running agent measured it.

use headroom_allocate::Knob;
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

fn findings(asked: Result<&Status, &String>) -> Vec<Finding> {
    let of = |knob: Knob| {
        let state = match asked {
            Err(reason) => Fact::unknown(reason),
            Ok(status) => status.lead_times.get(&knob).and_then(said).map_or_else(
                || Fact::unknown("the running agent has not changed it yet"),
                Fact::Known,
            ),
        };
        Finding::new(Area::Acting, format!("lead time of {knob}"), state, "")
    };
    let starts = match asked {
        Err(reason) => Fact::unknown(reason),
        Ok(status) => said(&status.starts.start_to_write).map_or_else(
            || Fact::unknown("no program that it knows has started since the agent did"),
            Fact::Known,
        ),
    };
    let mut findings: Vec<Finding> = Knob::ALL.into_iter().map(of).collect();
    findings.push(Finding::new(Area::Acting, "start of a known program to limit", starts, ""));
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
        for finding in findings(Err(&reason)) {
            assert_eq!(finding.state.reason(), Some("nobody answers"));
        }
        let mut lead = Durations::default();
        lead.push(0.004);
        let mut status = Status::default();
        status.lead_times.insert(Knob::CpuQuota, lead.summary());
        let found = findings(Ok(&status));
        let of = |name: &str| found.iter().find(|found| found.name.ends_with(name)).unwrap();
        assert!(of("cpu_quota").state.to_string().contains("median 4.0 ms"));
        assert!(of("memory_max").state.reason().unwrap().contains("not changed"));
    }
}
