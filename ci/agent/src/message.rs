//! The messages inside the frames: what each payload holds.

use crate::frame::{Frame, MAX_PAYLOAD};

/// Most strings (arguments, environment) of one command.
const MAX_STRINGS: u32 = 4096;

/// A message in either direction. `id` is the host's number for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Host: start of a conversation. Sets dom0's clock (0: leave it) and adds entropy.
    Hello {
        /// Comes back in the answer, so that old bytes cannot be taken for it.
        nonce: u64,
        /// Nanoseconds since 1970; 0 leaves the clock alone.
        unix_ns: u64,
        /// Bytes for the kernel's entropy pool.
        seed: Vec<u8>,
    },
    /// Agent: answer to `Hello`.
    HelloAck {
        /// The nonce of the `Hello`.
        nonce: u64,
    },
    /// Host: run a command.
    Spawn {
        /// Number for this command.
        id: u32,
        /// What to run.
        command: Command,
    },
    /// Host: bytes for the command's stdin; at most [`crate::STDIN_WINDOW`] beyond what was granted.
    Stdin {
        /// Number of the command.
        id: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Host: no more stdin.
    StdinEof {
        /// Number of the command.
        id: u32,
    },
    /// Host: the terminal has a new size.
    Resize {
        /// Number of the command.
        id: u32,
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Host: send this signal to the command's process group.
    Signal {
        /// Number of the command.
        id: u32,
        /// Linux signal number.
        signal: u32,
    },
    /// Agent: the command runs.
    Started {
        /// Number of the command.
        id: u32,
        /// Its process in dom0.
        pid: u32,
    },
    /// Agent: bytes from the command's stdout (or its terminal).
    Stdout {
        /// Number of the command.
        id: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Agent: bytes from the command's stderr.
    Stderr {
        /// Number of the command.
        id: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Agent: that many bytes of stdin have been taken; as many more may be sent.
    StdinCredit {
        /// Number of the command.
        id: u32,
        /// Bytes.
        bytes: u32,
    },
    /// Agent: the command ended. Exit status, or 128 + signal as a shell says it.
    Exit {
        /// Number of the command.
        id: u32,
        /// Exit status.
        status: i32,
    },
    /// Agent: the command could not be started.
    Failed {
        /// Number of the command.
        id: u32,
        /// Why.
        reason: String,
    },
}

/// A command to run in dom0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the agent's own environment.
    pub env: Vec<(String, String)>,
    /// Working directory; empty for `/root`.
    pub cwd: String,
    /// Rows and columns of a terminal of its own, if it gets one.
    pub pty: Option<(u16, u16)>,
}

const HELLO: u32 = 1;
const HELLO_ACK: u32 = 2;
const SPAWN: u32 = 3;
const STDIN: u32 = 4;
const STDIN_EOF: u32 = 5;
const RESIZE: u32 = 6;
const SIGNAL: u32 = 7;
const STARTED: u32 = 8;
const STDOUT: u32 = 9;
const STDERR: u32 = 10;
const STDIN_CREDIT: u32 = 11;
const EXIT: u32 = 12;
const FAILED: u32 = 13;

/// Why a message cannot be sent: its command line and environment do not fit one frame.
#[derive(Debug)]
pub struct TooLong(
    /// Bytes it would have taken.
    pub usize,
);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "message of {} bytes, the most is {MAX_PAYLOAD}: put long input into a file",
            self.0
        )
    }
}

impl std::error::Error for TooLong {}

impl Message {
    /// The message as a frame.
    pub fn to_frame(&self) -> Result<Frame, TooLong> {
        let (kind, id, payload) = match self {
            Message::Hello {
                nonce,
                unix_ns,
                seed,
            } => {
                let mut p = nonce.to_le_bytes().to_vec();
                p.extend_from_slice(&unix_ns.to_le_bytes());
                p.extend_from_slice(seed);
                (HELLO, 0, p)
            }
            Message::HelloAck { nonce } => (HELLO_ACK, 0, nonce.to_le_bytes().to_vec()),
            Message::Spawn { id, command } => (SPAWN, *id, command.encode()),
            Message::Stdin { id, data } => (STDIN, *id, data.clone()),
            Message::StdinEof { id } => (STDIN_EOF, *id, Vec::new()),
            Message::Resize { id, rows, cols } => (
                RESIZE,
                *id,
                [rows.to_le_bytes(), cols.to_le_bytes()].concat(),
            ),
            Message::Signal { id, signal } => (SIGNAL, *id, signal.to_le_bytes().to_vec()),
            Message::Started { id, pid } => (STARTED, *id, pid.to_le_bytes().to_vec()),
            Message::Stdout { id, data } => (STDOUT, *id, data.clone()),
            Message::Stderr { id, data } => (STDERR, *id, data.clone()),
            Message::StdinCredit { id, bytes } => (STDIN_CREDIT, *id, bytes.to_le_bytes().to_vec()),
            Message::Exit { id, status } => (EXIT, *id, status.to_le_bytes().to_vec()),
            Message::Failed { id, reason } => (FAILED, *id, reason.as_bytes().to_vec()),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(TooLong(payload.len()));
        }
        Ok(Frame { kind, id, payload })
    }

    /// The message in a frame, or nothing if it is none.
    pub fn from_frame(frame: Frame) -> Option<Message> {
        let id = frame.id;
        let p = frame.payload;
        Some(match frame.kind {
            HELLO => Message::Hello {
                nonce: u64_at(&p, 0)?,
                unix_ns: u64_at(&p, 8)?,
                seed: p.get(16..)?.to_vec(),
            },
            HELLO_ACK => Message::HelloAck {
                nonce: u64_at(&p, 0)?,
            },
            SPAWN => Message::Spawn {
                id,
                command: Command::decode(&p)?,
            },
            STDIN => Message::Stdin { id, data: p },
            STDIN_EOF => Message::StdinEof { id },
            RESIZE => Message::Resize {
                id,
                rows: u16_at(&p, 0)?,
                cols: u16_at(&p, 2)?,
            },
            SIGNAL => Message::Signal {
                id,
                signal: u32_at(&p, 0)?,
            },
            STARTED => Message::Started {
                id,
                pid: u32_at(&p, 0)?,
            },
            STDOUT => Message::Stdout { id, data: p },
            STDERR => Message::Stderr { id, data: p },
            STDIN_CREDIT => Message::StdinCredit {
                id,
                bytes: u32_at(&p, 0)?,
            },
            EXIT => Message::Exit {
                id,
                status: u32_at(&p, 0)? as i32,
            },
            FAILED => Message::Failed {
                id,
                reason: String::from_utf8_lossy(&p).into_owned(),
            },
            _ => return None,
        })
    }
}

impl Command {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (rows, cols) = self.pty.unwrap_or((0, 0));
        out.push(u8::from(self.pty.is_some()));
        out.extend_from_slice(&rows.to_le_bytes());
        out.extend_from_slice(&cols.to_le_bytes());
        put_str(&mut out, &self.cwd);
        out.extend_from_slice(&(self.argv.len() as u32).to_le_bytes());
        self.argv.iter().for_each(|s| put_str(&mut out, s));
        out.extend_from_slice(&(self.env.len() as u32).to_le_bytes());
        for (key, value) in &self.env {
            put_str(&mut out, key);
            put_str(&mut out, value);
        }
        out
    }

    fn decode(p: &[u8]) -> Option<Command> {
        let pty = match p.first()? {
            0 => None,
            1 => Some((u16_at(p, 1)?, u16_at(p, 3)?)),
            _ => return None,
        };
        let mut at = 5;
        let cwd = take_str(p, &mut at)?;
        let count = take_count(p, &mut at)?;
        let argv = (0..count)
            .map(|_| take_str(p, &mut at))
            .collect::<Option<Vec<_>>>()?;
        let count = take_count(p, &mut at)?;
        let env = (0..count)
            .map(|_| Some((take_str(p, &mut at)?, take_str(p, &mut at)?)))
            .collect::<Option<Vec<_>>>()?;
        (at == p.len()).then_some(Command {
            argv,
            env,
            cwd,
            pty,
        })
    }
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u32).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn take_count(p: &[u8], at: &mut usize) -> Option<u32> {
    let count = u32_at(p, *at)?;
    *at += 4;
    (count <= MAX_STRINGS).then_some(count)
}

fn take_str(p: &[u8], at: &mut usize) -> Option<String> {
    let len = u32_at(p, *at)? as usize;
    let start = *at + 4;
    let bytes = p.get(start..start.checked_add(len)?)?;
    *at = start + len;
    String::from_utf8(bytes.to_vec()).ok()
}

fn u16_at(p: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(p.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(p: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(p.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(p: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(p.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_message_comes_back_as_it_was() {
        let command = Command {
            argv: vec!["sh".into(), "-c".into(), "echo é; exit 3".into()],
            env: vec![("A".into(), "".into()), ("B".into(), "x=y".into())],
            cwd: "/tmp".into(),
            pty: Some((24, 80)),
        };
        let data = vec![0, 255, 10];
        for message in [
            Message::Hello {
                nonce: 7,
                unix_ns: u64::MAX,
                seed: data.clone(),
            },
            Message::HelloAck { nonce: 1 << 60 },
            Message::Spawn {
                id: 9,
                command: command.clone(),
            },
            Message::Spawn {
                id: 9,
                command: Command {
                    pty: None,
                    ..command
                },
            },
            Message::Stdin {
                id: 1,
                data: data.clone(),
            },
            Message::StdinEof { id: 2 },
            Message::Resize {
                id: 3,
                rows: 50,
                cols: 300,
            },
            Message::Signal { id: 4, signal: 15 },
            Message::Started { id: 5, pid: 77 },
            Message::Stdout {
                id: 6,
                data: data.clone(),
            },
            Message::Stderr { id: 7, data },
            Message::StdinCredit { id: 8, bytes: 4096 },
            Message::Exit { id: 9, status: -1 },
            Message::Failed {
                id: 10,
                reason: "no such file".into(),
            },
        ] {
            let frame = message.to_frame().unwrap();
            assert_eq!(Message::from_frame(frame), Some(message));
        }
    }

    #[test]
    fn a_command_line_too_long_for_a_frame_is_an_error() {
        let command = Command {
            argv: vec!["x".repeat(MAX_PAYLOAD)],
            ..Command::default()
        };
        assert!(Message::Spawn { id: 1, command }.to_frame().is_err());
    }

    proptest! {
        #[test]
        fn any_payload_is_survived(kind in 0u32..15, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::from_frame(Frame { kind, id: 1, payload });
        }
    }
}
