//! Agent and aggregator as processes in network namespaces of their own: the kernel's own network between
//! them is bad (`tc netem`) and parts, and everything arrives once.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use headroom_tests::{
    cannot_run_as_root,
    cgroup::{Cgroup, Hierarchies},
    program,
};

use crate::{
    server::start_until_ready,
    world::{World, eventually},
};

const SERVER: &str = "10.231.77.1:7443";
const BAD: [&str; 10] =
    ["delay", "5ms", "5ms", "loss", "5%", "duplicate", "5%", "reorder", "20%", "50%"];

/// Runs a program of the system; its error output when it fails.
fn system(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Two namespaces with a cable between them.
struct Cable {
    near: String,
    far: String,
}

impl Cable {
    fn lay() -> Result<Self, String> {
        let id = std::process::id();
        let cable = Self {
            near: format!("headroom-test-near-{id}"),
            far: format!("headroom-test-far-{id}"),
        };
        system(&["ip", "netns", "add", &cable.near])?;
        system(&["ip", "netns", "add", &cable.far])?;
        let (near, far) = (cable.near.as_str(), cable.far.as_str());
        let peer = ["peer", "name", "cable", "netns", far];
        let veth = ["ip", "-n", near, "link", "add", "cable", "type", "veth"];
        system(&[veth.as_slice(), &peer].concat())?;
        for (end, address) in [(near, "10.231.77.1/24"), (far, "10.231.77.2/24")] {
            system(&["ip", "-n", end, "link", "set", "lo", "up"])?;
            system(&["ip", "-n", end, "address", "add", address, "dev", "cable"])?;
            system(&["ip", "-n", end, "link", "set", "cable", "up"])?;
        }
        Ok(cable)
    }

    /// Makes both directions bad.
    fn spoil(&self) -> Result<(), String> {
        for end in [&self.near, &self.far] {
            let netem = ["tc", "-n", end, "qdisc", "add", "dev", "cable", "root", "netem"];
            system(&[netem.as_slice(), &BAD].concat())?;
        }
        Ok(())
    }

    fn plug(&self, state: &str) {
        system(&["ip", "-n", &self.near, "link", "set", "cable", state]).unwrap();
    }

    fn run(&self, end: &str, name: &str, words: &[&str]) -> Command {
        // Not `ip netns exec`, which hides the cgroups under a new /sys.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{end}")).arg(program(name).unwrap()).args(words);
        command
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in [&self.near, &self.far] {
            // One that was not made cannot be removed either.
            drop(system(&["ip", "netns", "delete", end]));
        }
    }
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn serve(cable: &Cable, world: &World) -> Running {
    let dir = world.aggregator_dir();
    let dir = dir.to_str().unwrap();
    let words = ["serve", "--dir", dir, "--listen-http", "127.0.0.1:0", "--listen-quic", SERVER];
    let mut command = cable.run(&cable.near, "headroom-aggregator", &words);
    Running(start_until_ready(&mut command))
}

fn stream(cable: &Cable, world: &World, workload: &str) -> Running {
    let (dir, files) = (world.dir.path(), world.issue("far"));
    let config = format!(
        "[node]\nname = \"far\"\n[observe]\nperiod_s = 0.1\nprobes = false\ngpu = false\n\
         include = [{workload:?}]\n[predict]\n[model]\ndir = {:?}\n[status]\nsocket = {:?}\n\
         [uplink]\nserver = {SERVER:?}\nserver_name = \"localhost\"\ntransport = \"quic\"\n\
         batch_s = 0.1\nspool_dir = {:?}\ncatch_up = 100.0\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        dir.join("models"),
        dir.join("agent.sock"),
        dir.join("spool"),
        files.join("ca.pem"),
        files.join("agent.pem"),
        files.join("agent.key"),
    );
    fs::write(dir.join("agent.toml"), config).unwrap();
    let config = dir.join("agent.toml");
    let words = ["run", "--config", config.to_str().unwrap()];
    let mut command = cable.run(&cable.far, "headroom-agent", &words);
    let log = fs::File::create(dir.join("agent.log")).unwrap();
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// What the agent says of its uplink.
fn uplink(world: &World) -> serde_json::Value {
    let output = Command::new(program("headroom-agent").unwrap())
        .args(["status", "--json", "--socket"])
        .arg(world.dir.path().join("agent.sock"))
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["uplink"].clone()
}

#[test]
fn processes_with_a_bad_cable_between_them_lose_and_double_nothing() {
    if let Some(reason) = cannot_run_as_root() {
        println!("\nskipped: network namespaces: {reason}");
        return;
    }
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(reason) => {
            println!("\nskipped: network namespaces: {reason}");
            return;
        }
    };
    if let Err(reason) = cable.spoil() {
        println!("\nskipped: loss and reordering by netem, the cable is only pulled: {reason}");
    }
    let mut world = World::new();
    let path = format!("/headroom-test-netns-{}", std::process::id());
    let cgroup = Cgroup::create(&Hierarchies::detect().unwrap(), &path).unwrap();
    let workload = Running(Command::new("sleep").arg("600").spawn().unwrap());
    cgroup.add(workload.0.id()).unwrap();
    let server = serve(&cable, &world);
    let mut agent = stream(&cable, &world, &path);
    let sent = || uplink(&world)["sent_vectors"].as_u64().unwrap_or(0);
    eventually("samples are sent", || sent() > 5);
    cable.plug("down");
    thread::sleep(Duration::from_millis(1_500));
    cable.plug("up");
    let before = sent();
    eventually("it goes on", || sent() > before + 10);
    let uplink = uplink(&world);
    assert_eq!((&uplink["dropped"], &uplink["thinned"]), (&0.into(), &0.into()), "{uplink}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&agent.0),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    agent.0.wait().unwrap();
    drop((server, workload, agent));
    cgroup.remove();
    world.listen_at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let server = world.serve();
    let window = server.view().history.window("far", &path, 0.0, 4.0e9).unwrap();
    let times: Vec<f64> = window.iter().map(|sample| sample.t_s).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "each once: {times:?}");
    let gaps = times.windows(2).filter(|pair| pair[1] - pair[0] > 1.0).count();
    assert!(times.len() > 20 && gaps == 0, "{gaps} gaps in {times:?}");
}
