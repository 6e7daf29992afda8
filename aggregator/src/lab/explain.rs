//! `explain`: the decision that was in force at a time, why, and what came before it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

/// Decisions before the one in force that are told.
const BEFORE: usize = 5;
/// Names that are told when one is not there.
const NEAR: usize = 5;

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Decisions that `replay` wrote.
    #[arg(long)]
    decisions: PathBuf,
    /// The workload, as the trace names it.
    #[arg(long)]
    workload: String,
    /// The time, seconds of the trace.
    #[arg(long, allow_hyphen_values = true)]
    at: f64,
    /// Tell it as JSON.
    #[arg(long)]
    json: bool,
}

/// One row of the decisions.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Decision {
    t: f64,
    limit: f64,
    reason: String,
}

/// What is known of one resource at the time.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// `None` when the first decision is later.
    in_force: Option<Decision>,
    /// Earlier ones, the newest first.
    before: VecDeque<Decision>,
    /// The next one, when there is one.
    next: Option<Decision>,
}

#[derive(Serialize)]
struct Told<'a> {
    workload: &'a str,
    at: f64,
    resources: &'a BTreeMap<String, Answer>,
}

/// Explains.
///
/// # Errors
/// When the file cannot be read, the time is none, or the workload is not in it; names near to it
/// are told.
pub fn run(args: &ExplainArgs) -> Result<()> {
    if !args.at.is_finite() {
        bail!("--at {}: seconds of the trace", args.at);
    }
    let answers = find(&args.decisions, &args.workload, args.at)?;
    if args.json {
        let told = Told { workload: &args.workload, at: args.at, resources: &answers };
        println!("{}", serde_json::to_string(&told)?);
    } else {
        print!("{}", text(args, &answers));
    }
    Ok(())
}

fn find(path: &Path, workload: &str, at: f64) -> Result<BTreeMap<String, Answer>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("open {name}"))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let input: Box<dyn Read> =
        if is_packed { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = BufReader::new(input).lines();
    let header = lines.next().transpose().with_context(|| format!("read {name}"))?;
    if header.as_deref() != Some("workload,t,resource,limit,reason") {
        bail!("{name}: no decisions; `replay --out` writes them");
    }
    let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for (index, line) in lines.enumerate() {
        let line = line.with_context(|| format!("read {name}"))?;
        let number = index + 2;
        let (of, rest) = first_field(&line)
            .with_context(|| format!("{name}, line {number}: a quote that does not end"))?;
        if of != workload {
            others.insert(of);
            continue;
        }
        let mut fields = rest.splitn(4, ',');
        let number_of = |column: &str, text: Option<&str>| -> Result<f64> {
            let text = text.unwrap_or("");
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
            value.with_context(|| {
                format!("{name}, line {number}, column {column}: `{text}` is no number")
            })
        };
        let t = number_of("t", fields.next())?;
        let resource = fields.next().unwrap_or("").to_owned();
        // Empty where a limit was taken away.
        let limit = match fields.next() {
            Some("") => f64::INFINITY,
            text => number_of("limit", text)?,
        };
        let reason = fields.next().unwrap_or("").to_owned();
        take(answers.entry(resource).or_default(), Decision { t, limit, reason }, at);
    }
    if answers.is_empty() {
        bail!("{}", unknown(path, workload, &others));
    }
    Ok(answers)
}

/// Puts a decision, which come in order of time, into its place.
fn take(answer: &mut Answer, decision: Decision, at: f64) {
    if decision.t > at {
        answer.next.get_or_insert(decision);
        return;
    }
    if let Some(old) = answer.in_force.replace(decision) {
        answer.before.push_front(old);
        answer.before.truncate(BEFORE);
    }
}

/// The first field of a CSV row, unquoted, and what follows its comma.
fn first_field(line: &str) -> Option<(String, &str)> {
    let Some(quoted) = line.strip_prefix('"') else {
        return Some(
            line.split_once(',').map_or((line.to_owned(), ""), |(a, b)| (a.to_owned(), b)),
        );
    };
    let mut end = 0;
    while let Some(at) = quoted[end..].find('"') {
        end += at + 1;
        if !quoted[end..].starts_with('"') {
            let field = quoted[..end - 1].replace("\"\"", "\"");
            return Some((field, quoted[end..].strip_prefix(',').unwrap_or("")));
        }
        end += 1;
    }
    None
}

/// The error for a name that is not there, with those that look like it.
fn unknown(path: &Path, workload: &str, others: &BTreeSet<String>) -> String {
    let mut near: Vec<(f64, &str)> =
        others.iter().map(|name| (strsim::jaro_winkler(name, workload), name.as_str())).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<&str> = near.iter().take(NEAR).map(|(_, name)| *name).collect();
    let path = path.display();
    if names.is_empty() {
        return format!("{path}: no decisions at all");
    }
    format!(
        "{path}: no decisions for `{workload}`; nearest of {} names: {}",
        others.len(),
        names.join(", ")
    )
}

fn text(args: &ExplainArgs, answers: &BTreeMap<String, Answer>) -> String {
    let mut out = String::new();
    for (resource, answer) in answers {
        out += &format!("{} {resource} at {}\n", args.workload, args.at);
        match &answer.in_force {
            Some(now) => {
                out += &format!(
                    "  {} since {} ({} earlier)\n  why: {}\n",
                    amount(resource, now.limit),
                    now.t,
                    span(args.at - now.t),
                    now.reason
                );
            }
            None => out += "  no limit yet\n",
        }
        for old in &answer.before {
            out += &format!(
                "  before: {} from {}: {}\n",
                amount(resource, old.limit),
                old.t,
                old.reason
            );
        }
        if let Some(next) = &answer.next {
            out += &format!(
                "  next: {} from {}: {}\n",
                amount(resource, next.limit),
                next.t,
                next.reason
            );
        }
    }
    out
}

/// A limit with its unit.
fn amount(resource: &str, limit: f64) -> String {
    if limit.is_infinite() {
        "no limit".to_owned()
    } else if resource.starts_with("memory") {
        format!("{:.1} MiB", limit / 1_048_576.0)
    } else {
        format!("{limit:.3} cores")
    }
}

/// A time span in its largest unit.
fn span(seconds: f64) -> String {
    match seconds {
        s if s >= 172_800.0 => format!("{:.1} d", s / 86_400.0),
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.0} min", s / 60.0),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{amount, find, first_field};

    fn decisions() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let rows = "workload,t,resource,limit,reason\nweb-1,100,cpu,2,own limit\n\
                    web-1,400,cpu,1.5,held long enough\n\"a,b\",100,cpu,7,x\nweb-2,1,cpu,3,x\n";
        file.write_all(rows.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_decision_in_force_is_the_newest_that_is_not_later() {
        let file = decisions();
        let answers = find(file.path(), "web-1", 399.0).unwrap();
        let answer = &answers["cpu"];
        assert!((answer.in_force.as_ref().unwrap().limit - 2.0).abs() < 1e-12);
        assert!((answer.next.as_ref().unwrap().t - 400.0).abs() < 1e-12);
        let later = find(file.path(), "web-1", 400.0).unwrap();
        assert_eq!(later["cpu"].in_force.as_ref().unwrap().reason, "held long enough");
        assert_eq!(later["cpu"].before.len(), 1);
        assert!(find(file.path(), "web-1", 99.0).unwrap()["cpu"].in_force.is_none());
        assert!(find(file.path(), "a,b", 100.0).is_ok());
    }

    #[test]
    fn a_limit_that_was_taken_away_is_told_as_none() {
        let mut file = decisions();
        file.write_all(b"web-1,500,cpu,,own limit for a while: acting hurt\n").unwrap();
        let answers = find(file.path(), "web-1", 500.0).unwrap();
        let limit = answers["cpu"].in_force.as_ref().unwrap().limit;
        assert_eq!(amount("cpu", limit), "no limit");
    }

    #[test]
    fn a_workload_that_is_not_there_brings_those_near_to_it() {
        let error = find(decisions().path(), "web-3", 1.0).unwrap_err().to_string();
        assert!(error.contains("`web-3`") && error.contains("web-1"), "{error}");
    }

    #[test]
    fn quoted_names_are_read_back() {
        assert_eq!(first_field("\"a\"\"b,c\",1"), Some(("a\"b,c".to_owned(), "1")));
        assert_eq!(first_field("plain,1,2"), Some(("plain".to_owned(), "1,2")));
        assert_eq!(first_field("\"open"), None);
    }
}
