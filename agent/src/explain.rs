//! `headroom-agent explain`: what was decided for a workload, why, and what followed, from the
//! audit trail.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use headroom_allocate::{Followed, Knob, Limit};
use headroom_telemetry::printable;
use serde::Serialize;

use crate::{
    app::audit::{AuditRecord, Outcome, read},
    config::AgentConfig,
    snapshot::unix_s,
};

/// Workloads named when the one asked for is not in the trail.
const NEAREST_SHOWN: usize = 3;

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// The workload: its cgroup path, or the end of it
    workload: String,
    /// The moment, seconds since the Unix epoch; with a minus, so many seconds ago [default: now]
    #[arg(long, allow_hyphen_values = true)]
    at: Option<f64>,
    /// Configuration of the agent, which names the trail
    #[arg(long)]
    config: Option<PathBuf>,
    /// The trail itself, instead of the one in the configuration
    #[arg(long, conflicts_with = "config")]
    trail: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What is known of one workload at one moment.
#[derive(Debug, Serialize)]
struct Account {
    workload: String,
    at_s: f64,
    knobs: Vec<KnobAccount>,
    /// Where the trail has been tampered with or damaged.
    breaks: Vec<String>,
}

/// What is known of one knob.
#[derive(Debug, Serialize)]
struct KnobAccount {
    knob: Knob,
    /// The last decision that was carried out, refused or undone.
    last_act: Option<AuditRecord>,
    /// What that act led to; null while that is not known.
    followed: Option<Followed>,
    /// The decisions not to act that the moment falls into, or the last ones before it.
    kept: Option<AuditRecord>,
}

/// Explains.
///
/// # Errors
/// When there is no trail, or the workload is not in it.
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let path = match &args.trail {
        Some(path) => path.clone(),
        None => AgentConfig::load(args.config.as_deref())?
            .audit
            .file
            .context("the configuration names no trail: set audit.file, or give --trail")?,
    };
    let trail =
        read::read(&path).with_context(|| format!("read the audit trail {}", path.display()))?;
    let at_s = match args.at {
        None => unix_s(),
        Some(ago) if ago < 0.0 => unix_s() + ago,
        Some(at) => at,
    };
    let workload = find(&trail.records, &args.workload, &path)?;
    let knobs = account(&trail.records, &workload, at_s);
    let account = Account { workload, at_s, knobs, breaks: trail.breaks };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&account)?);
    } else {
        print!("{}", tell(&account));
    }
    Ok(())
}

/// The path of the one workload of the trail that is asked for.
fn find(records: &[AuditRecord], asked: &str, path: &Path) -> anyhow::Result<String> {
    let mut known: Vec<&str> =
        records.iter().map(|record| record.decision.workload.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    if known.contains(&asked) {
        return Ok(asked.to_owned());
    }
    let found: Vec<&str> = known.iter().copied().filter(|known| known.ends_with(asked)).collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => {
            let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
            known.sort_by_key(|known| strsim::damerau_levenshtein(&last(known), &last(asked)));
            known.truncate(NEAREST_SHOWN);
            let known: Vec<_> = known.into_iter().map(printable).collect();
            bail!(
                "{}: no decision about {asked:?}; nearest are: {}",
                path.display(),
                if known.is_empty() { "none, the trail is empty".into() } else { known.join(", ") }
            )
        }
        _ => bail!("{asked:?} could be any of {}; give more of the path", found.join(", ")),
    }
}

fn account(records: &[AuditRecord], workload: &str, at_s: f64) -> Vec<KnobAccount> {
    let of_workload = || records.iter().filter(|record| record.decision.workload == workload);
    let knobs = Knob::ALL
        .into_iter()
        .filter(|knob| of_workload().any(|record| record.decision.knob == *knob));
    knobs
        .map(|knob| {
            let mut found = KnobAccount { knob, last_act: None, followed: None, kept: None };
            for record in of_workload().filter(|record| record.decision.knob == knob) {
                let decided_s = record.decision.t_s;
                match &record.outcome {
                    Outcome::Kept { since_s, .. } if *since_s <= at_s => {
                        found.kept = Some(record.clone());
                    }
                    Outcome::Kept { .. } => {}
                    Outcome::Followed(followed) => {
                        let is_of_last = found
                            .last_act
                            .as_ref()
                            .is_some_and(|act| act.decision.t_s.total_cmp(&decided_s).is_eq());
                        if is_of_last {
                            found.followed = Some(*followed);
                        }
                    }
                    _ if decided_s <= at_s => {
                        (found.last_act, found.followed) = (Some(record.clone()), None);
                    }
                    _ => {}
                }
            }
            found
        })
        .collect()
}

fn tell(account: &Account) -> String {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "{args}");
    };
    line(format_args!("{}", printable(&account.workload)));
    for KnobAccount { knob, last_act, followed, kept } in &account.knobs {
        let unit = knob.unit();
        let show = |limit: &Limit| match limit {
            Limit::At(amount) => format!("{amount:.3} {unit}"),
            Limit::Unlimited => "no limit".to_owned(),
        };
        line(format_args!("  {knob}"));
        match last_act {
            None => line(format_args!("    never changed")),
            Some(AuditRecord { decision, outcome }) => {
                let ago = ago(account.at_s - decision.t_s);
                let what = match outcome {
                    Outcome::Applied { before, applied, baseline, clamped_by, .. } => {
                        let clamp = clamped_by.as_ref();
                        let clamp = clamp.map(|rule| format!(", clamped by {rule}"));
                        format!(
                            "{} -> {} (its own limit: {}){}",
                            show(before),
                            show(applied),
                            show(baseline),
                            clamp.unwrap_or_default()
                        )
                    }
                    Outcome::Released { .. } => "its own limit was given back".to_owned(),
                    Outcome::Reclaimed { asked_bytes, before_bytes, after_bytes, .. } => format!(
                        "{asked_bytes:.0} bytes asked back: {before_bytes:.0} -> {after_bytes:.0} \
                         in use"
                    ),
                    Outcome::Lost(reason) => format!("the lease ended: {reason}"),
                    Outcome::Failed(reason) => format!("not carried out: {reason}"),
                    Outcome::Kept { .. } | Outcome::Followed(_) => String::new(),
                };
                line(format_args!("    {ago}: {what}"));
                line(format_args!("      because {}", decision.reason));
            }
        }
        if let Some(followed) = followed {
            line(format_args!("      then: {}", told(followed, unit)));
        }
        if let Some(AuditRecord { decision, outcome: Outcome::Kept { since_s, decisions } }) = kept
        {
            let since = ago(account.at_s - since_s);
            line(format_args!(
                "    kept at {} since {since}, {decisions} times",
                show(&decision.current)
            ));
            line(format_args!("      because {}", decision.reason));
        }
    }
    for broken in &account.breaks {
        line(format_args!("the trail is not whole: {broken}"));
    }
    text
}

fn told(followed: &Followed, unit: &str) -> String {
    let mut text = format!("{:?} within {:.0} s", followed.verdict, followed.watched_s);
    let mut add = |part: String| text.push_str(&part);
    if let Some(peak) = followed.peak_use {
        add(format!(", at most {peak:.3} {unit} used"));
    }
    if let Some(ratio) = followed.throttled_ratio {
        add(format!(", throttled {:.1} % of the time", 100.0 * ratio));
    }
    if let Some(ratio) = followed.memory_pressure {
        add(format!(", short of memory {:.1} % of the time", 100.0 * ratio));
    }
    if followed.hurt {
        add("; its own limit would have spared it that".to_owned());
    }
    text
}

fn ago(seconds: f64) -> String {
    match seconds {
        s if s < 0.0 => format!("{:.0} s later", -s),
        s if s < 120.0 => format!("{s:.0} s before"),
        s if s < 7_200.0 => format!("{:.0} min before", s / 60.0),
        s => format!("{:.1} h before", s / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Action, Decision, Followed, Knob, Limit, Rail, Reason, Verdict};
    use headroom_predict::Source;

    use super::{Account, account, find, tell};
    use crate::app::audit::{AuditRecord, Outcome};

    fn record(workload: &str, t_s: f64, outcome: Outcome) -> AuditRecord {
        let reason = Reason {
            usage: Some(0.4),
            demand: 0.9,
            level: 0.99,
            within_s: 5.0,
            margin: 0.1,
            rail: Rail::Ceiling,
            source: Source::Model(7),
            ancestor: None,
        };
        let decision = Decision {
            workload: workload.to_owned(),
            knob: Knob::CpuQuota,
            t_s,
            current: Limit::At(0.5),
            action: Action::Keep,
            reason,
        };
        AuditRecord { decision, outcome }
    }

    fn applied(before: f64, applied: f64) -> Outcome {
        Outcome::Applied {
            before: Limit::At(before),
            baseline: Limit::At(2.0),
            applied: Limit::At(applied),
            holds: true,
            clamped_by: Some("step".to_owned()),
            at_unix_s: 0.0,
            latency_s: 0.01,
        }
    }

    fn followed(decided_s: f64) -> Outcome {
        Outcome::Followed(Followed {
            knob: Knob::CpuQuota,
            decided_s,
            watched_s: 15.0,
            peak_use: Some(0.8),
            throttled_ratio: Some(0.25),
            memory_pressure: None,
            verdict: Verdict::Throttled,
            hurt: true,
        })
    }

    fn records() -> Vec<AuditRecord> {
        vec![
            record("/a/b.service", 10.0, applied(0.5, 1.0)),
            record("/a/b.service", 10.0, followed(10.0)),
            record("/a/b.service", 40.0, Outcome::Kept { since_s: 11.0, decisions: 30 }),
            record("/a/b.service", 50.0, applied(1.0, 0.7)),
            record("/a/c.service", 60.0, Outcome::Released { at_unix_s: 60.1 }),
        ]
    }

    #[test]
    fn the_account_is_of_the_moment_asked_for() {
        let at = |at_s| account(&records(), "/a/b.service", at_s).remove(0);
        let early = at(20.0);
        assert!((early.last_act.unwrap().decision.t_s - 10.0).abs() < 1e-12);
        assert_eq!(early.followed.unwrap().verdict, Verdict::Throttled);
        assert!(early.kept.is_some());
        let late = at(55.0);
        assert!((late.last_act.unwrap().decision.t_s - 50.0).abs() < 1e-12);
        assert_eq!(late.followed, None, "what the earlier act led to is not of the later");
        assert!(at(5.0).last_act.is_none());
    }

    #[test]
    fn a_person_reads_what_was_done_why_and_what_followed() {
        let (at_s, workload) = (20.0, "/a/b.service".to_owned());
        let knobs = account(&records(), &workload, at_s);
        let text = tell(&Account { workload, at_s, knobs, breaks: vec!["x, line 3".to_owned()] });
        for part in [
            "10 s before: 0.500 cores -> 1.000 cores (its own limit: 2.000 cores), clamped by step",
            "model v7 expects 0.9000 at 99 % within 5 s",
            "Throttled within 15 s, at most 0.800 cores used, throttled 25.0 % of the time",
            "its own limit would have spared it that",
            "not whole: x, line 3",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_workload_is_found_by_the_end_of_its_path_and_a_slip_is_answered() {
        let path = std::path::Path::new("t");
        assert_eq!(find(&records(), "b.service", path).unwrap(), "/a/b.service");
        let ambiguous = find(&records(), ".service", path).unwrap_err().to_string();
        assert!(ambiguous.contains("/a/b.service, /a/c.service"), "{ambiguous}");
        let unknown = find(&records(), "b.servise", path).unwrap_err().to_string();
        assert!(unknown.contains("nearest are: /a/b.service"), "{unknown}");
    }
}
