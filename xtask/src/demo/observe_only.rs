//! What works without root: agent and aggregator as processes, reading what anyone may read.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    binaries::Binaries,
    configuration::{Mode, NODE, agent_toml, policy_toml},
    fleet::Fleet,
    processes::Process,
    say, stage,
};

const PATIENCE: Duration = Duration::from_secs(15);
const WATCH_S: u64 = 20;

/// Runs agent and aggregator for twenty seconds and shows what they saw. Changes nothing.
///
/// # Errors
/// When one of them cannot be started or ends early.
pub(crate) fn run(_root: &Path, binaries: &Binaries) -> Result<()> {
    let stop = stage::interrupted()?;
    let dir = std::env::temp_dir().join(format!("headroom-demo-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let (pki, node) = (dir.join("aggregator"), dir.join("node"));
    stage::tool(binaries, &["init", "--dir"], &[&pki])?;
    let out = Path::new("--out");
    stage::tool(binaries, &["issue", "--node", NODE, "--dir"], &[&pki, out, &node])?;
    let (http, quic) = (stage::free_tcp_address()?, stage::free_udp_address()?);
    let fleet = Fleet::new(http.clone());
    let config = dir.join("agent.toml");
    fs::write(&config, agent_toml(&dir, &node, &quic, false))?;
    fs::write(dir.join("policy.toml"), policy_toml(Mode::Learning))?;

    let mut command = Command::new(&binaries.aggregator);
    command.args(["serve", "--listen-quic", &quic, "--listen-http", &http, "--dir"]).arg(&pki);
    let mut aggregator = Process::start("aggregator", &dir, &mut command)?;
    fleet.wait_ready(PATIENCE)?;
    let mut command = Command::new(&binaries.agent);
    command.arg("run").arg("--config").arg(&config);
    let mut agent = Process::start("agent", &dir, &mut command)?;
    fleet.wait_host(PATIENCE)?;
    say(&format!("watching for {WATCH_S} s; dashboard: {}", fleet.url()));
    for second in 0..WATCH_S {
        std::thread::sleep(Duration::from_secs(1));
        aggregator.check()?;
        agent.check()?;
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        if second % 5 == 4 {
            say(&format!("  {:>2} s: {}", second + 1, fleet.progress()?));
        }
    }
    let status = Command::new(&binaries.agent)
        .args(["status", "--socket"])
        .arg(dir.join("agent.sock"))
        .output()?;
    super::print_line(&String::from_utf8_lossy(&status.stdout));
    agent.stop(PATIENCE);
    aggregator.stop(PATIENCE);
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
}
