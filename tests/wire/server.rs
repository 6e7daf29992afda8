//! An aggregator on loopback, within the test, or as a process.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use headroom_aggregator::{api::View, app::App, config::AggregatorConfig};
use tokio::sync::oneshot;

/// An aggregator in a thread of its own.
pub(crate) struct Server {
    pub(crate) quic: SocketAddr,
    pub(crate) http: SocketAddr,
    view: Option<View>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(config: AggregatorConfig) -> Self {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let app = App::build(config).await.unwrap();
                ready.send((app.addresses().unwrap(), app.view())).unwrap();
                app.run(async {
                    drop(stopped.await);
                })
                .await;
            });
        });
        let ((quic, http), view) = started.recv().unwrap();
        Self { quic, http, view: Some(view), stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn view(&self) -> &View {
        self.view.as_ref().unwrap()
    }

    /// Ends it; history is closed when this returns.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The journal is locked for as long as anyone holds it.
        self.view = None;
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap_or_default();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the aggregator that `command` runs, and waits until it listens.
pub(crate) fn start_until_ready(command: &mut Command) -> Child {
    let mut child = command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
    }
    thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    child
}
