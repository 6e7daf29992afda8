//! A bucket of S3-compatible storage, for code that waits. An object appears whole or not at all.
//!
//! Requests run on a few threads of their own, whoever asks: callers may themselves be tasks.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutPayload, RetryConfig, aws::AmazonS3Builder, client::SpawnedReqwestConnector,
    path::Path as Key,
};
use parquet::file::metadata::ParquetMetaData;
use tokio::runtime::{Builder, Runtime};

use crate::{LakeError, root::S3};

/// Threads that speak to the storage.
const THREADS: usize = 2;
/// How long connecting, and one request, may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// A request that fails in a way that may pass is repeated for so long, so often.
const RETRY_MAX: Duration = Duration::from_secs(20);
const RETRIES_MAX: usize = 6;
/// Bytes of a file that is written which are held in memory and sent together.
const UPLOAD_BYTES: usize = 8 << 20;
/// Footers kept in memory.
const FOOTERS_MAX: usize = 512;
/// Objects that one answer to a listing holds: what is more is listed in several requests.
const LISTED_TOGETHER: usize = 1_000;
/// How often a listing of several requests is repeated while files come and go.
const LISTINGS_MAX: u32 = 8;

/// The footer of a file of so many bytes.
type Footers = HashMap<(PathBuf, u64), Arc<ParquetMetaData>>;

/// A prefix of a bucket.
pub struct Bucket {
    /// `s3://BUCKET`.
    url: String,
    /// `s3://BUCKET/PREFIX`.
    root: PathBuf,
    store: Arc<dyn ObjectStore>,
    /// There until this is dropped.
    runtime: Option<Runtime>,
    footers: Mutex<Footers>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.root.display())
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // A task may not wait for threads; requests that run are given up.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The error of the storage as one of the system, which tells what is gone from what is refused. Of a
/// listing that was refused only the text says so.
fn io_error(error: Error) -> io::Error {
    let text = error.to_string();
    let says = |status: &str| text.contains(&format!("status code: {status}"));
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        _ if says("404") => io::ErrorKind::NotFound,
        _ if says("401") || says("403") => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl Bucket {
    /// The prefix at `lake`, `s3://BUCKET` or `s3://BUCKET/PREFIX`, which is asked for its files.
    ///
    /// # Errors
    ///
    /// When the URL names no bucket, or the storage cannot be reached or refuses.
    pub(crate) fn open(lake: &Path, s3: &S3) -> Result<Self, LakeError> {
        let text = lake.to_string_lossy().trim_end_matches('/').to_owned();
        let refused = |reason: String| LakeError::Url { url: text.clone(), reason };
        let place = text.strip_prefix("s3://").unwrap_or("");
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        if name.is_empty() {
            return Err(refused("it must be s3://BUCKET or s3://BUCKET/PREFIX".to_owned()));
        }
        let prefix = Key::parse(prefix).map_err(|error| refused(error.to_string()))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(LakeError::io("start threads for", lake))?;
        let store = build(name, s3, &runtime).map_err(refused)?;
        let bucket = Self {
            url: format!("s3://{name}"),
            root: PathBuf::from(&text),
            store,
            runtime: Some(runtime),
            footers: Mutex::default(),
        };
        let store = Arc::clone(&bucket.store);
        let answer =
            bucket.wait(async move { store.list_with_delimiter(Some(&prefix)).await.map(drop) });
        match answer {
            Ok(()) => Ok(bucket),
            Err(error) => {
                let way_out = match error.kind() {
                    io::ErrorKind::NotFound => {
                        format!("there is no bucket `{name}`: make it first")
                    }
                    io::ErrorKind::PermissionDenied => {
                        "it is closed to us: look at the keys, in the file `credentials` of \
                         [history.s3] or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and at what \
                         they may do"
                            .to_owned()
                    }
                    _ => "its storage does not answer as it should: look at endpoint, region and \
                          allow_http in [history.s3]"
                        .to_owned(),
                };
                Err(refused(format!("{way_out} ({error})")))
            }
        }
    }

    /// `s3://BUCKET/PREFIX`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `s3://BUCKET`, and what answers for it.
    pub fn store(&self) -> (&str, Arc<dyn ObjectStore>) {
        (&self.url, Arc::clone(&self.store))
    }

    /// Waits for `work`, which the own threads do.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> io::Result<T> {
        let ended = || io::Error::other("the threads that speak to the storage have ended");
        let (sender, receiver) = mpsc::sync_channel(1);
        let runtime = self.runtime.as_ref().ok_or_else(ended)?;
        drop(runtime.spawn(async move {
            // Whoever asked has not gone away: it waits below.
            drop(sender.send(work.await));
        }));
        receiver.recv().map_err(|_ended| ended())?.map_err(io_error)
    }

    fn key(&self, path: &Path) -> io::Result<Key> {
        let of_bucket = path.to_str().and_then(|text| text.strip_prefix(&self.url));
        let key = of_bucket
            .ok_or_else(|| io::Error::other(format!("{} is in another bucket", path.display())))?;
        Key::parse(key).map_err(io::Error::other)
    }

    /// Objects below `dir`, but for those whose names are before `start`: where, and how long.
    ///
    /// # Errors
    ///
    /// When the storage does not tell.
    pub(crate) fn list(&self, dir: &Path, start: &Path) -> Result<Vec<(PathBuf, u64)>, LakeError> {
        let failed = || LakeError::io("list", dir);
        let mut before = None;
        for _ in 0..LISTINGS_MAX {
            let found = self.list_once(dir, start).map_err(failed())?;
            // Answers that follow each other may show neither what was merged nor what came of it.
            if found.len() < LISTED_TOGETHER || before.as_ref() == Some(&found) {
                return Ok(found);
            }
            before = Some(found);
        }
        Ok(before.unwrap_or_default())
    }

    fn list_once(&self, dir: &Path, start: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let (prefix, offset) = (self.key(dir)?, self.key(start)?);
        let (store, url) = (Arc::clone(&self.store), self.url.clone());
        self.wait(async move {
            let objects: Vec<_> =
                store.list_with_offset(Some(&prefix), &offset).try_collect().await?;
            let place = |key: &Key| PathBuf::from(format!("{url}/{key}"));
            Ok(objects.iter().map(|object| (place(&object.location), object.size)).collect())
        })
    }

    /// The bytes of `ranges` of the object at `path`; those close to each other in one request.
    ///
    /// # Errors
    ///
    /// When it is gone, or the storage does not tell.
    pub(crate) fn read(
        &self,
        path: &Path,
        ranges: Vec<Range<u64>>,
    ) -> Result<Vec<Bytes>, LakeError> {
        let failed = || LakeError::io("read", path);
        let key = self.key(path).map_err(failed())?;
        let store = Arc::clone(&self.store);
        self.wait(async move { store.get_ranges(&key, &ranges).await }).map_err(failed())
    }

    /// Removes the object at `path`; one that is gone already is no error.
    ///
    /// # Errors
    ///
    /// When the storage refuses.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.forget(path);
        let (key, store) = (self.key(path)?, Arc::clone(&self.store));
        match self.wait(async move { store.delete(&key).await }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The footer of the file at `path`, if it is known.
    pub(crate) fn footer(&self, path: &Path, bytes: u64) -> Option<Arc<ParquetMetaData>> {
        let footers = self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        footers.get(&(path.to_owned(), bytes)).cloned()
    }

    /// Keeps the footer of the file at `path`.
    pub(crate) fn keep_footer(&self, path: &Path, bytes: u64, footer: &Arc<ParquetMetaData>) {
        let mut footers = self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        if footers.len() >= FOOTERS_MAX {
            footers.clear();
        }
        footers.insert((path.to_owned(), bytes), Arc::clone(footer));
    }

    fn forget(&self, path: &Path) {
        let mut footers = self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        footers.retain(|(known, _), _| known != path);
    }

    /// Begins the object that will be at `path`.
    pub(crate) fn upload(self: &Arc<Self>, path: &Path) -> Result<Upload, LakeError> {
        let key = self.key(path).map_err(LakeError::io("upload", path))?;
        self.forget(path);
        Ok(Upload { bucket: Arc::clone(self), key, waiting: Vec::new(), parts: None, bytes: 0 })
    }
}

fn build(name: &str, s3: &S3, runtime: &Runtime) -> Result<Arc<dyn ObjectStore>, String> {
    let mut options =
        ClientOptions::new().with_connect_timeout(CONNECT_MAX).with_timeout(REQUEST_MAX);
    if s3.allow_http {
        options = options.with_allow_http(true);
    }
    if let Some(path) = &s3.ca {
        let pem =
            fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let authorities = Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("{} holds no certificates: {error}", path.display()))?;
        for authority in authorities {
            options = options.with_root_certificate(authority);
        }
    }
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(3), ..BackoffConfig::default() },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_MAX,
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_client_options(options)
        .with_retry(retry)
        .with_http_connector(SpawnedReqwestConnector::new(runtime.handle().clone()));
    if let Some(path) = &s3.credentials {
        let keys = credentials(path)?;
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        if let Some(token) = keys.token {
            builder = builder.with_token(token);
        }
    }
    if !s3.endpoint.is_empty() {
        builder = builder.with_endpoint(&s3.endpoint);
    }
    if !s3.region.is_empty() {
        builder = builder.with_region(&s3.region);
    }
    builder.build().map(|store| Arc::new(store) as _).map_err(|error| error.to_string())
}

/// What proves to the storage who asks.
#[derive(Default)]
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

/// The keys in a file as `aws configure` writes it. The error never holds a part of them.
fn credentials(path: &Path) -> Result<Keys, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut keys = Keys::default();
    let mut is_ours = true;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_ours = section.trim_end_matches(']').trim() == "default";
        }
        let Some((name, value)) = line.split_once('=').filter(|_| is_ours) else { continue };
        let value = value.trim().to_owned();
        match name.trim() {
            "aws_access_key_id" => keys.id = value,
            "aws_secret_access_key" => keys.secret = value,
            "aws_session_token" => keys.token = Some(value),
            _ => {}
        }
    }
    if keys.id.is_empty() || keys.secret.is_empty() {
        return Err(format!(
            "{} does not have aws_access_key_id and aws_secret_access_key in [default]",
            path.display()
        ));
    }
    Ok(keys)
}

/// An object that is being written: sent in parts, there from [`Self::complete`] on.
#[derive(Debug)]
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    waiting: Vec<u8>,
    /// Once there is more than one.
    parts: Option<Box<dyn MultipartUpload>>,
    bytes: u64,
}

impl Upload {
    fn send_part(&mut self) -> io::Result<()> {
        let data = PutPayload::from(std::mem::take(&mut self.waiting));
        if self.parts.is_none() {
            let (store, key) = (Arc::clone(&self.bucket.store), self.key.clone());
            let begun = self.bucket.wait(async move { store.put_multipart(&key).await })?;
            self.parts = Some(begun);
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let sent = parts.put_part(data);
        self.bucket.wait(sent)
    }

    /// Lets it be there; returns how long it is.
    ///
    /// # Errors
    ///
    /// When the storage refuses; then it is not there.
    pub(crate) fn complete(mut self) -> io::Result<u64> {
        if self.parts.is_none() {
            let data = PutPayload::from(std::mem::take(&mut self.waiting));
            let (store, key) = (Arc::clone(&self.bucket.store), self.key.clone());
            self.bucket.wait(async move { store.put(&key, data).await.map(drop) })?;
            return Ok(self.bytes);
        }
        if !self.waiting.is_empty() {
            self.send_part()?;
        }
        if let Some(mut parts) = self.parts.take() {
            self.bucket.wait(async move {
                match parts.complete().await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        // What is left of it then waits for the storage's own cleaning.
                        drop(parts.abort().await);
                        Err(error)
                    }
                }
            })?;
        }
        Ok(self.bytes)
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        if self.waiting.len() >= UPLOAD_BYTES {
            self.send_part()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            // Given up: parts that stay are charged for until the storage cleans them up.
            drop(self.bucket.wait(async move { parts.abort().await }));
        }
    }
}
