//! One client after another on one socket: request, header, content, close.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use pvguest::net::Network;
use pvguest::pv_drivers::http::{Parser, Refusal, Request};
use pvguest::pv_drivers::tar::File;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use crate::files::Files;

/// Bytes of content read from the disk at a time.
const PIECE: usize = 44 * 1024;
/// Bytes that wait to be sent or acknowledged.
const SEND_BUFFER: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 2048;
/// A client that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(30);

/// A socket and what is happening on it.
pub(crate) struct Connection {
    handle: SocketHandle,
    port: u16,
    phase: Phase,
}

enum Phase {
    /// Nobody is there yet.
    Listening,
    /// The request is arriving.
    Receiving(Parser),
    /// The answer is being sent.
    Sending(Answer),
    /// All is handed to the socket; the client has yet to take it.
    Closing,
}

/// Bytes that are sent next, and what of the file follows.
struct Answer {
    ready: Vec<u8>,
    sent: usize,
    file: Option<File>,
    offset: u64,
}

impl Connection {
    pub(crate) fn new(network: &mut Network, port: u16) -> Connection {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_timeout(Some(IDLE));
        socket.set_nagle_enabled(false);
        Connection {
            handle: network.sockets.add(socket),
            port,
            phase: Phase::Listening,
        }
    }

    /// Goes on as far as it can; whether it did something.
    pub(crate) fn step(&mut self, sockets: &mut SocketSet<'static>, files: &mut Files) -> bool {
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        match &mut self.phase {
            Phase::Listening if !socket.is_open() => {
                // It fails only for port 0 or an open socket.
                let _ = socket.listen(self.port);
                false
            }
            Phase::Listening if socket.may_recv() => {
                self.phase = Phase::Receiving(Parser::default());
                true
            }
            Phase::Listening => false,
            Phase::Receiving(parser) => {
                if socket.can_recv() {
                    let request = socket.recv(|bytes| (bytes.len(), parser.feed(bytes)));
                    if let Ok(Some(request)) = request {
                        self.phase = Phase::Sending(Answer::new(request, files));
                    }
                    return true;
                }
                if socket.may_recv() {
                    return false;
                }
                self.abort(socket)
            }
            Phase::Sending(answer) => {
                if !socket.may_send() {
                    return self.abort(socket);
                }
                match answer.step(socket, files) {
                    Ok(Progress::Moved) => true,
                    Ok(Progress::Full) => false,
                    Ok(Progress::Done) => {
                        files.served += 1;
                        socket.close();
                        self.phase = Phase::Closing;
                        true
                    }
                    // The header is out: all that can be done is to break off.
                    Err(()) => self.abort(socket),
                }
            }
            Phase::Closing => {
                if socket.is_open() && socket.state() != State::TimeWait {
                    return false;
                }
                // Waiting out TIME-WAIT would keep the socket from the next client.
                socket.abort();
                self.phase = Phase::Listening;
                true
            }
        }
    }

    fn abort(&mut self, socket: &mut Socket<'_>) -> bool {
        socket.abort();
        self.phase = Phase::Closing;
        true
    }
}

enum Progress {
    Moved,
    Full,
    Done,
}

impl Answer {
    fn new(request: Result<Request, Refusal>, files: &Files) -> Answer {
        let found = request.and_then(|request| {
            let file = files.find(&request.path).ok_or(Refusal::NotFound)?;
            Ok((file, request.head_only))
        });
        let (status, len, kind) = match &found {
            Ok((file, _)) => ("200 OK", file.len, kind(&file.name)),
            Err(refusal) => (
                refusal.status(),
                refusal.status().len() as u64 + 1,
                "text/plain",
            ),
        };
        let mut ready = format!(
            "HTTP/1.0 {status}\r\nServer: xlrs-httpd\r\nContent-Type: {kind}\r\n\
             Content-Length: {len}\r\nConnection: close\r\n\r\n"
        );
        if found.is_err() {
            ready.push_str(status);
            ready.push('\n');
        }
        Answer {
            ready: ready.into_bytes(),
            sent: 0,
            file: found
                .ok()
                .and_then(|(file, head_only)| (!head_only).then_some(file)),
            offset: 0,
        }
    }

    fn step(&mut self, socket: &mut Socket<'_>, files: &mut Files) -> Result<Progress, ()> {
        if self.sent == self.ready.len() && !self.refill(files)? {
            return Ok(Progress::Done);
        }
        let len = socket.send_slice(&self.ready[self.sent..]).map_err(drop)?;
        self.sent += len;
        match len {
            0 => Ok(Progress::Full),
            _ => Ok(Progress::Moved),
        }
    }

    /// Reads the file's next piece; false at its end.
    fn refill(&mut self, files: &mut Files) -> Result<bool, ()> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let left = file.len.saturating_sub(self.offset);
        if left == 0 {
            return Ok(false);
        }
        let len = (PIECE as u64).min(left) as usize;
        self.ready.resize(len.next_multiple_of(4096), 0);
        if let Err(error) = files.read(file, self.offset, &mut self.ready) {
            pvguest::log::error!("reading {}: {error}", file.name);
            return Err(());
        }
        self.ready.truncate(len);
        self.sent = 0;
        self.offset += len as u64;
        Ok(true)
    }
}

/// The media type by the name's ending.
fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html",
        Some("txt") => "text/plain",
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
