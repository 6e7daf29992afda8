//! `headroom-agent join`: makes a key, proves itself with a token, and keeps the certificate it gets.
//!
//! [`pin`] knows the aggregator by a hash, [`ask`] speaks with it, [`files`] keeps what comes of it.
//! Renewal is the uplink's.

pub mod ask;
pub mod files;
pub mod pin;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use headroom_wire::{
    certificate::CertificateFacts,
    enrol::{Grant, Request},
};
use serde_json::json;

use self::{
    ask::AskError,
    pin::{CaHash, PinnedAuthority},
};
use crate::uplink::Transport;

/// Arguments of `join`.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// Address of the aggregator, host:port
    #[arg(long)]
    server: String,
    /// SHA-256 of its authority's certificate, as `headroom-aggregator token create` prints it
    #[arg(long, value_parser = CaHash::parse)]
    ca_hash: CaHash,
    /// Token made by `headroom-aggregator token create`; other users of this host can see arguments
    #[arg(long, conflicts_with = "token_file", required_unless_present = "token_file")]
    token: Option<String>,
    /// File that holds the token
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Name of this host in the fleet; the host name when left out
    #[arg(long)]
    node: Option<String>,
    /// Name in the aggregator's certificate; the host of --server when left out
    #[arg(long, default_value = "")]
    server_name: String,
    /// What carries the connection
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Where key and certificates are kept; made when it is not there
    #[arg(long, default_value = "/var/lib/headroom/agent/tls")]
    dir: PathBuf,
    /// Configuration file to write when there is none yet
    #[arg(long)]
    config: Option<PathBuf>,
    /// Ask even when there is a certificate that is valid
    #[arg(long)]
    again: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of joining.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Name of this host.
    pub node: String,
    /// What the certificate says.
    pub certificate: CertificateFacts,
    /// Whether it was there already.
    pub was_there: bool,
}

/// Where to join, and as whom.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Address of the aggregator, host:port.
    pub server: String,
    /// Name in its certificate; empty: the host of `server`.
    pub server_name: String,
    /// What carries the connection.
    pub transport: Transport,
    /// Hash of its authority.
    pub ca_hash: CaHash,
    /// The token.
    pub token: String,
    /// Name of this host.
    pub node: String,
}

/// Runs `join`.
///
/// # Errors
///
/// With the aggregator's sentence, or one about the file that is in the way.
pub fn run(args: JoinArgs) -> anyhow::Result<()> {
    let node = crate::app::node_name(args.node.as_deref().unwrap_or_default())?;
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => fs::read_to_string(path)
            .with_context(|| format!("read the token in {}", path.display()))?,
        (None, None) => bail!("a token is needed: --token or --token-file"),
    };
    let invitation = Invitation {
        server: args.server,
        server_name: args.server_name,
        transport: args.transport,
        ca_hash: args.ca_hash,
        token: token.trim().to_owned(),
        node,
    };
    let joined = match valid(&args.dir, &invitation.node) {
        Some(joined) if !args.again => joined,
        _ => join(&invitation, &args.dir)?,
    };
    let settings = settings(&invitation, &args.dir);
    let written = match &args.config {
        Some(path) if !path.exists() => {
            fs::write(path, &settings).with_context(|| format!("write {}", path.display()))?;
            true
        }
        _ => false,
    };
    let left_h = (joined.certificate.not_after_s - now_s()) / 3_600.0;
    if args.json {
        let told = json!({
            "node": joined.node, "serial": joined.certificate.serial,
            "not_after_s": joined.certificate.not_after_s, "was_there": joined.was_there,
            "dir": args.dir, "config": settings, "config_written": written,
        });
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    let how = if joined.was_there { "is joined already" } else { "has joined" };
    println!("`{}` {how}: certificate for {left_h:.1} h, renewed by `run`", joined.node);
    match &args.config {
        Some(path) if written => println!("settings are in {}", path.display()),
        Some(path) => {
            println!("{} is there and was left as it is; put in:\n\n{settings}", path.display());
        }
        None => println!("put into the configuration of `run`:\n\n{settings}"),
    }
    Ok(())
}

/// The identity in `dir`, when it is that of `node`, whole, and valid.
fn valid(dir: &Path, node: &str) -> Option<Joined> {
    let certificate = CertificateFacts::of_file(&dir.join("agent.pem")).ok()?;
    let key = files::read_key(&dir.join("agent.key")).ok()?;
    let key_sha256 = headroom_wire::certificate::sha256_hex(
        &rcgen::PublicKeyData::subject_public_key_info(&key),
    );
    let is_named = certificate.uris.iter().any(|uri| uri.rsplit('/').next() == Some(node));
    let is_whole = certificate.key_sha256 == key_sha256 && dir.join("ca.pem").exists();
    let is_valid = certificate.not_after_s > now_s();
    (is_named && is_whole && is_valid).then(|| Joined {
        node: node.to_owned(),
        certificate,
        was_there: true,
    })
}

/// Joins and writes `agent.key`, `ca.pem`, `model.pub` and last `agent.pem` into `dir`. A key that is
/// there is used again.
///
/// # Errors
///
/// With the aggregator's sentence, or one about the file that is in the way.
pub fn join(invitation: &Invitation, dir: &Path) -> anyhow::Result<Joined> {
    let Invitation { server, server_name, transport, ca_hash, token, node } = invitation;
    files::make_dir(dir)?;
    let key = files::read_or_make_key(&dir.join("agent.key"))?;
    let csr = ask::signing_request(&key)?.into();
    let request = Request::Join { token: token.clone(), node: node.clone(), csr };
    let pinned = Arc::new(PinnedAuthority::new(*ca_hash));
    let verifier: Arc<dyn rustls::client::danger::ServerCertVerifier> =
        Arc::<PinnedAuthority>::clone(&pinned);
    let tls = ask::without_certificate(verifier)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let asked = runtime.block_on(ask::ask(server, server_name, tls, *transport, &request));
    let grant = match (asked, pinned.refused()) {
        (Ok(grant), _) => grant,
        (Err(_), Some(reason)) => bail!("{server} is not the aggregator: {reason}"),
        (Err(AskError::Refused { reason, .. }), None) => bail!("{server} refuses: {reason}"),
        (Err(error), None) => return Err(error.into()),
    };
    let certificate = ask::granted(server, &grant, node, &key)?;
    ensure!(
        grant.authorities.iter().any(|authority| CaHash::of(authority) == *ca_hash),
        "{server} answers without the authority of --ca-hash; nothing was written"
    );
    write(dir, &grant)?;
    Ok(Joined { node: node.clone(), certificate, was_there: false })
}

fn write(dir: &Path, grant: &Grant) -> anyhow::Result<()> {
    let put = |name: &str, bytes: &[u8]| files::replace(&dir.join(name), bytes, files::PUBLIC);
    put("ca.pem", files::pem(&grant.authorities).as_bytes())?;
    put("model.pub", &grant.model_key)?;
    put("agent.pem", files::pem(&grant.chain).as_bytes())?;
    Ok(())
}

/// The tables of a configuration that use what was written.
fn settings(invitation: &Invitation, dir: &Path) -> String {
    let text = |text: &str| toml::Value::from(text).to_string();
    let file = |name: &str| text(&dir.join(name).to_string_lossy());
    let mut lines = vec![
        "[node]".to_owned(),
        format!("name = {}", text(&invitation.node)),
        String::new(),
        "[uplink]".to_owned(),
        format!("server = {}", text(&invitation.server)),
    ];
    if !invitation.server_name.is_empty() {
        lines.push(format!("server_name = {}", text(&invitation.server_name)));
    }
    if invitation.transport != Transport::Auto {
        lines.push(format!("transport = {}", text(invitation.transport.name())));
    }
    for (key, name) in [("ca", "ca.pem"), ("cert", "agent.pem"), ("key", "agent.key")] {
        lines.push(format!("{key} = {}", file(name)));
    }
    lines.extend([String::new(), "[model]".to_owned()]);
    lines.push(format!("public_key = {}", file("model.pub")));
    lines.join("\n") + "\n"
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Invitation, pin::CaHash, settings};
    use crate::{config::AgentConfig, uplink::Transport};

    #[test]
    fn the_settings_it_tells_are_a_configuration() {
        let invitation = Invitation {
            server: "agg.example:7443".to_owned(),
            server_name: "agg".to_owned(),
            transport: Transport::Tcp,
            ca_hash: CaHash::of(b""),
            token: String::new(),
            node: "host \"1\"".to_owned(),
        };
        let text = settings(&invitation, Path::new("/var/lib/x"));
        let config: AgentConfig = toml::from_str(&text).unwrap();
        let uplink = config.uplink.unwrap();
        assert_eq!(config.node.name, "host \"1\"");
        assert_eq!(
            (uplink.server.as_str(), uplink.server_name.as_str()),
            ("agg.example:7443", "agg")
        );
        assert_eq!(uplink.transport, Transport::Tcp);
        assert_eq!(uplink.cert, Path::new("/var/lib/x/agent.pem"));
        assert_eq!(config.model.public_key.as_deref(), Some(Path::new("/var/lib/x/model.pub")));
    }
}
