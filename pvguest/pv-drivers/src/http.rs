//! The part of HTTP/1.0 and 1.1 that a file server needs: one request, one answer, connection closed.

use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of a request's header at most.
pub const MAX_HEADER: usize = 4096;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The path without the leading slash and without `?...`, percent-decoded.
    pub path: String,
    /// `HEAD`: no body.
    pub head_only: bool,
}

/// Why there is no answer with a file: the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 431
    HeaderTooLarge,
    /// 500
    Failed,
}

impl Refusal {
    /// Status and reason, as in the status line.
    pub const fn status(self) -> &'static str {
        match self {
            Refusal::BadRequest => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::MethodNotAllowed => "405 Method Not Allowed",
            Refusal::HeaderTooLarge => "431 Request Header Fields Too Large",
            Refusal::Failed => "500 Internal Server Error",
        }
    }
}

/// Collects a request's header as it arrives.
#[derive(Debug, Default)]
pub struct Parser {
    header: Vec<u8>,
}

impl Parser {
    /// Takes bytes; the request once its header is complete. What follows the header is not looked at.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Result<Request, Refusal>> {
        let room = MAX_HEADER - self.header.len().min(MAX_HEADER);
        self.header
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let complete = self.header.windows(4).any(|w| w == b"\r\n\r\n")
            || self.header.windows(2).any(|w| w == b"\n\n");
        if complete {
            return Some(parse(&self.header));
        }
        (bytes.len() > room || self.header.len() == MAX_HEADER)
            .then_some(Err(Refusal::HeaderTooLarge))
    }
}

fn parse(header: &[u8]) -> Result<Request, Refusal> {
    let line = header.split(|&b| b == b'\n').next().unwrap_or(header);
    let line = core::str::from_utf8(line).map_err(|_| Refusal::BadRequest)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::BadRequest);
    };
    if !version.starts_with("HTTP/1.") {
        return Err(Refusal::BadRequest);
    }
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Refusal::MethodNotAllowed),
    };
    let path = target.strip_prefix('/').ok_or(Refusal::BadRequest)?;
    let path = path.split('?').next().unwrap_or(path);
    Ok(Request {
        path: decode(path).ok_or(Refusal::BadRequest)?,
        head_only,
    })
}

/// Undoes percent-encoding; none if a code is cut off, no number, or the result is no text.
fn decode(path: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (bytes.next()?, bytes.next()?);
                let digit = |b: u8| char::from(b).to_digit(16);
                (digit(high)? * 16 + digit(low)?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests() {
        let ok = |path: &str, head_only| {
            let path = path.into();
            Ok(Request { path, head_only })
        };
        for (text, expected) in [
            ("GET / HTTP/1.0\r\n\r\n", ok("", false)),
            ("GET /a/b?x=1 HTTP/1.1\r\nHost: h\r\n\r\n", ok("a/b", false)),
            ("HEAD /%41%2f HTTP/1.1\n\n", ok("A/", true)),
            ("POST / HTTP/1.1\r\n\r\n", Err(Refusal::MethodNotAllowed)),
            ("GET a HTTP/1.1\r\n\r\n", Err(Refusal::BadRequest)),
            ("GET /%4 HTTP/1.1\r\n\r\n", Err(Refusal::BadRequest)),
            ("GET /%ff HTTP/1.1\r\n\r\n", Err(Refusal::BadRequest)),
            ("GET /a\r\n\r\n", Err(Refusal::BadRequest)),
            ("GET /a b HTTP/1.1\r\n\r\n", Err(Refusal::BadRequest)),
            ("GET / SPDY\r\n\r\n", Err(Refusal::BadRequest)),
            ("\r\n\r\n", Err(Refusal::BadRequest)),
        ] {
            for cut in [1, 3, 1000] {
                let mut parser = Parser::default();
                let got = text
                    .as_bytes()
                    .chunks(cut)
                    .find_map(|piece| parser.feed(piece));
                assert_eq!(got, Some(expected.clone()), "{text:?}");
            }
        }
    }

    #[test]
    fn headers_are_bounded() {
        let mut parser = Parser::default();
        let answer = (0..100).find_map(|_| parser.feed(&[b'x'; 100]));
        assert_eq!(answer, Some(Err(Refusal::HeaderTooLarge)));
        assert!(parser.header.len() <= MAX_HEADER);
        assert_eq!(Parser::default().feed(b"GET / HTTP/1.0\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut whole = bytes.clone();
            whole.extend_from_slice(b"\r\n\r\n");
            prop_assert!(Parser::default().feed(&whole).is_some());
        }
    }
}
