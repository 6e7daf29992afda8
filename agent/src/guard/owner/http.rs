//! One HTTP/1.1 exchange over a Unix socket, within a deadline: what the Engine APIs need.

use std::{
    io::{self, Read, Write},
    path::Path,
    time::Instant,
};

use super::{error::OwnerError, socket};

/// Longest answer that is read, bytes; an inspected container takes some tens of kilobytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Header fields an answer may have.
const FIELDS_MAX: usize = 64;

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// The body, with chunks put together.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The owner's sentence in an answer that says no, as far as it gives one.
    pub(super) fn sentence(&self) -> String {
        let parsed: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let said = parsed
            .as_ref()
            .and_then(|value| ["message", "cause"].iter().find_map(|key| value.get(key)?.as_str()));
        said.unwrap_or("it gives no reason").chars().take(300).collect()
    }
}

/// Sends one request and reads its answer to the end of the connection.
///
/// # Errors
/// [`OwnerError::Unreachable`] when nobody listens; an answer with any status is no error.
pub(super) fn exchange(
    path: &Path,
    (method, target): (&str, &str),
    body: Option<&str>,
    deadline: Instant,
) -> Result<Answer, OwnerError> {
    let what = format!("{method} {target}");
    let failed = |source| OwnerError::io(path, &what, source);
    let mut stream = socket::connect(path, deadline)?;
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    request.push_str("Connection: close\r\nUser-Agent: headroom-guard\r\n");
    if let Some(body) = body {
        request.push_str("Content-Type: application/json\r\n");
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    socket::limit(&stream, deadline).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut part = [0; 8192];
    loop {
        socket::limit(&stream, deadline).map_err(failed)?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            let text = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(OwnerError::Broken { path: path.to_owned(), what, text });
        }
    }
    parse(&bytes).map_err(|text| OwnerError::Broken { path: path.to_owned(), what, text })
}

/// Reads a whole answer.
///
/// # Errors
/// A sentence, when it is cut off or is none.
fn parse(bytes: &[u8]) -> Result<Answer, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let at = match head.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Complete(at) => at,
        httparse::Status::Partial => return Err("the answer is cut off".to_owned()),
    };
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    let status = head.code.unwrap_or(0);
    let rest = &bytes[at..];
    if field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Ok(Answer { status, body: unchunked(rest)? });
    }
    let body = match field("content-length").and_then(|value| value.parse().ok()) {
        Some(length) => rest.get(..length).ok_or("the body is cut off")?,
        None => rest,
    };
    Ok(Answer { status, body: body.to_vec() })
}

fn unchunked(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Err("a chunk is cut off".to_owned()),
            Err(_invalid) => return Err("a chunk has no size".to_owned()),
        };
        if size == 0 {
            return Ok(body);
        }
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        let chunk = end.and_then(|end| rest.get(start..end)).ok_or("a chunk is cut off")?;
        body.extend_from_slice(chunk);
        // Its data is followed by an empty line's end.
        rest = rest.get(start + chunk.len() + 2..).ok_or("a chunk is cut off")?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, proptest};

    use super::{Answer, parse};

    #[test]
    fn bodies_come_by_length_by_chunks_or_up_to_the_end() {
        let expected = Answer { status: 200, body: b"{\"a\":1}".to_vec() };
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n{\"a\":1}",
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(expected.clone()), "{text}");
        }
    }

    #[test]
    fn an_answer_cut_anywhere_before_its_end_is_an_error() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        for end in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn the_sentence_of_a_refusal_is_found() {
        let said = |body: &str| Answer { status: 409, body: body.as_bytes().to_vec() }.sentence();
        assert_eq!(said("{\"message\":\"no\"}"), "no");
        assert_eq!(said("<html>"), "it gives no reason");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_err(bytes in vec(0u8.., 0..200)) {
            let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            drop(parse(&bytes));
            drop(parse(&[chunked.as_bytes(), &bytes].concat()));
        }
    }
}
