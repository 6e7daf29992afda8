//! The guard as the service that is shipped, with each of its drop-ins: it starts, answers, moves a
//! limit, and says what it cannot do here.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use headroom_agent::guard::{GuardClient, Request, Response, protocol::Status};
use headroom_allocate::Knob;

use super::{Unit, apply, sh, text};

const UNIT: &str = include_str!("../../../deploy/systemd/headroom-guard.service");
const SLICE: &str = include_str!("../../../deploy/systemd/headroom.slice");
const EGRESS: &str = include_str!("../../../deploy/systemd/headroom-guard.service.d/egress.conf");
const GPU: &str = include_str!("../../../deploy/systemd/headroom-guard.service.d/gpu.conf");

const NAME: &str = "headroom-guard.service";
const SOCKET: &str = "/run/headroom/guard.sock";
const CONFIG: &str = "[egress]\non=true\ndevices=['lo']\n[gpu]\non=true\n\
    [owners]\ntimeout_ms=10000\n[[allow]]\npath='/system.slice/hrtest-*'\nmode='raise'\n\
    knobs=['cpu_quota','gpu_power_limit','net_egress']";

/// An emulated CPU is a small part of a real one, and a tenth of it does not start a program within the
/// time that a stop may take.
const EMULATED: &str = "[Service]\nCPUQuota=\n";

/// Bits of `CapEff`, of capability.h: CAP_NET_ADMIN 12, CAP_SYS_ADMIN 21, CAP_BPF 39.
const OF_EGRESS: u64 = 1 << 12 | 1 << 39;
const OF_GPU: u64 = 1 << 21;

/// The service, installed as deploy/README.md says; stopped and removed when dropped.
struct Service;

impl Service {
    fn install(drop_ins: &[(&str, &str)]) -> Self {
        let units = Path::new("/run/systemd/system");
        fs::create_dir_all(units.join(format!("{NAME}.d"))).unwrap();
        fs::create_dir_all("/etc/headroom").unwrap();
        fs::write("/etc/headroom/guard.toml", CONFIG).unwrap();
        // Where a service may not see it, a link would lead nowhere.
        let program = super::place::program().unwrap();
        fs::copy(program, "/usr/bin/headroom-agent").unwrap();
        fs::set_permissions("/usr/bin/headroom-agent", Permissions::from_mode(0o755)).unwrap();
        fs::write(units.join(NAME), UNIT).unwrap();
        fs::write(units.join("headroom.slice"), SLICE).unwrap();
        for (name, text) in [("emulated.conf", EMULATED)].iter().chain(drop_ins) {
            fs::write(units.join(format!("{NAME}.d/{name}")), text).unwrap();
        }
        sh("systemctl daemon-reload");
        let service = Self;
        // With `Type=notify` this returns once the guard says that it is ready.
        sh(&format!(
            "systemctl start {NAME} || (systemctl status {NAME}; journalctl -n 30; false)"
        ));
        service
    }

    fn ask(request: &Request) -> Response {
        GuardClient::connect(Path::new(SOCKET)).unwrap().request(request).unwrap()
    }

    fn status() -> Status {
        match Self::ask(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn property(name: &str) -> String {
        sh(&format!("systemctl show -p {name} --value {NAME}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After a failed test the next one still begins anew.
        for line in [
            format!("systemctl stop {NAME}; systemctl reset-failed {NAME}"),
            format!("rm -rf /run/systemd/system/{NAME} /run/systemd/system/{NAME}.d"),
            "systemctl daemon-reload".to_owned(),
        ] {
            drop(std::process::Command::new("sh").args(["-c", &line]).output());
        }
    }
}

#[test]
fn the_service_starts_with_each_drop_in_and_says_what_it_cannot_do() {
    in_a_machine_or_skip!();
    let (egress, gpu) = (("egress.conf", EGRESS), ("gpu.conf", GPU));
    for (drop_ins, capabilities) in [
        (&[][..], 0),
        (&[gpu][..], OF_GPU),
        (&[egress][..], OF_EGRESS),
        (&[egress, gpu][..], OF_EGRESS | OF_GPU),
    ] {
        let names: Vec<&str> = drop_ins.iter().map(|(name, _text)| *name).collect();
        let service = Service::install(drop_ins);
        let pid = Service::property("MainPID");
        let told = text(Path::new(&format!("/proc/{pid}/status")));
        let effective = told.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
        assert_eq!(effective, capabilities, "{names:?}: {effective:x}");

        let status = Service::status();
        println!("with {names:?}: egress {}; gpu {}", status.egress, status.gpu);
        assert_eq!(status.gpu, "absent (/dev/nvidiactl is not there)", "{names:?}");
        // The machine's kernel need not have the qdisc.
        let is_paced = status.egress == "on lo";
        assert!(is_paced || status.egress.starts_with("absent ("), "{names:?}: {}", status.egress);
        if !drop_ins.contains(&egress) {
            assert!(!is_paced, "{names:?}: it has no network: {}", status.egress);
        }
        moves_a_limit_and_refuses_a_gpu();
        assert_eq!(Service::property("NRestarts"), "0", "{names:?}");
        sh(&format!("systemctl stop {NAME}"));
        assert_eq!(Service::property("Result"), "success", "{names:?}");
        drop(service);
    }
}

fn moves_a_limit_and_refuses_a_gpu() {
    let unit = Unit::transient("served");
    match Service::ask(&apply(&unit.path, Knob::CpuQuota, 1.25, 60.0)) {
        Response::Applied(_) => assert_eq!(unit.read("cpu.max"), "125000 100000"),
        other => panic!("{other:?}"),
    }
    let gpu = Knob::GpuPowerLimit(headroom_allocate::Device { major: 195, minor: 0 });
    match Service::ask(&apply(&unit.path, gpu, 100.0, 60.0)) {
        Response::Applied(_) | Response::Status(_) => panic!("a power limit without a GPU"),
        other => println!("of a GPU: {other:?}"),
    }
    match Service::ask(&Request::ReleaseAll) {
        Response::ReleasedAll(tally) => assert_eq!(tally.pending, 0),
        other => panic!("{other:?}"),
    }
    unit.assert_own_limits();
}
