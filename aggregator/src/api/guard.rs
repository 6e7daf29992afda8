//! Keeps pages of other sites out, and sets the headers that keep ours tight.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::Failure;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

pub(super) async fn check(
    State(names): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(failure) = admit(request.method(), request.headers(), &names) {
        return failure.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn admit(method: &Method, headers: &HeaderMap, names: &[String]) -> Result<(), Failure> {
    let host = text(headers, &header::HOST).unwrap_or("");
    if !is_ours(host, names) {
        return Err(Failure(
            StatusCode::MISDIRECTED_REQUEST,
            format!("this is not `{host}`; add the name to listen.http_names to allow it"),
        ));
    }
    if method != Method::GET
        && method != Method::HEAD
        && let Some(origin) = text(headers, &header::ORIGIN)
        && origin.split_once("://").is_none_or(|(_, of_origin)| of_origin != host)
    {
        let reason = format!("`{origin}` may not change anything here");
        return Err(Failure(StatusCode::FORBIDDEN, reason));
    }
    Ok(())
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Method, header};

    use super::admit;

    fn is_admitted(method: &Method, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        admit(method, &headers, &["fleet.example".to_owned()]).is_ok()
    }

    #[test]
    fn only_our_own_names_are_answered() {
        for host in ["127.0.0.1:7480", "[::1]:7480", "localhost", "LOCALHOST:1", "fleet.example:80"]
        {
            assert!(is_admitted(&Method::GET, host, None), "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example:7480", "[::1.evil]:7480"] {
            assert!(!is_admitted(&Method::GET, host, None), "{host}");
        }
    }

    #[test]
    fn other_sites_change_nothing() {
        let host = "127.0.0.1:7480";
        assert!(is_admitted(&Method::POST, host, None));
        assert!(is_admitted(&Method::POST, host, Some("http://127.0.0.1:7480")));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9999"] {
            assert!(!is_admitted(&Method::POST, host, Some(origin)), "{origin}");
        }
    }
}
