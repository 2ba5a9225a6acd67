//! A guest's request, and the answer in Firecracker's words.

use httparse::{EMPTY_HEADER, Header, Status};

use super::State;
use super::session::LIFETIMES;
use super::store::LookupError;
use crate::model::MmdsVersion;

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 8192;

const MAX_HEADERS: usize = 32;

/// Where sessions are opened.
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const LIFETIME: [&str; 2] = [
    "x-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds",
];

/// An answer to the first request of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// How many bytes the request has.
    pub request: usize,
    /// The answer's bytes.
    pub answer: Vec<u8>,
    /// Whether the connection ends with it.
    pub last: bool,
}

/// Answers the first request in `bytes`; `None` if it is not complete.
#[must_use]
pub fn answer(bytes: &[u8], state: &mut State) -> Option<Answered> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < MAX_REQUEST => return None,
        Ok(Status::Partial) => return Some(malformed(bytes, "it is too long")),
        Err(error) => return Some(malformed(bytes, &error.to_string())),
    };
    let request = Request {
        method: request.method.unwrap_or_default(),
        path: request.path.unwrap_or_default(),
        headers: request.headers,
    };
    let body = match request.header(&["content-length"]) {
        None => 0,
        Some((_, length)) => match length.parse() {
            Ok(length) if length <= MAX_REQUEST - head.min(MAX_REQUEST) => length,
            _ => return Some(malformed(bytes, "its length")),
        },
    };
    if bytes.len() < head + body {
        return None;
    }
    let close = request.header(&["connection"]);
    let last = close.is_some_and(|(_, value)| value.eq_ignore_ascii_case("close"));
    Some(Answered {
        request: head + body,
        answer: request.respond(state).bytes(),
        last,
    })
}

fn malformed(bytes: &[u8], why: &str) -> Answered {
    Answered {
        request: bytes.len(),
        answer: Response::text(400, format!("Invalid request: {why}.")).bytes(),
        last: true,
    }
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [Header<'a>],
}

impl Request<'_> {
    /// The first header with one of these names, its value as text.
    fn header(&self, names: &[&str]) -> Option<(&str, &str)> {
        let is_one = |name: &str| names.iter().any(|it| it.eq_ignore_ascii_case(name));
        let found = self.headers.iter().find(|header| is_one(header.name))?;
        // What is no text matches nothing.
        Some((found.name, str::from_utf8(found.value).unwrap_or_default()))
    }

    fn respond(&self, state: &mut State) -> Response {
        match self.method {
            "GET" if state.version == MmdsVersion::V2 => match self.header(&TOKEN) {
                None => Response::text(
                    401,
                    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify \
                     the session token.",
                ),
                Some((_, token)) if !state.sessions.is_open(token) => {
                    Response::text(401, "MMDS token not valid.")
                }
                Some(_) => self.get(state),
            },
            "GET" => self.get(state),
            "PUT" => self.open_session(state),
            _ => Response {
                header: Some(("Allow".into(), "GET, PUT".into())),
                ..Response::text(405, "Not allowed HTTP method.")
            },
        }
    }

    fn get(&self, state: &State) -> Response {
        let accepted = self.header(&["accept"]);
        let json = accepted.is_some_and(|(_, it)| it.eq_ignore_ascii_case("application/json"));
        let found = state
            .store
            .lookup(&sanitized(self.path), json && !state.imds_compat);
        match found {
            Ok(body) => Response {
                content_type: if json { "application/json" } else { TEXT },
                ..Response::text(200, body)
            },
            Err(LookupError::NotFound) => self.not_found(),
            Err(error @ LookupError::UnsupportedType) => Response::text(501, error.to_string()),
        }
    }

    fn open_session(&self, state: &mut State) -> Response {
        if let Some((name, _)) = self.header(&["x-forwarded-for"]) {
            let text = format!("Invalid header. Reason: Unsupported header name. Key: {name}");
            return Response::text(400, text);
        }
        if sanitized(self.path) != TOKEN_PATH {
            return self.not_found();
        }
        let Some((name, value)) = self.header(&LIFETIME) else {
            return Response::text(
                400,
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                 `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            );
        };
        let Ok(seconds) = value.parse() else {
            let text = format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{value}");
            return Response::text(400, text);
        };
        if !LIFETIMES.contains(&seconds) {
            let text = format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value between {} and {}.",
                LIFETIMES.start(),
                LIFETIMES.end()
            );
            return Response::text(400, text);
        }
        match state.sessions.open(seconds) {
            Ok(token) => Response {
                header: Some((name.to_owned(), seconds.to_string())),
                ..Response::text(200, token)
            },
            Err(error) => Response::text(500, error.to_string()),
        }
    }

    fn not_found(&self) -> Response {
        Response::text(404, format!("Resource not found: {}.", self.path))
    }
}

/// The path with single slashes.
fn sanitized(path: &str) -> String {
    let mut sanitized = String::with_capacity(path.len());
    for c in path.chars() {
        if !(c == '/' && sanitized.ends_with('/')) {
            sanitized.push(c);
        }
    }
    sanitized
}

const TEXT: &str = "text/plain";

struct Response {
    status: u16,
    content_type: &'static str,
    header: Option<(String, String)>,
    body: String,
}

impl Response {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: TEXT,
            header: None,
            body: body.into(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let header = match &self.header {
            Some((name, value)) => format!("{name}: {value}\r\n"),
            None => String::new(),
        };
        format!(
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n{header}Content-Type: {}\r\n\
             Content-Length: {}\r\n\r\n{}",
            self.status,
            self.content_type,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mmds::Mmds;

    fn mmds() -> Mmds {
        let mmds = Mmds::new(1000);
        let value =
            json!({ "latest": { "meta-data": { "id": "i-1", "n": 1, "more": {} } }, "a": "b" });
        mmds.lock().store.put(value).unwrap();
        mmds
    }

    /// Status and body of the answer to a request.
    fn ask(mmds: &Mmds, head: &str) -> (u16, String) {
        let request = format!("{head}\r\n\r\n").replace("; ", "\r\n");
        let answered = answer(request.as_bytes(), &mut mmds.lock()).unwrap();
        assert_eq!(answered.request, request.len());
        let text = String::from_utf8(answered.answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[test]
    fn values_as_text_and_as_json() {
        let mmds = mmds();
        let get = |path: &str| ask(&mmds, &format!("GET {path} HTTP/1.1"));
        assert_eq!(get("/"), (200, "a\nlatest/".into()));
        assert_eq!(get("//latest//meta-data/id"), (200, "i-1".into()));
        assert_eq!(get("/latest/meta-data/"), (200, "id\nmore/\nn".into()));
        assert_eq!(get("/no"), (404, "Resource not found: /no.".into()));
        assert_eq!(get("/latest/meta-data/n").0, 501);
        let json = ask(
            &mmds,
            "GET /latest/meta-data/n HTTP/1.1; accept: application/json",
        );
        assert_eq!(json, (200, "1".into()));
        mmds.lock().imds_compat = true;
        let json = ask(&mmds, "GET / HTTP/1.1; Accept: application/json");
        assert_eq!(json, (200, "a\nlatest/".into()));
        assert_eq!(ask(&mmds, "PATCH / HTTP/1.1").0, 405);
    }

    #[test]
    fn version_2_wants_a_token() {
        let mmds = mmds();
        mmds.lock().version = MmdsVersion::V2;
        assert_eq!(ask(&mmds, "GET /a HTTP/1.1").0, 401);
        assert_eq!(ask(&mmds, "GET /a HTTP/1.1; X-metadata-token: x").0, 401);
        let put = "PUT /latest/api/token HTTP/1.1";
        assert_eq!(ask(&mmds, put).0, 400);
        assert_eq!(ask(&mmds, "PUT /other HTTP/1.1").0, 404);
        for lifetime in ["0", "21601", "x"] {
            let head = format!("{put}; X-metadata-token-ttl-seconds: {lifetime}");
            assert_eq!(ask(&mmds, &head).0, 400, "{lifetime}");
        }
        let head = format!("{put}; X-aws-ec2-metadata-token-ttl-seconds: 60");
        assert_eq!(ask(&mmds, &format!("{head}; X-Forwarded-For: a")).0, 400);
        let (status, token) = ask(&mmds, &head);
        assert_eq!(status, 200);
        let head = format!("GET /a HTTP/1.1; x-aws-ec2-metadata-token: {token}");
        assert_eq!(ask(&mmds, &head), (200, "b".into()));
    }

    #[test]
    fn requests_in_parts_and_none() {
        let mmds = mmds();
        let mut state = mmds.lock();
        let request = b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        for length in 0..request.len() {
            assert_eq!(answer(&request[..length], &mut state), None, "{length}");
        }
        let whole = answer(request, &mut state).unwrap();
        assert_eq!((whole.request, whole.last), (request.len(), true));
        for bad in [
            b"\x16\x03\x01 no http".as_slice(),
            b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            &[b'a'; MAX_REQUEST],
        ] {
            let answered = answer(bad, &mut state).unwrap();
            assert!(answered.last && answered.answer.starts_with(b"HTTP/1.1 400"));
        }
    }
}
