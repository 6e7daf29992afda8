//! The policy's TOML form: `[defaults]`, any number of `[[workloads]]`, `[host]`, `annotations` and
//! `deny`; and what a workload says of itself, which comes in between.

use std::collections::BTreeMap;

use headroom_telemetry::{Glob, Workload};
use serde::Deserialize as _;
use toml::{Table, Value};

use crate::policy::{HostPolicy, Policy, PolicyError, WorkloadPolicy};

/// Keys of the file itself.
const TOP_KEYS: [&str; 5] = ["defaults", "workloads", "deny", "host", "annotations"];

/// What the file's tables say themselves, before anything is inherited.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    defaults: Table,
    rules: Vec<Table>,
}

impl Policy {
    /// Reads a policy. Every rule inherits what `[defaults]` says and it does not.
    ///
    /// # Errors
    /// When the text is not TOML, a key does not exist (the nearest that does is named), or a
    /// value makes no sense.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let mut file: Table = text
            .parse()
            .map_err(|error: toml::de::Error| PolicyError::Syntax(error.to_string()))?;
        let defaults = take_table(&mut file, "defaults")?;
        let rules = take_list(&mut file, "workloads")?;
        let deny = take_list(&mut file, "deny")?;
        let host = read_host(take_table(&mut file, "host")?)?;
        let annotations = match file.remove("annotations") {
            None => true,
            Some(Value::Boolean(heard)) => heard,
            Some(other) => return Err(wrong("annotations", format!("{other} is not a boolean"))),
        };
        if let Some(unknown) = file.keys().next() {
            let message = unknown_key(unknown, &TOP_KEYS);
            return Err(PolicyError::Table { table: "policy".to_owned(), message });
        }
        let mut said = Said { defaults: defaults.clone(), rules: Vec::new() };
        let mut read = Vec::new();
        for rule in rules {
            let (pattern, keys, policy) = read_rule(rule, &defaults)?;
            said.rules.push(keys);
            read.push((pattern, policy));
        }
        let rules = read;
        let deny = deny
            .into_iter()
            .map(|glob| match glob {
                Value::String(glob) => Ok(Glob(glob)),
                other => Err(wrong("deny", format!("{other} is not a pattern"))),
            })
            .collect::<Result<_, _>>()?;
        let defaults = read_policy("defaults", defaults)?;
        Ok(Self { defaults, rules, deny, host, annotations, said })
    }
}

/// The pattern of a rule, the keys that it says itself, and what follows with those it inherits.
fn read_rule(rule: Value, defaults: &Table) -> Result<(Glob, Table, WorkloadPolicy), PolicyError> {
    let Value::Table(mut rule) = rule else {
        return Err(wrong("workloads", format!("{rule} is not a table")));
    };
    let Some(Value::String(pattern)) = rule.remove("match") else {
        return Err(wrong("workloads", "every rule needs match = \"pattern\"".to_owned()));
    };
    let mut merged = defaults.clone();
    merged.extend(rule.clone());
    let policy = read_policy(&format!("workloads with match = {pattern:?}"), merged)?;
    Ok((Glob(pattern), rule, policy))
}

/// Keys of `[host]`.
const HOST_KEYS: [&str; 2] = ["reserve", "net_bps"];

fn read_host(keys: Table) -> Result<HostPolicy, PolicyError> {
    if let Some(unknown) = keys.keys().find(|key| !HOST_KEYS.contains(&key.as_str())) {
        return Err(wrong("host", unknown_key(unknown, &HOST_KEYS)));
    }
    let host = HostPolicy::deserialize(Value::Table(keys))
        .map_err(|error| wrong("host", error.message().to_owned()))?;
    if !(0.0..=0.9).contains(&host.reserve) {
        let message = format!("reserve = {}: must be from 0 to 0.9", host.reserve);
        return Err(wrong("host", message));
    }
    if let Some(net_bps) = host.net_bps.filter(|net_bps| !(1e3..=1e12).contains(net_bps)) {
        let message = format!("net_bps = {net_bps}: must be from 1000 to 1000000000000");
        return Err(wrong("host", message));
    }
    Ok(host)
}

impl Policy {
    /// What holds for the host as a whole.
    pub fn host(&self) -> &HostPolicy {
        &self.host
    }

    /// Whether what workloads say of themselves is heard.
    pub fn hears_annotations(&self) -> bool {
        self.annotations
    }

    /// The policy of `workload`, which says `notes` of itself: keys of a policy with their values
    /// as text. They come after `[defaults]` and before the rule that matches; a denied workload
    /// is off whatever it says. Beside it a sentence for each note that is not heard.
    pub fn for_annotated(
        &self,
        workload: &Workload,
        notes: &BTreeMap<String, String>,
    ) -> (WorkloadPolicy, Vec<String>) {
        let without = self.for_workload(workload);
        if notes.is_empty() || self.denied_by(workload).is_some() {
            return (without, Vec::new());
        }
        if !self.annotations {
            return (without, vec!["the policy hears no annotations".to_owned()]);
        }
        let known = known_keys();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut policy = without;
        let mut heard = self.said.defaults.clone();
        let mut refused = Vec::new();
        let rule = self.rule_of(workload).and_then(|index| self.said.rules.get(index));
        for (key, text) in notes {
            if !known.contains(&key.as_str()) {
                refused.push(unknown_key(key, &known));
                continue;
            }
            let mut tried = heard.clone();
            tried.insert(key.clone(), value_of(key, text));
            let mut merged = tried.clone();
            merged.extend(rule.cloned().unwrap_or_default());
            match read_policy("annotation", merged) {
                Ok(read) => (policy, heard) = (read, tried),
                Err(error) => refused.push(format!("{key} = {text:?}: {error}")),
            }
        }
        (policy, refused)
    }
}

/// An annotation's text as the value it stands for: a number, a truth, a list of knobs, or a word.
fn value_of(key: &str, text: &str) -> Value {
    let text = text.trim();
    if key == "knobs" {
        let names = text.split([',', ' ']).filter(|name| !name.is_empty());
        return Value::Array(names.map(|name| Value::String(name.to_owned())).collect());
    }
    if let Ok(truth) = text.parse() {
        return Value::Boolean(truth);
    }
    text.parse().map_or_else(|_not_a_number| Value::String(text.to_owned()), Value::Float)
}

fn read_policy(table: &str, keys: Table) -> Result<WorkloadPolicy, PolicyError> {
    let known = known_keys();
    if let Some(unknown) = keys.keys().find(|key| !known.contains(key)) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        return Err(wrong(table, unknown_key(unknown, &known)));
    }
    let policy = WorkloadPolicy::deserialize(Value::Table(keys))
        .map_err(|error| wrong(table, error.message().to_owned()))?;
    policy.check().map_err(|message| wrong(table, message))?;
    Ok(policy)
}

/// The keys of a workload's policy, from the type itself.
pub(crate) fn known_keys() -> Vec<String> {
    let example = WorkloadPolicy {
        level: Some(0.5),
        ceiling_cores: Some(1.0),
        ceiling_bytes: Some(1.0),
        shortage_cost: Some(1.0),
        excess_cost: Some(1.0),
        step_up: Some(1.0),
        step_down: Some(1.0),
        weight_factor: Some(1.0),
        ..WorkloadPolicy::default()
    };
    match Value::try_from(example) {
        Ok(Value::Table(table)) => table.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

fn take_table(file: &mut Table, key: &str) -> Result<Table, PolicyError> {
    match file.remove(key) {
        None => Ok(Table::new()),
        Some(Value::Table(table)) => Ok(table),
        Some(other) => Err(wrong(key, format!("{other} is not a table"))),
    }
}

fn take_list(file: &mut Table, key: &str) -> Result<Vec<Value>, PolicyError> {
    match file.remove(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong(key, format!("{other} is not a list"))),
    }
}

fn wrong(table: &str, message: String) -> PolicyError {
    PolicyError::Table { table: table.to_owned(), message }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|candidate| strsim::damerau_levenshtein(key, candidate));
    match nearest {
        Some(nearest) => format!("there is no key `{key}`; the nearest is `{nearest}`"),
        None => format!("there is no key `{key}`"),
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Workload;

    use crate::policy::{Mode, Objective, Policy};

    const TEXT: &str = r#"
deny = ["/system.slice/ssh*"]
[defaults]
margin = 0.3
[[workloads]]
match = "/system.slice/*.service"
mode = "raise"
objective = "latency_critical"
[[workloads]]
match = "unit:other.scope"
mode = "reclaim"
margin = 0.1
"#;

    #[test]
    fn the_first_rule_that_matches_decides_and_inherits_the_defaults() {
        let policy = Policy::from_toml(TEXT).unwrap();
        let unit = policy.for_workload(&Workload::from_path("/system.slice/a.service"));
        assert_eq!((unit.mode, unit.objective), (Mode::Raise, Objective::LatencyCritical));
        assert!((unit.margin - 0.3).abs() < 1e-12);
        let by_key = policy.for_workload(&Workload::from_path("/x/other.scope"));
        assert_eq!(by_key.mode, Mode::Reclaim);
        assert!((by_key.margin - 0.1).abs() < 1e-12);
    }

    #[test]
    fn out_of_the_box_everything_is_advice() {
        let policy = Policy::from_toml("").unwrap();
        assert_eq!(policy.for_workload(&Workload::from_path("/a")).mode, Mode::Recommend);
    }

    fn annotated(notes: &[(&str, &str)], path: &str) -> (super::WorkloadPolicy, Vec<String>) {
        let policy = Policy::from_toml(TEXT).unwrap();
        let notes = notes.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        policy.for_annotated(&Workload::from_path(path), &notes.collect())
    }

    #[test]
    fn what_a_workload_says_of_itself_lies_between_defaults_and_rules() {
        let notes = [("mode", "reclaim"), ("margin", "0.5"), ("knobs", "cpu_quota, pids_max")];
        let (free, refused) = annotated(&notes, "/free");
        assert_eq!((free.mode, free.margin), (Mode::Reclaim, 0.5));
        assert_eq!(free.knobs, [crate::KnobKind::CpuQuota, crate::KnobKind::PidsMax]);
        assert_eq!(refused, Vec::<String>::new());
        let (ruled, _) = annotated(&notes, "/system.slice/a.service");
        assert_eq!((ruled.mode, ruled.margin), (Mode::Raise, 0.5), "the rule says a mode");
        let (denied, _) = annotated(&notes, "/system.slice/sshd.service");
        assert_eq!(denied.mode, Mode::Off);
    }

    #[test]
    fn notes_that_make_no_sense_are_told_and_the_others_heard() {
        let notes = [("mod", "raise"), ("margin", "lots"), ("mode", "raise"), ("lease_s", "1e9")];
        let (policy, refused) = annotated(&notes, "/free");
        assert_eq!(policy.mode, Mode::Raise);
        let refused = refused.join("\n");
        for part in ["nearest is `mode`", "margin = \"lots\"", "lease_s = 1000000000"] {
            assert!(refused.contains(part), "{part} is not in\n{refused}");
        }
        let deaf = Policy::from_toml("annotations = false").unwrap();
        let notes = [("mode".to_owned(), "raise".to_owned())].into();
        let (policy, refused) = deaf.for_annotated(&Workload::from_path("/free"), &notes);
        assert_eq!((policy.mode, refused.len()), (Mode::Recommend, 1));
    }

    #[test]
    fn own_costs_set_the_quantile() {
        let text = "[defaults]\nshortage_cost = 3\nexcess_cost = 1";
        let policy = Policy::from_toml(text).unwrap();
        assert!((policy.defaults().level() - 0.75).abs() < 1e-12);
        let text = format!("{text}\nlevel = 0.9");
        assert!((Policy::from_toml(&text).unwrap().defaults().level() - 0.9).abs() < 1e-12);
    }

    #[test]
    fn deny_wins() {
        let policy = Policy::from_toml(TEXT).unwrap();
        let ssh = policy.for_workload(&Workload::from_path("/system.slice/sshd.service"));
        assert_eq!(ssh.mode, Mode::Off);
    }

    #[test]
    fn mistakes_are_named_with_the_way_out() {
        for (text, says) in [
            ("default = {}", "nearest is `defaults`"),
            ("[[workloads]]\nmatch = '/a'\nflor_cores = 1", "nearest is `floor_cores`"),
            ("[[workloads]]\nmode = 'raise'", "match"),
            ("[[workloads]]\nmatch = '/a'\nmode = 'rise'", "rise"),
            ("[defaults]\nlevel = 2.0", "level = 2"),
            ("[defaults]\nlease_s = 0", "lease_s"),
            ("[defaults]\nfloor_cores = 2\nceiling_cores = 1", "ceiling_cores"),
            ("deny = [1]", "deny"),
            ("[defaults]\nshortage_cost = 1", "excess_cost"),
            ("[defaults]\nknobs = ['cpu_qota']", "cpu_qota"),
            ("[defaults]\nstep_down = 2", "step_down"),
            ("[host]\nreserv = 1", "nearest is `reserve`"),
            ("[host]\nreserve = 1", "reserve = 1"),
            ("[host]\nnet_bps = 0", "net_bps = 0"),
            ("annotations = 1", "annotations"),
            ("x", "x"),
        ] {
            let error = Policy::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
