//! The policy's TOML form: `[defaults]`, any number of `[[workloads]]`, and `deny`.

use headroom_telemetry::Glob;
use serde::Deserialize as _;
use toml::{Table, Value};

use crate::policy::{Policy, PolicyError, WorkloadPolicy};

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
        if let Some(unknown) = file.keys().next() {
            let message = unknown_key(unknown, &["defaults", "workloads", "deny"]);
            return Err(PolicyError::Table { table: "policy".to_owned(), message });
        }
        let rules =
            rules.into_iter().map(|rule| read_rule(rule, &defaults)).collect::<Result<_, _>>()?;
        let deny = deny
            .into_iter()
            .map(|glob| match glob {
                Value::String(glob) => Ok(Glob(glob)),
                other => Err(wrong("deny", format!("{other} is not a pattern"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { defaults: read_policy("defaults", defaults)?, rules, deny })
    }
}

fn read_rule(rule: Value, defaults: &Table) -> Result<(Glob, WorkloadPolicy), PolicyError> {
    let Value::Table(mut rule) = rule else {
        return Err(wrong("workloads", format!("{rule} is not a table")));
    };
    let Some(Value::String(pattern)) = rule.remove("match") else {
        return Err(wrong("workloads", "every rule needs match = \"pattern\"".to_owned()));
    };
    let mut merged = defaults.clone();
    merged.extend(rule);
    let policy = read_policy(&format!("workloads with match = {pattern:?}"), merged)?;
    Ok((Glob(pattern), policy))
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
fn known_keys() -> Vec<String> {
    let example = WorkloadPolicy {
        level: Some(0.5),
        ceiling_cores: Some(1.0),
        ceiling_bytes: Some(1.0),
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
            ("x", "x"),
        ] {
            let error = Policy::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
