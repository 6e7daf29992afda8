//! The dashboard in a real browser: what people see, and that no script fails on the way.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_telemetry::Feature;
use headroom_wire::TickReport;

use crate::world::{self, World, eventually};

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Time that passes on the page before it is looked at, milliseconds by the page's own clock.
const PAGE_MS: u32 = 6_000;
/// Time the browser may take, seconds.
const BROWSER_S_MAX: &str = "90";
const TICKS: u32 = 30;
const WORKLOADS: u32 = 4;

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut all = BROWSERS.iter().flat_map(|name| folders.iter().map(move |at| at.join(name)));
    all.find(|program| program.is_file())
}

/// Passes requests on to `to`, and ends the stream of live data after its first event: a page whose
/// stream stays open is never done for the browser's own clock. Ends with the test.
fn relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A browser opens connections that it never uses.
            thread::spawn(move || drop(pass_on(stream, to)));
        }
    });
    address
}

fn pass_on(mut browser: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0_u8; 65_536];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match browser.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let first = request.lines().next().unwrap_or_default().replace("HTTP/1.1", "HTTP/1.0");
    let mut server = TcpStream::connect(to)?;
    write!(server, "{first}\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let is_live = first.contains(" /api/live");
    let mut n_ends = 0;
    loop {
        let n = server.read(&mut buffer)?;
        browser.write_all(&buffer[..n])?;
        n_ends += buffer[..n].windows(2).filter(|two| two == b"\n\n").count();
        if n == 0 || (is_live && n_ends > 0) {
            return Ok(());
        }
    }
}

/// The document as it is after [`PAGE_MS`], and what scripts wrote to the console.
fn open(browser: &Path, address: SocketAddr, page: &str) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .arg(BROWSER_S_MAX)
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--virtual-time-budget={PAGE_MS}"))
        .arg(format!("http://{address}/{page}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {}\n{said}", browser.display(), output.status);
    (String::from_utf8_lossy(&output.stdout).into_owned(), said)
}

/// What lies in the element `id`, up to the next element that has an id.
fn part<'d>(document: &'d str, id: &str) -> &'d str {
    let begin = format!("id=\"{id}\"");
    let (_, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("no {id}:\n{document}"));
    rest.split_once(" id=\"").map_or(rest, |(inside, _)| inside)
}

/// A period of workloads whose calls differ, so that they can be told apart.
fn tick(begin_s: f64, i: u32) -> TickReport {
    let mut report = world::tick_at(begin_s, i, WORKLOADS);
    for (w, workload) in report.workloads.iter_mut().enumerate() {
        workload.sample.set(Feature::CpuSystemCores, 0.1);
        workload.sample.set(Feature::Tasks, 4.0);
        for (k, class) in Feature::SYSCALLS.into_iter().enumerate() {
            workload.sample.set(class, if k % WORKLOADS as usize == w { 500.0 } else { 2.0 });
        }
    }
    report
}

#[test]
fn a_browser_shows_workloads_forecasts_and_neighbours_without_a_script_error() {
    let Some(browser) = browser() else {
        println!("skipped: no browser ({})", BROWSERS.join(", "));
        return;
    };
    let world = World::new();
    let server = world.serve();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let begin_s = now_s - f64::from(TICKS);
    let agents = ["host-1", "host-2"].map(|node| world.agent(node, None));
    for i in 0..TICKS {
        for agent in &agents {
            agent.report(tick(begin_s, i));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let all = u64::from(TICKS * WORKLOADS);
    eventually("all samples are acknowledged", || {
        agents.iter().all(|agent| agent.stats().vectors_acked == all)
    });
    agents[0].policy_verdict(77, Ok(()));
    agents[1].policy_verdict(77, Err("not wanted here".to_owned()));
    let policies = |hosts: &str| hosts.contains("77") && hosts.contains("not wanted here");
    eventually("both verdicts are known", || {
        let url = format!("http://{}/api/hosts", server.http);
        policies(&ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap())
    });
    let address = relay(server.http);

    let (document, said) = open(&browser, address, "");
    let workloads = part(&document, "workloads");
    for shown in ["host-1", "host-2", "#/workload/host-1/%2Fw%2F3", "3.50 cores", "base"] {
        assert!(workloads.contains(shown), "{shown} is not in {workloads}");
    }
    let hosts = part(&document, "hosts");
    assert!(hosts.contains("connected"));
    assert!(hosts.contains("version 77 of this aggregator"), "{hosts}");
    assert!(hosts.contains("its own; refused the last: not wanted here"), "{hosts}");
    assert!(!said.contains("Uncaught"), "{said}");

    let (document, said) = open(&browser, address, "#/workload/host-1/%2Fw%2F3");
    let facts = part(&document, "workload-facts");
    assert!(facts.contains("forecast by base"), "{facts}");
    let neighbours = part(&document, "neighbours");
    let rows = neighbours.matches("<tr").count();
    assert_eq!(rows, 2 * WORKLOADS as usize, "a header, and all but itself: {neighbours}");
    let (_, first) = neighbours.split_once("<td").unwrap();
    let first = first.split("</tr>").next().unwrap();
    assert!(first.contains("host-2") && first.contains("0.000"), "the same on the other: {first}");
    assert!(!said.contains("Uncaught"), "{said}");
}
