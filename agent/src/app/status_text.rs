//! The status for people.

use std::fmt;

use headroom_allocate::Limit;
use headroom_telemetry::{Resource, printable};

use super::{
    latency::DurationSummary,
    status::{PacingStatus, Status, WorkloadStatus},
};

/// Workloads that are named as paced at most.
const PACED_SHOWN: usize = 4;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "headroom-agent {} on {}: {} ticks", self.version, self.node, self.ticks)?;
        let cpu = self.cpu_cores.map_or("?".to_owned(), |cores| format!("{:.2} %", cores * 100.0));
        let memory = self
            .memory_bytes
            .map_or("?".to_owned(), |b| format!("{:.1} MiB", b as f64 / 1048576.0));
        writeln!(
            f,
            "cost      {cpu} of a core, {memory} resident, {} late ticks",
            self.late_ticks
        )?;
        writeln!(f, "sample    {}", duration(self.sample))?;
        writeln!(f, "predict   {} per workload", duration(self.predict_per_workload))?;
        writeln!(f, "act       {} from sample to write", duration(self.sample_to_write))?;
        let knobs =
            self.lead_times.iter().map(|(knob, lead)| format!("{knob} {}", duration(*lead)));
        let knobs: Vec<String> = knobs.collect();
        if !knobs.is_empty() {
            writeln!(f, "lead time {}", knobs.join("; "))?;
        }
        writeln!(
            f,
            "starts    {} programs known, {} of their starts seen, {} from start to write",
            self.starts.programs,
            self.starts.known,
            duration(self.starts.start_to_write)
        )?;
        writeln!(f, "guard     {}", self.guard)?;
        if !self.actions.is_empty() {
            let counts: Vec<String> =
                self.actions.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            writeln!(f, "actions   {}", counts.join(", "))?;
        }
        if let Some(pacing) = &self.pacing {
            writeln!(f, "pacing    {}", pacing_text(pacing))?;
        }
        for line in &self.competing {
            writeln!(f, "competing {}", printable(line))?;
        }
        writeln!(f, "policy    {}", self.policy)?;
        match self.model_version {
            Some(version) => writeln!(f, "model     v{version}")?,
            None => writeln!(f, "model     none: the base layer forecasts alone")?,
        }
        for (reason, count) in &self.models_refused {
            writeln!(f, "refused   {count} model(s): {reason}")?;
        }
        uplink_lines(f, self)?;
        writeln!(f, "\nsources of facts")?;
        for probe in &self.probes {
            let text = probe.state.to_string();
            writeln!(f, "  {:<14} {}", printable(&probe.name), printable(&text))?;
        }
        workload_table(f, &self.workloads)
    }
}

fn pacing_text(pacing: &PacingStatus) -> String {
    let rate = |(path, limit): &(String, Limit)| match limit {
        Limit::At(bytes_per_s) => format!("{} to {:.2} MB/s", printable(path), bytes_per_s / 1e6),
        Limit::Unlimited => format!("{} to no rate", printable(path)),
    };
    let shown: Vec<String> = pacing.paced.iter().take(PACED_SHOWN).map(rate).collect();
    let mut text = printable(&pacing.state).into_owned();
    if !shown.is_empty() {
        text += &format!("; {} held back: {}", pacing.paced.len(), shown.join(", "));
    }
    if pacing.paced.len() > shown.len() {
        text += &format!(" and {} more", pacing.paced.len() - shown.len());
    }
    text
}

fn uplink_lines(f: &mut fmt::Formatter<'_>, status: &Status) -> fmt::Result {
    let Some(uplink) = &status.uplink else {
        return writeln!(f, "uplink    absent (no [uplink] in the configuration)");
    };
    let state = match (uplink.connected, uplink.carrier) {
        (false, _) => "not connected".to_owned(),
        (true, Some(carrier)) => format!("connected by {carrier}"),
        (true, None) => "connected".to_owned(),
    };
    write!(f, "uplink    {state}, {} vectors in {} bytes", uplink.sent_vectors, uplink.sent_bytes)?;
    if uplink.last_error.is_empty() {
        writeln!(f)?;
    } else {
        writeln!(f, "; last error: {}", uplink.last_error)?;
    }
    if uplink.spool_bytes > 0 || uplink.dropped > 0 || uplink.thinned > 0 {
        let waiting_mib = uplink.spool_bytes as f64 / 1048576.0;
        let (thinned, dropped) = (uplink.thinned, uplink.dropped);
        writeln!(
            f,
            "spool     {waiting_mib:.1} MiB wait on disk, {thinned} samples thinned, {dropped} dropped"
        )?;
    }
    let certificate = &uplink.certificate;
    match certificate.days_left(status.t_s) {
        Some(days) => {
            let late = if certificate.is_late(status.t_s) { ", degraded" } else { "" };
            write!(f, "identity  certificate for {days:.1} more days{late}")?;
        }
        None => write!(f, "identity  unknown")?,
    }
    match &certificate.fault {
        Some(fault) => writeln!(f, "; {fault}"),
        None => writeln!(f),
    }
}

fn workload_table(f: &mut fmt::Formatter<'_>, workloads: &[WorkloadStatus]) -> fmt::Result {
    writeln!(
        f,
        "\n{:<44} {:>8} {:>10} {:>8} {:<10} limits",
        "workload", "cpu", "memory", "cpu p99", "source"
    )?;
    for row in workloads {
        let number = |value: Option<f64>, scale: f64, unit: &str| {
            value.map_or("-".to_owned(), |value| format!("{:.2}{unit}", value / scale))
        };
        let limits: Vec<String> = row
            .limits
            .iter()
            .filter_map(|(knob, limit)| match (limit, knob.resource()) {
                (Limit::Unlimited, _) => None,
                (Limit::At(at), Some(Resource::Memory)) => {
                    Some(format!("{knob} {:.0} MiB", at / 1048576.0))
                }
                (Limit::At(at), _) => Some(format!("{knob} {at:.2}")),
            })
            .collect();
        writeln!(
            f,
            "{:<44} {:>8} {:>10} {:>8} {:<10} {}",
            printable(&row.path),
            number(row.cpu_cores, 1.0, ""),
            number(row.memory_bytes, 1048576.0, " MiB"),
            number(row.cpu_p99_cores, 1.0, ""),
            row.source.as_ref().map_or("-".to_owned(), ToString::to_string),
            limits.join(", ")
        )?;
    }
    Ok(())
}

fn duration(summary: DurationSummary) -> String {
    match (summary.p50_s, summary.p99_s) {
        (Some(p50), Some(p99)) => {
            format!("median {:.3} ms, 99 % {:.3} ms", p50 * 1e3, p99 * 1e3)
        }
        _ => "not yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Limit;

    use super::{PacingStatus, Status};

    fn line(pacing: Option<PacingStatus>) -> Option<String> {
        let text = Status { pacing, ..Status::default() }.to_string();
        text.lines().find_map(|line| line.strip_prefix("pacing    ")).map(str::to_owned)
    }

    #[test]
    fn pacing_is_told_with_its_reason_or_with_who_is_paced() {
        assert_eq!(line(None), None);
        let off = PacingStatus { state: "absent (it is off)".to_owned(), paced: Vec::new() };
        assert_eq!(line(Some(off)).unwrap(), "absent (it is off)");
        let paced = (0..6).map(|n| (format!("/batch-{n}"), Limit::At(1.5e6))).collect();
        let told = line(Some(PacingStatus { state: "on eth0".to_owned(), paced })).unwrap();
        assert!(
            told.starts_with("on eth0; 6 held back: /batch-0 to 1.50 MB/s, /batch-1"),
            "{told}"
        );
        assert!(told.ends_with("/batch-3 to 1.50 MB/s and 2 more"), "{told}");
    }
}
