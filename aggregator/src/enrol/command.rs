//! The commands on identities: `token`, `revoke`, `nodes`. They write the ledger that the running
//! aggregator reads.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::{
    Journal,
    ledger::{Event, Revocation, Subject, TokenState},
    now_s,
    token::{Scope, Token},
};
use crate::pki::{self, PkiFiles};

/// Where the port is not told, the default one.
const PORT: u16 = 7443;
/// Longest life of a token, seconds.
const TTL_S_MAX: f64 = 365.0 * 86_400.0;

/// Which aggregator, and how to answer.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// Directory made by `init`; the one `serve` uses.
    #[arg(long, default_value = "/var/lib/headroom-aggregator")]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `token ...`.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print the command that joins with it. It is shown once.
    Create {
        /// Which aggregator.
        #[command(flatten)]
        place: Place,
        /// How long it may be used, as in `90s`, `30m`, `12h`, `7d`.
        #[arg(long, default_value = "1h", value_parser = parse_seconds)]
        ttl: f64,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        uses: u32,
        /// Only for this node, even when its name was given to another key or was revoked.
        #[arg(long, conflicts_with = "prefix")]
        node: Option<String>,
        /// Only for nodes whose name begins so.
        #[arg(long)]
        prefix: Option<String>,
        /// `host:port` that agents reach the aggregator by; the first name of its certificate when
        /// left out.
        #[arg(long)]
        server: Option<String>,
    },
    /// List tokens; their secrets are not kept.
    List {
        /// Which aggregator.
        #[command(flatten)]
        place: Place,
    },
    /// End a token. Nodes that joined with it stay.
    Revoke {
        /// Which aggregator.
        #[command(flatten)]
        place: Place,
        /// Its id, as `token list` shows it.
        id: String,
    },
}

/// `revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeArgs {
    #[command(flatten)]
    place: Place,
    /// A node, or the serial number of one certificate in hexadecimal.
    subject: String,
    /// Told to the agent and kept.
    #[arg(long, default_value = "no reason given")]
    reason: String,
    /// Take it as a serial number even if a node has that name, or never had one.
    #[arg(long)]
    serial: bool,
    /// End a revocation.
    #[arg(long)]
    lift: bool,
}

/// Seconds from `90s`, `30m`, `12h`, `7d`; from 1 second to a year.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let unit_s = match text.chars().last() {
        Some('s') => 1.0,
        Some('m') => 60.0,
        Some('h') => 3_600.0,
        Some('d') => 86_400.0,
        _ => return Err("write a number and s, m, h or d, as in `12h`".to_owned()),
    };
    let number: f64 =
        text[..text.len() - 1].parse().map_err(|error| format!("`{text}`: {error}"))?;
    let seconds = number * unit_s;
    if (1.0..=TTL_S_MAX).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("it must be from 1s to 365d".to_owned())
    }
}

/// What is shown of a new token.
#[derive(Clone, Debug, Serialize)]
pub struct NewToken {
    /// Its id.
    pub id: String,
    /// Its text, with the secret.
    pub token: String,
    /// For whom.
    pub scope: Scope,
    /// How many may join.
    pub uses: u32,
    /// Its end, seconds since the Unix epoch.
    pub expires_s: f64,
    /// What to run on the host.
    pub join: String,
}

/// Makes a token in the ledger of `dir` and the command that joins with it.
///
/// # Errors
///
/// When the authority or the ledger cannot be read or written.
pub fn make_token(
    dir: &Path,
    scope: Scope,
    uses: u32,
    ttl_s: f64,
    server: Option<&str>,
) -> anyhow::Result<NewToken> {
    let files = PkiFiles::of(dir);
    let ca_hash = pki::ca_hash(&files)?;
    let name = pki::first_name(&files).unwrap_or_else(|| "HOST".to_owned());
    let server = server.map_or_else(
        || if name.contains(':') { format!("[{name}]:{PORT}") } else { format!("{name}:{PORT}") },
        str::to_owned,
    );
    let (token, text) = Token::make(scope, uses, now_s(), ttl_s)?;
    Journal::open(dir)?.decide(|_| ((), vec![Event::TokenMade(token.clone())]))?;
    let mut join =
        format!("headroom-agent join --server {server} --ca-hash {ca_hash} --token {text}");
    if let Scope::Node(node) = &token.scope {
        join.push_str(&format!(" --node {node}"));
    }
    let Token { id, scope, uses, expires_s, .. } = token;
    Ok(NewToken { id, token: text, scope, uses, expires_s, join })
}

/// Runs `token ...`.
///
/// # Errors
///
/// With a sentence about what is in the way.
pub fn token(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { place, ttl, uses, node, prefix, server } => {
            let scope = match (node, prefix) {
                (Some(node), _) if !pki::is_node_name(&node) => {
                    bail!("`{node}` cannot name a node: letters, digits, dots, dashes, underscores")
                }
                (Some(node), _) => Scope::Node(node),
                (None, Some(prefix)) => Scope::Prefix(prefix),
                (None, None) => Scope::Any,
            };
            let made = make_token(&place.dir, scope, uses, ttl, server.as_deref())?;
            if place.json {
                println!("{}", serde_json::to_string_pretty(&made)?);
            } else {
                println!("{}", made.join);
                eprintln!(
                    "token {} is for {}, for {uses} in all, for {}; it is not shown again",
                    made.id,
                    made.scope,
                    span(ttl)
                );
            }
        }
        TokenCommand::List { place } => {
            let now_s = now_s();
            let journal = Journal::open(&place.dir)?;
            let tokens: Vec<TokenState> = journal.read(|ledger| ledger.tokens().cloned().collect());
            if place.json {
                let rows: Vec<_> = tokens.iter().map(|state| row(state, now_s)).collect();
                println!("{}", serde_json::to_string_pretty(&rows)?);
            } else if tokens.is_empty() {
                println!("no tokens; make one with `headroom-aggregator token create`");
            } else {
                println!("{:<14} {:<9} {:>11} {:>9}  for", "id", "state", "used", "ends in");
                for state in &tokens {
                    println!(
                        "{:<14} {:<9} {:>11} {:>9}  {}",
                        state.token.id,
                        state.state(now_s),
                        format!("{} of {}", state.used_by.len(), state.token.uses),
                        span((state.token.expires_s - now_s).max(0.0)),
                        state.token.scope
                    );
                }
            }
        }
        TokenCommand::Revoke { place, id } => {
            let known = Journal::open(&place.dir)?.decide(|ledger| {
                let known = ledger.token(&id).is_some();
                let events = known.then(|| Event::TokenRevoked { id: id.clone() });
                (known, events.into_iter().collect())
            })?;
            if !known {
                bail!("no token has the id `{id}`: see `headroom-aggregator token list`");
            }
            if place.json {
                println!("{}", json!({ "revoked": id }));
            } else {
                println!("token {id} is revoked");
            }
        }
    }
    Ok(())
}

fn row(state: &TokenState, now_s: f64) -> serde_json::Value {
    json!({
        "id": state.token.id,
        "state": state.state(now_s),
        "scope": state.token.scope,
        "uses": state.token.uses,
        "used_by": state.used_by.iter().map(|(node, _)| node).collect::<Vec<_>>(),
        "made_s": state.token.made_s,
        "expires_s": state.token.expires_s,
    })
}

/// Runs `revoke`.
///
/// # Errors
///
/// With a sentence about what is in the way.
pub fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let journal = Journal::open(&args.place.dir)?;
    let at_s = now_s();
    let (subject, known) = journal.decide(|ledger| {
        let serial = args.subject.to_ascii_lowercase().replace(':', "");
        let serial = serial.trim_start_matches("00").to_owned();
        let has_serial = ledger
            .nodes()
            .any(|(_, node)| node.certificates.iter().any(|issue| issue.serial == serial));
        let has_node = ledger.node(&args.subject).is_some();
        let is_serial = args.serial || (has_serial && !has_node);
        let subject =
            if is_serial { Subject::Serial(serial) } else { Subject::Node(args.subject.clone()) };
        let known = if args.lift {
            ledger.revoked().any(|revocation| revocation.subject == subject)
        } else {
            has_serial || has_node
        };
        let event = if args.lift {
            known.then(|| Event::Lifted { subject: subject.clone() })
        } else {
            Some(Event::Revoked(Revocation {
                subject: subject.clone(),
                reason: args.reason.clone(),
                at_s,
            }))
        };
        ((subject, known), event.into_iter().collect())
    })?;
    if args.lift && !known {
        bail!("{subject} is not revoked: see `headroom-aggregator nodes`");
    }
    let word = if args.lift { "accepted again" } else { "revoked" };
    if args.place.json {
        println!("{}", json!({ "subject": subject, "state": word, "known": known }));
    } else {
        println!("{subject} is {word}; a running aggregator acts on it within seconds");
        if !known {
            println!("it has no certificate from here; one made elsewhere is refused from now on");
        }
    }
    Ok(())
}

/// Runs `nodes`: who has certificates, and who is barred.
///
/// # Errors
///
/// When the ledger cannot be read.
pub fn nodes(place: &Place) -> anyhow::Result<()> {
    let journal = Journal::open(&place.dir).context("open the ledger of identities")?;
    let now_s = now_s();
    let (nodes, revoked) = journal.read(|ledger| {
        let nodes: Vec<_> = ledger
            .nodes()
            .filter_map(|(name, node)| Some((name.clone(), node.certificates.last()?.clone())))
            .collect();
        (nodes, ledger.revoked().cloned().collect::<Vec<_>>())
    });
    if place.json {
        let nodes: Vec<_> = nodes.iter().map(|(_, issue)| issue).collect();
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "nodes": nodes, "revoked": revoked }))?
        );
        return Ok(());
    }
    for (name, issue) in &nodes {
        let left_s = issue.not_after_s - now_s;
        let state = if left_s > 0.0 { span(left_s) } else { "ended".to_owned() };
        println!("{name:<40} {state:>9}  {}", issue.serial);
    }
    if nodes.is_empty() {
        println!("no node was given a certificate");
    }
    for revocation in &revoked {
        println!("revoked: {}: {}", revocation.subject, revocation.reason);
    }
    Ok(())
}

/// A span of time in its largest unit.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{make_token, parse_seconds};
    use crate::{enrol::token::Scope, pki};

    #[test]
    fn spans_have_a_unit_and_bounds() {
        assert_eq!(parse_seconds("90s"), Ok(90.0));
        assert_eq!(parse_seconds("1.5h"), Ok(5_400.0));
        for text in ["", "h", "10", "0s", "-1h", "366d", "NaNs", "1é"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_that_joins_names_server_authority_and_token() {
        let dir = tempfile::tempdir().unwrap();
        pki::init(dir.path(), &["agg.example".to_owned()]).unwrap();
        let made = make_token(dir.path(), Scope::Node("n1".to_owned()), 1, 60.0, None).unwrap();
        assert!(made.join.contains("--server agg.example:7443 --ca-hash sha256:"), "{}", made.join);
        assert!(made.join.ends_with("--node n1"));
        let kept = std::fs::read_to_string(dir.path().join("identity.jsonl")).unwrap();
        let secret = made.token.rsplit('-').next().unwrap();
        assert!(kept.contains(&made.id) && !kept.contains(secret));
    }
}
