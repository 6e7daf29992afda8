//! `headroom-aggregator`: `init` and `issue` make certificates, `token` and `revoke` say who may have
//! one, `serve` runs; the commands of the lab work on traces.

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
#[cfg(feature = "sql")]
use headroom_aggregator::query;
use headroom_aggregator::{
    app::App,
    config::AggregatorConfig,
    enrol::{command, token::Scope},
    import, lab, pki,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A configuration or command line that cannot be used.
const EXIT_CONFIG: u8 = 64;
/// Life of the token that `init` shows, seconds.
const FIRST_TOKEN_S: f64 = 3_600.0;

#[derive(Debug, Parser)]
#[command(version, about = "Gathers fingerprints, trains and rolls out models, shows the fleet")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a certificate authority, the aggregator's certificate and the key that signs models.
    Init {
        /// Directory to keep them in; the one `serve` uses.
        #[arg(long)]
        dir: PathBuf,
        /// Host names and addresses agents reach the aggregator by.
        #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
        name: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tokens that hosts join with.
    #[command(subcommand)]
    Token(command::TokenCommand),
    /// Refuse a node or a certificate from now on, or end that.
    Revoke(command::RevokeArgs),
    /// List nodes with the end of their newest certificate, and who is revoked.
    Nodes(command::Place),
    /// Make key and certificate for the agent on one host by hand; `headroom-agent join` does without.
    Issue {
        /// Directory made by `init`.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the host; the agent's `node.name`.
        #[arg(long)]
        node: String,
        /// Trust domain in its name; `tls.trust_domain` of the aggregator.
        #[arg(long, default_value = "headroom")]
        trust_domain: String,
        /// Directory to put the agent's files in.
        #[arg(long)]
        out: PathBuf,
    },
    /// Run.
    Serve(Serve),
    /// Take in what another system recorded, so that a fleet starts warm.
    #[command(subcommand)]
    Import(Box<import::ImportCommand>),
    /// Ask history in SQL.
    #[cfg(feature = "sql")]
    Query(query::QueryArgs),
    /// Training sets out of history.
    #[cfg(feature = "sql")]
    #[command(subcommand)]
    Dataset(query::DatasetCommand),
    #[command(flatten)]
    Lab(lab::LabCommand),
}

#[derive(Args, Debug)]
struct Serve {
    /// Configuration file; flags override it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Directory of certificates, history and models.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// UDP address agents connect to [default: 127.0.0.1:7443].
    #[arg(long)]
    listen_quic: Option<SocketAddr>,
    /// TCP address of dashboard, API and metrics [default: 127.0.0.1:7480].
    #[arg(long)]
    listen_http: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_question = !error.use_stderr();
            if let Err(error) = error.print() {
                tracing::debug!(%error, "cannot print");
            }
            return if is_question { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) };
        }
    };
    let result = match cli.command {
        Command::Init { dir, name, json } => init(&dir, &name, json),
        Command::Token(command) => command::token(command),
        Command::Revoke(args) => command::revoke(&args),
        Command::Nodes(place) => command::nodes(&place),
        Command::Issue { dir, node, trust_domain, out } => issue(&dir, &trust_domain, &node, &out),
        Command::Serve(options) => match configure(&options) {
            Ok(config) => serve(config),
            Err(error) => {
                eprintln!("headroom-aggregator: {error:#}");
                return ExitCode::from(EXIT_CONFIG);
            }
        },
        Command::Import(command) => import::run(*command),
        #[cfg(feature = "sql")]
        Command::Query(args) => query::query(&args),
        #[cfg(feature = "sql")]
        Command::Dataset(command) => query::dataset(command),
        Command::Lab(command) => lab::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headroom-aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init(dir: &std::path::Path, names: &[String], json: bool) -> anyhow::Result<()> {
    let files = pki::init(dir, names)?;
    let ca_hash = pki::ca_hash(&files)?;
    let token = command::make_token(dir, Scope::Any, 1, FIRST_TOKEN_S, None)?;
    if json {
        let made = serde_json::json!({
            "ca": files.ca, "cert": files.cert, "model_key": files.model_key,
            "ca_hash": ca_hash, "names": names, "token": token,
        });
        println!("{}", serde_json::to_string_pretty(&made)?);
        return Ok(());
    }
    println!("certificate authority  {} ({ca_hash})", files.ca.display());
    println!("aggregator certificate {} for {}", files.cert.display(), names.join(", "));
    println!("model key              {}", files.model_key.display());
    println!();
    println!("next, on a host, within the hour, once `serve` runs:");
    println!("  {}", token.join);
    println!("for further hosts:");
    println!("  headroom-aggregator token create --dir {} --uses N", dir.display());
    Ok(())
}

fn issue(
    dir: &std::path::Path,
    trust_domain: &str,
    node: &str,
    out: &std::path::Path,
) -> anyhow::Result<()> {
    pki::issue(dir, trust_domain, node, out)?;
    println!("ca.pem, agent.pem, agent.key and model.pub for `{node}` are in {}", out.display());
    Ok(())
}

fn configure(options: &Serve) -> anyhow::Result<AggregatorConfig> {
    let mut config = match &options.config {
        Some(path) => AggregatorConfig::read(path)?,
        None => AggregatorConfig::default(),
    };
    if let Some(dir) = &options.dir {
        config.dir.clone_from(dir);
    }
    config.listen.quic = options.listen_quic.unwrap_or(config.listen.quic);
    config.listen.http = options.listen_http.unwrap_or(config.listen.http);
    config.check()?;
    Ok(config)
}

fn serve(config: AggregatorConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let app = App::build(config).await?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let (quic, http) = app.addresses().context("cannot tell the addresses")?;
        tracing::info!(%quic, dashboard = %format!("http://{http}/"), "ready");
        app.run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        Ok(())
    });
    // What is left to end by now, connections that did not end in time among it, is of no use to anybody.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        super::Cli::command().debug_assert();
    }
}
