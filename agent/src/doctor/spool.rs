//! For how long what is told can wait on disk while the aggregator is away, by what the running agent
//! sends.

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::app::status::{self, Status, UplinkStatus};

const DAY_S: f64 = 86_400.0;
/// An agent that runs for less has hardly sent what is usual for it, seconds.
const USUAL_S: f64 = 60.0;

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let state = match status::ask(&config.agent_socket) {
        Ok(status) => match &status.uplink {
            Some(uplink) => judge(&status, uplink, status.workloads.len()),
            None => Fact::absent("no [uplink] in the configuration: the agent works alone"),
        },
        Err(error) => {
            let socket = config.agent_socket.display();
            Fact::unknown(format!(
                "known by a running agent, and none answers on {socket}: {error}"
            ))
        }
    };
    let gain = "samples of an absence of the aggregator: [uplink] spool_dir and spool_bytes_max";
    vec![Finding::new(Area::Aggregator, "absence bridged", state, gain)]
}

fn judge(status: &Status, uplink: &UplinkStatus, n_workloads: usize) -> Fact<String> {
    let Some(bytes_max) = uplink.spool_bytes_max else {
        return Fact::absent("no spool_dir in [uplink]: what is told waits in memory, for minutes");
    };
    #[expect(clippy::cast_precision_loss, reason = "sizes of files")]
    let bytes_max = bytes_max as f64;
    let Some(bytes_per_day) = bytes_per_day(status, uplink, n_workloads) else {
        return Fact::unknown("the running agent has not sent enough yet to tell");
    };
    let whole = bytes_max / bytes_per_day;
    // A sample every ten seconds, then every minute: the rest of the time is bridged by those.
    let said = format!(
        "{} as measured, about {} at a sample a minute, in {:.0} MiB",
        span(whole),
        span(whole * 60.0),
        bytes_max / 1_048_576.0
    );
    if whole * 60.0 < 7.0 {
        return Fact::Degraded(said, "less than a week: raise [uplink] spool_bytes_max".to_owned());
    }
    Fact::Known(said)
}

/// Bytes that a day of this host's workloads takes; `None` before it can be told.
fn bytes_per_day(status: &Status, uplink: &UplinkStatus, n_workloads: usize) -> Option<f64> {
    let running_s = status.t_s - status.started_s;
    if running_s < USUAL_S || uplink.sent_vectors == 0 || n_workloads == 0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of samples and bytes")]
    let (bytes, vectors, ticks, workloads) = (
        uplink.sent_bytes as f64,
        uplink.sent_vectors as f64,
        status.ticks as f64,
        n_workloads as f64,
    );
    let per_day = bytes / vectors * workloads * ticks / running_s * DAY_S;
    (per_day > 0.0).then_some(per_day)
}

fn span(days: f64) -> String {
    if days < 1.0 { format!("{:.1} hours", days * 24.0) } else { format!("{days:.1} days") }
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::app::status::{Status, UplinkStatus};

    #[test]
    fn days_on_disk_follow_from_what_was_sent() {
        let status = Status { t_s: 1_000.0, ticks: 1_000, ..Status::default() };
        let mut uplink = UplinkStatus::default();
        assert!(judge(&status, &uplink, 10).reason().unwrap().contains("spool_dir"));
        uplink.spool_bytes_max = Some(64 << 20);
        assert!(judge(&status, &uplink, 10).reason().unwrap().contains("not sent enough"));
        (uplink.sent_vectors, uplink.sent_bytes) = (10_000, 80_000);
        // 10 workloads of 8 bytes a second are 6.9 MB a day.
        let told = judge(&status, &uplink, 10);
        assert!(told.shortfall().is_none(), "{told}");
        assert!(told.to_string().contains("9.7 days as measured"), "{told}");
        uplink.sent_bytes *= 100;
        let told = judge(&status, &uplink, 10);
        assert!(told.shortfall().unwrap().contains("spool_bytes_max"), "{told}");
        assert!(told.to_string().contains("2.3 hours as measured"), "{told}");
    }
}
