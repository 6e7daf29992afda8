//! Requests to another system: bounded, with patience. What may pass (429, 5xx, a lost connection) is
//! tried again with pauses that double; what will not is an error that says what the other side said.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use thiserror::Error;
use ureq::{
    Agent,
    http::{Response, header},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// Bytes of an answer at most; a window of which the answer is larger is asked for in halves.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Time for one request of an import, the other side's work included.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(120);
/// The first pause before a request is made again.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause, also where the other side asks for a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Certificates of authorities, where nothing else is said: Debian's and Red Hat's place.
const SYSTEM_CA: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// Bytes of an error's text that are told.
const ERROR_BYTES_MAX: u64 = 4_096;

/// Why another system cannot be asked.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address is none.
    #[error("`{url}` is no address: {problem}")]
    Address {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file of a token or certificates.
    #[error("cannot use {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The other side says no.
    #[error("{url} answers {status}: {text}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// The other side is not to be had.
    #[error("{url}: {text} (tried {tries} times)")]
    Away {
        /// What was asked.
        url: String,
        /// What happened last.
        text: String,
        /// How often.
        tries: u32,
    },
    /// The answer is too large, or the other side says the question is.
    #[error("{url}: too much at once: {text}")]
    TooMuch {
        /// What was asked.
        url: String,
        /// Who says so.
        text: String,
    },
    /// The answer is not what it should be.
    #[error("{url}: cannot read the answer: {text}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong.
        text: String,
    },
}

/// How to reach another system.
#[derive(Clone, Debug)]
pub struct Access<'a> {
    /// Its address; a path before the API's is kept.
    pub url: &'a str,
    /// A file with a token, or with a whole value of the Authorization header.
    pub token_file: Option<&'a Path>,
    /// What a bare token is called in the header.
    pub token_scheme: &'static str,
    /// A file with the certificates of authorities to trust, in PEM.
    pub ca: Option<&'a Path>,
    /// How often a request is tried in all.
    pub tries: u32,
    /// Time for one request, the other side's work included.
    pub answer_time: Duration,
}

/// Asks one system.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    authorization: Option<String>,
    tries: u32,
    /// Requests made, and those that were made again.
    pub(super) requests: u64,
    pub(super) retries: u64,
}

impl Client {
    /// Reads the files; asks nothing yet.
    ///
    /// # Errors
    ///
    /// When the address is none, or a file cannot be used.
    pub fn new(access: &Access<'_>) -> Result<Self, HttpError> {
        let refuse = |problem| HttpError::Address { url: access.url.to_owned(), problem };
        let is_tls = access.url.starts_with("https://");
        if !is_tls && !access.url.starts_with("http://") {
            return Err(refuse("it must begin with http:// or https://"));
        }
        if access.url.contains('@') {
            return Err(refuse("a password does not belong there; use --token-file"));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(access.answer_time))
            .user_agent(concat!("headroom-aggregator/", env!("CARGO_PKG_VERSION")));
        if is_tls {
            config = config.tls_config(tls(access.ca)?);
        }
        Ok(Self {
            agent: config.build().into(),
            base: access.url.trim_end_matches('/').to_owned(),
            authorization: access
                .token_file
                .map(|path| authorization(path, access.token_scheme))
                .transpose()?,
            tries: access.tries.max(1),
            requests: 0,
            retries: 0,
        })
    }

    /// Asks `path` with these parameters; the whole answer.
    ///
    /// # Errors
    ///
    /// When the other side refuses, stays away, or answers too much.
    pub fn get(&mut self, path: &str, query: &[(&str, String)]) -> Result<Vec<u8>, HttpError> {
        let url = format!("{}{path}", self.base);
        let mut pause = PAUSE_FIRST;
        let mut said = String::new();
        for tried in 1..=self.tries {
            self.requests += 1;
            let mut request = self.agent.get(&url);
            if let Some(authorization) = &self.authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            for (name, value) in query {
                request = request.query(name, value);
            }
            let mut asked_pause = None;
            match request.call() {
                Ok(answer) => match read(&url, answer)? {
                    Read::Whole(bytes) => return Ok(bytes),
                    Read::Later { text, after } => {
                        said = text;
                        asked_pause = after;
                    }
                },
                Err(error) => said = error.to_string(),
            }
            if tried < self.tries {
                self.retries += 1;
                thread::sleep(asked_pause.unwrap_or(pause).min(PAUSE_MAX));
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        Err(HttpError::Away { url, text: said, tries: self.tries })
    }

    /// Sends `body` to `path` once; the status and what was said.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(u16, String), HttpError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.post(&url);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let away = |error: ureq::Error| HttpError::Away {
            url: url.clone(),
            text: error.to_string(),
            tries: 1,
        };
        let mut answer = request.send(body).map_err(away)?;
        let status = answer.status().as_u16();
        Ok((status, short(&mut answer)))
    }
}

/// What came of a request.
enum Read {
    Whole(Vec<u8>),
    /// Not now.
    Later {
        text: String,
        after: Option<Duration>,
    },
}

fn read(url: &str, mut answer: Response<ureq::Body>) -> Result<Read, HttpError> {
    let status = answer.status().as_u16();
    let url = url.to_owned();
    match status {
        200 => {}
        429 | 500.. => {
            let after = answer.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let text = format!("{status}: {}", short(&mut answer));
            return Ok(Read::Later { text, after: after.map(Duration::from_secs) });
        }
        // Prometheus says so of a query that would load too many samples.
        422 => return Err(HttpError::TooMuch { url, text: short(&mut answer) }),
        _ => return Err(HttpError::Refused { url, status, text: short(&mut answer) }),
    }
    match answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec() {
        Ok(bytes) => Ok(Read::Whole(bytes)),
        Err(ureq::Error::BodyExceedsLimit(bytes)) => {
            Err(HttpError::TooMuch { url, text: format!("the answer is over {bytes} bytes") })
        }
        Err(error) => Ok(Read::Later { text: error.to_string(), after: None }),
    }
}

/// The beginning of an answer, safe to print.
fn short(answer: &mut Response<ureq::Body>) -> String {
    let mut bytes = Vec::new();
    let body = answer.body_mut().as_reader();
    if let Err(error) = body.take(ERROR_BYTES_MAX).read_to_end(&mut bytes) {
        return error.to_string();
    }
    let text = String::from_utf8_lossy(&bytes);
    headroom_telemetry::printable(text.trim()).into_owned()
}

/// The value of the Authorization header from a file.
fn authorization(path: &Path, scheme: &str) -> Result<String, HttpError> {
    let failed = |problem: String| HttpError::File { path: path.to_owned(), problem };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(failed("it must hold one line with a token".to_owned()));
    }
    let is_whole = ["Bearer ", "Basic ", "Token "].iter().any(|start| text.starts_with(start));
    Ok(if is_whole { text.to_owned() } else { format!("{scheme} {text}") })
}

fn tls(ca: Option<&Path>) -> Result<TlsConfig, HttpError> {
    let system = || SYSTEM_CA.iter().map(Path::new).find(|path| path.exists());
    let Some(path) = ca.or_else(system) else {
        let problem = "no certificates of authorities are installed; name them with --ca";
        return Err(HttpError::File { path: SYSTEM_CA[0].into(), problem: problem.to_owned() });
    };
    let failed = |problem: String| HttpError::File { path: path.to_owned(), problem };
    let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let roots: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".to_owned()));
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::{Access, Client, HttpError};

    /// Answers each connection with the next text; gives back the requests.
    fn server(answers: Vec<&'static str>) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).unwrap();
                seen.push(String::from_utf8_lossy(&bytes[..n]).into_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            seen
        });
        (url, task)
    }

    fn client(url: &str, token_file: Option<&std::path::Path>) -> Client {
        let access = Access {
            url,
            token_file,
            token_scheme: "Bearer",
            ca: None,
            tries: 3,
            answer_time: super::REQUEST_TIME,
        };
        Client::new(&access).unwrap()
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_told() {
        let (url, task) = server(vec![
            "HTTP/1.1 429 Too Many\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            "HTTP/1.1 400 Bad\r\ncontent-length: 9\r\nconnection: close\r\n\r\nno \u{7}sense",
            "HTTP/1.1 422 Much\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ]);
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "abc\n").unwrap();
        let mut client = client(&url, Some(&token));
        assert_eq!(client.get("/x", &[("q", "a b".to_owned())]).unwrap(), b"ok");
        assert_eq!((client.requests, client.retries), (3, 2));
        let error = client.get("/x", &[]).unwrap_err().to_string();
        assert!(error.contains("400") && error.contains("no \\u{7}sens"), "{error}");
        assert!(matches!(client.get("/x", &[]), Err(HttpError::TooMuch { .. })));
        let seen = task.join().unwrap();
        assert!(seen[0].starts_with("GET /x?q=a%20b "), "{}", seen[0]);
        assert!(seen[0].to_lowercase().contains("authorization: bearer abc"), "{}", seen[0]);
    }

    #[test]
    fn what_stays_away_is_told_with_the_tries() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let access = Access {
            url: &url,
            token_file: None,
            token_scheme: "Bearer",
            ca: None,
            tries: 2,
            answer_time: super::REQUEST_TIME,
        };
        let error = Client::new(&access).unwrap().get("/", &[]).unwrap_err().to_string();
        assert!(error.contains("tried 2 times"), "{error}");
        let password = Access { url: "http://u:p@h", ..access.clone() };
        assert!(Client::new(&password).unwrap_err().to_string().contains("--token-file"));
        assert!(Client::new(&Access { url: "h:9090", ..access }).is_err());
    }
}
