//! S3-compatible storage of another make, which checks signatures, as a process on loopback.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use tempfile::TempDir;

use crate::server::{Started, find, free_port};

const PROGRAM: &str = "s3s-fs";
/// The bucket that is there.
pub const BUCKET: &str = "fleet";

/// The storage, with one bucket, in a directory of its own.
#[derive(Debug)]
pub struct S3Server {
    program: PathBuf,
    dir: TempDir,
    port: u16,
    running: Option<Started>,
}

impl S3Server {
    /// Starts one; `None` where it is not installed, which is told.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> Result<Option<Self>> {
        let unpacked =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/s3/bin").join(PROGRAM);
        let Some(program) = find(PROGRAM).or_else(|| unpacked.is_file().then_some(unpacked)) else {
            println!(
                "\nskipped: no S3-compatible storage here; `cargo xtask test --only storage` \
                 builds it"
            );
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("data").join(BUCKET))?;
        let keys =
            "[default]\naws_access_key_id = HEADROOM\naws_secret_access_key = of/the+tests\n";
        fs::write(dir.path().join("credentials"), keys)?;
        let mut server = Self { program, dir, port: free_port(), running: None };
        server.resume()?;
        Ok(Some(server))
    }

    /// Ends it; what it holds stays.
    pub fn pause(&mut self) {
        self.running = None;
    }

    /// Starts it again, at the same address.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&mut self) -> Result<()> {
        let port = self.port;
        let mut running = Started::new(
            Command::new(&self.program)
                .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                .args(["--access-key", "HEADROOM", "--secret-key", "of/the+tests"])
                .arg(self.dir.path().join("data")),
        )?;
        running.wait_until(&self.endpoint(), || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        self.running = Some(running);
        Ok(())
    }

    /// Its URL, in the clear.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with its keys.
    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }
}
