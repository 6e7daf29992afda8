//! An aggregator on loopback, within the test.

use std::{
    net::SocketAddr,
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
