//! `headroom-agent policy check`: what a policy file says, before an agent acts by it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use headroom_allocate::{KnobKind, Mode, Policy, WorkloadPolicy};
use headroom_telemetry::{Glob, Workload, printable};
use serde::Serialize;

use crate::{
    config::ConfigError,
    observe::{
        ObserveConfig, Sampler,
        annotations::{self, Notes},
    },
    snapshot::unix_s,
};

/// Arguments of `policy check`.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// The policy file
    file: PathBuf,
    /// Tell what holds for this workload (a cgroup path), and not for all of this host; may be
    /// given again
    #[arg(long)]
    workload: Vec<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What a file says.
#[derive(Debug, Serialize)]
struct Explained {
    defaults: WorkloadPolicy,
    rules: Vec<Rule>,
    deny: Vec<Glob>,
    workloads: Vec<Applied>,
    /// Why the workloads of this host are not told, if they are not.
    no_workloads: Option<String>,
}

#[derive(Debug, Serialize)]
struct Rule {
    pattern: Glob,
    policy: WorkloadPolicy,
    /// How many of the workloads told it decides for.
    decides_for: usize,
}

/// What holds for one workload.
#[derive(Debug, Serialize)]
struct Applied {
    path: String,
    by: String,
    /// What the workload says of itself.
    notes: Notes,
    /// Why some of that is not heard.
    not_heard: Vec<String>,
    policy: WorkloadPolicy,
}

/// Checks and explains.
///
/// # Errors
/// When the file cannot be read, or says something that has no meaning; the message names the key
/// and the nearest one there is.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let policy = read(&args.file)?;
    let (workloads, no_workloads) = match args.workload.as_slice() {
        [] => match of_this_host() {
            Ok(workloads) => (workloads, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        },
        paths => (paths.iter().map(|path| Workload::from_path(path)).collect(), None),
    };
    let explained = explain(&policy, &workloads, Path::new("/"), no_workloads);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&explained)?);
    } else {
        print!("{}", tell(&args.file, &explained));
    }
    Ok(())
}

/// Reads a policy file.
///
/// # Errors
/// When it cannot be read or is not a policy; names the file.
pub fn read(path: &Path) -> Result<Policy, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Policy::from_toml(&text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), message: error.to_string() })
}

/// The workloads of this host, from files alone.
fn of_this_host() -> anyhow::Result<Vec<Workload>> {
    let config = ObserveConfig { probes: false, ..ObserveConfig::default() };
    let tick = Sampler::start(&config)?.sample(unix_s());
    Ok(tick
        .workloads
        .into_iter()
        .map(|(workload, _sample)| Arc::unwrap_or_clone(workload))
        .collect())
}

/// `root` is where the host's files start, for what workloads say of themselves.
fn explain(
    policy: &Policy,
    workloads: &[Workload],
    root: &Path,
    no_workloads: Option<String>,
) -> Explained {
    let mut rules: Vec<Rule> = policy
        .rules()
        .iter()
        .map(|(pattern, policy)| Rule {
            pattern: pattern.clone(),
            policy: policy.clone(),
            decides_for: 0,
        })
        .collect();
    let workloads = workloads
        .iter()
        .map(|workload| {
            let by = if let Some(glob) = policy.denied_by(workload) {
                format!("deny {:?}", glob.0)
            } else if let Some(index) = policy.rule_of(workload) {
                rules[index].decides_for += 1;
                format!("rule {} ({:?})", index + 1, rules[index].pattern.0)
            } else {
                "defaults".to_owned()
            };
            let notes = annotations::of(root, &workload.path);
            let (policy, not_heard) = policy.for_annotated(workload, &notes);
            Applied { path: workload.path.clone(), by, notes, not_heard, policy }
        })
        .collect();
    Explained {
        defaults: policy.defaults().clone(),
        rules,
        deny: policy.deny().to_vec(),
        workloads,
        no_workloads,
    }
}

fn tell(file: &Path, explained: &Explained) -> String {
    let mut lines = vec![format!("{}: in order", file.display())];
    lines.push(format!("defaults: {}", sentence(&explained.defaults)));
    for (index, rule) in explained.rules.iter().enumerate() {
        let pattern = printable(&rule.pattern.0);
        lines.push(format!("rule {} ({pattern}): {}", index + 1, sentence(&rule.policy)));
        if rule.decides_for == 0 && !explained.workloads.is_empty() {
            lines.push("  decides for none of the workloads below".to_owned());
        }
    }
    if !explained.deny.is_empty() {
        let deny: Vec<_> = explained.deny.iter().map(|glob| printable(&glob.0)).collect();
        lines.push(format!("never touched, whatever a rule says: {}", deny.join(", ")));
    }
    if let Some(reason) = &explained.no_workloads {
        lines.push(format!("the workloads of this host are not told: {reason}"));
    }
    for Applied { path, by, notes, not_heard, policy } in &explained.workloads {
        let also = match notes.len() {
            0 => String::new(),
            n => format!(" with {n} annotations of its own"),
        };
        lines.push(format!("{}: {by}{also}: {}", printable(path), sentence(policy)));
        lines.extend(not_heard.iter().map(|why| format!("  not heard: {}", printable(why))));
    }
    lines.join("\n") + "\n"
}

/// What a policy means for a workload.
fn sentence(policy: &WorkloadPolicy) -> String {
    let acts = match policy.mode {
        Mode::Off => return "left alone, no advice".to_owned(),
        Mode::Recommend => "only advised, would be given",
        Mode::Raise => "limits are raised above its own and given back, to",
        Mode::Reclaim => "limits move both ways, to",
    };
    let mut text = format!(
        "{acts} the {:.0} % quantile of demand within {} s plus {:.0} %, from {} cores",
        100.0 * policy.level(),
        policy.look_ahead_s,
        100.0 * policy.margin,
        policy.floor_cores,
    );
    match (policy.ceiling_cores, policy.ceiling_bytes) {
        (None, None) => text.push_str(" to what the host has"),
        (cores, bytes) => {
            let cores = cores.map(|cores| format!("{cores} cores"));
            let bytes = bytes.map(|bytes| format!("{bytes} bytes"));
            let both: Vec<String> = cores.into_iter().chain(bytes).collect();
            text.push_str(&format!(" to {}", both.join(" and ")));
        }
    }
    text.push_str(&format!("; lowered after {} s of less", policy.dwell_s));
    if policy.knobs != KnobKind::DEFAULT {
        let knobs: Vec<&str> = policy.knobs.iter().map(|kind| kind.name()).collect();
        text.push_str(&format!("; moves {}", knobs.join(", ")));
    }
    if !policy.regret && policy.mode != Mode::Recommend {
        text.push_str(", even where that hurts");
    }
    text
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Policy;
    use headroom_telemetry::Workload;

    use super::{explain, read, tell};

    const POLICY: &str = r#"
deny = ["/system.slice/sshd.*"]
[defaults]
margin = 0.2
[[workloads]]
match = "/system.slice/*"
mode = "raise"
[[workloads]]
match = "/nobody"
mode = "reclaim"
ceiling_cores = 2
regret = false
"#;

    #[test]
    fn each_workload_is_told_who_decides_for_it() {
        let policy = Policy::from_toml(POLICY).unwrap();
        let paths = ["/system.slice/a.service", "/system.slice/sshd.service", "/user.slice"];
        let workloads = paths.map(Workload::from_path);
        let root = tempfile::tempdir().unwrap();
        let drop_in = root.path().join("run/systemd/system/user.slice.d");
        std::fs::create_dir_all(&drop_in).unwrap();
        let notes = "X-Headroom-Knobs=cpu_quota,cpu_burst\nX-Headroom-Mod=raise\n";
        std::fs::write(drop_in.join("a.conf"), notes).unwrap();
        let explained = explain(&policy, &workloads, root.path(), None);
        let by: Vec<&str> = explained.workloads.iter().map(|w| w.by.as_str()).collect();
        assert_eq!(
            by,
            ["rule 1 (\"/system.slice/*\")", "deny \"/system.slice/sshd.*\"", "defaults"]
        );
        let text = tell("p.toml".as_ref(), &explained);
        for part in [
            "rule 1 (/system.slice/*): limits are raised above its own and given back, to the 95 %",
            "plus 20 %",
            "rule 2 (/nobody): limits move both ways",
            "to 2 cores; lowered after 5 s of less, even where that hurts\n  decides for none",
            "sshd.service: deny \"/system.slice/sshd.*\": left alone",
            "/user.slice: defaults with 2 annotations of its own: only advised",
            "moves cpu_quota, cpu_burst\n  not heard: there is no key `mod`; the nearest is `mode`",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_slip_names_the_file_and_the_nearest_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, "[defaults]\nmargn = 0.2\n").unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains("policy.toml") && error.contains("nearest is `margin`"), "{error}");
    }
}
