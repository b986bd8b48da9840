//! The access log: a line of JSON for each request, reply and event, and for connections that come and go. It can be
//! switched while the daemon runs, costs one look at a flag when off, and takes no more than twice [`FILE_MAX`] on disk.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use xen_sys::Errno;
use xs_wire::{Header, Op};

use crate::core::control::TraceCommand;
use crate::core::{ConnId, Event};

/// A file that has grown so long becomes `FILE.1`, in the place of the one before, and another is begun.
pub const FILE_MAX: u64 = 32 << 20;
/// Where the log goes if nothing else is said.
const DEFAULT_FILE: &str = "/var/log/xen/xenstored-access.log";
/// Where names without a path are, as for C xenstored.
const FOLDER: &str = "/var/lib/xenstored";
/// Lines are written when so many bytes have come together, or when the daemon has nothing else to do.
const BUFFER: usize = 32 << 10;
/// Bytes of a path, a token or an error that are shown.
const SHOWN: usize = 256;

/// What may be logged, with the number of its bit.
const KINDS: [(&str, u8); 2] = [("io", 1), ("obj", 2)];

/// The access log.
#[derive(Debug)]
pub struct Trace {
    path: Option<PathBuf>,
    file: Option<File>,
    kinds: u8,
    buffer: String,
    written: u64,
    most: u64,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            path: None,
            file: None,
            kinds: 1 | 2,
            buffer: String::new(),
            written: 0,
            most: FILE_MAX,
        }
    }
}

impl Trace {
    /// Whether requests, replies and events are logged.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.file.is_some() && self.kinds & 1 != 0
    }

    /// Sets how long a file may become.
    #[cfg(test)]
    fn set_most(&mut self, bytes: u64) {
        self.most = bytes;
    }

    /// Does what CONTROL asks for; its text.
    ///
    /// # Errors
    /// The system's, if a file cannot be opened.
    pub fn command(&mut self, command: TraceCommand<'_>) -> Result<String, Errno> {
        match command {
            TraceCommand::Show => return Ok(self.show()),
            TraceCommand::Switch(true) => self.open()?,
            TraceCommand::Switch(false) => {
                self.flush();
                self.file = None;
            }
            TraceCommand::Kind(name, on) => {
                let known = KINDS.iter().find(|(known, _)| *known == name);
                let (_, bit) = known.ok_or(Errno::EINVAL)?;
                self.kinds = if on {
                    self.kinds | bit
                } else {
                    self.kinds & !bit
                };
            }
            TraceCommand::File(path) => {
                self.flush();
                self.file = None;
                self.path = Some(absolute(path));
                self.open()?;
            }
        }
        Ok("OK".to_owned())
    }

    fn show(&self) -> String {
        let line = |(name, bit): &(&str, u8)| {
            let on = if self.kinds & bit != 0 { "on" } else { "off" };
            format!("{name:<8}: {on}\n")
        };
        let mut text = "Log switch settings:\n".to_owned();
        text.extend(KINDS.iter().map(line));
        let file = self.path.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let state = if self.file.is_some() { "to" } else { "off, to" };
        let _ = writeln!(text, "{:<8}: {state} {}", "log", file.display());
        text
    }

    fn open(&mut self) -> Result<(), Errno> {
        let path = self.path.get_or_insert_with(|| DEFAULT_FILE.into());
        let file = OpenOptions::new().append(true).create(true).open(&*path);
        let file = file.and_then(|file| Ok((file.metadata()?.len(), file)));
        match file {
            Ok((len, file)) => {
                (self.written, self.file) = (len, Some(file));
                Ok(())
            }
            Err(error) => {
                super::log(&format!("cannot log to {}: {error}", path.display()));
                Err(Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)))
            }
        }
    }

    /// A request has come.
    pub fn request(&mut self, conn: ConnId, dom: u16, header: &Header, body: &[u8]) {
        self.begin(conn);
        let _ = write!(self.buffer, ",\"dom\":{dom},\"in\":\"");
        match Op::from_code(header.op) {
            Some(op) => self.buffer.push_str(op.name()),
            None => {
                let _ = write!(self.buffer, "{}", header.op);
            }
        }
        let _ = write!(self.buffer, "\",\"req\":{}", header.req_id);
        if header.tx_id != 0 {
            let _ = write!(self.buffer, ",\"tx\":{}", header.tx_id);
        }
        let word = body.split(|byte| *byte == 0).next().unwrap_or_default();
        if !word.is_empty() {
            self.text("path", word);
        }
        let _ = write!(self.buffer, ",\"bytes\":{}", body.len());
        self.end();
    }

    /// A reply goes.
    pub fn reply(&mut self, conn: ConnId, op: Op, header: &Header, body: &[u8]) {
        self.begin(conn);
        let _ = write!(
            self.buffer,
            ",\"out\":\"{}\",\"req\":{}",
            op.name(),
            header.req_id
        );
        if op == Op::Error {
            self.text("error", body.strip_suffix(b"\0").unwrap_or(body));
        }
        let _ = write!(self.buffer, ",\"bytes\":{}", body.len());
        self.end();
    }

    /// An event goes.
    pub fn event(&mut self, conn: ConnId, event: &Event) {
        self.begin(conn);
        self.buffer.push_str(",\"out\":\"WATCH_EVENT\"");
        self.text("path", event.shown_path().as_bytes());
        self.text("token", &event.token);
        self.end();
    }

    /// A connection has come, gone, or begun afresh.
    pub fn connection(&mut self, conn: ConnId, dom: u16, what: &str) {
        if self.file.is_none() || self.kinds & 2 == 0 {
            return;
        }
        self.begin(conn);
        let _ = write!(self.buffer, ",\"dom\":{dom},\"connection\":\"{what}\"");
        self.end();
    }

    fn begin(&mut self, conn: ConnId) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let _ = write!(
            self.buffer,
            "{{\"time\":{seconds}.{micros:06},\"conn\":{}",
            conn.0
        );
    }

    fn text(&mut self, name: &str, bytes: &[u8]) {
        let shown = &bytes[..bytes.len().min(SHOWN)];
        let _ = write!(self.buffer, ",\"{name}\":\"");
        for c in String::from_utf8_lossy(shown).chars() {
            match c {
                '"' | '\\' => {
                    self.buffer.push('\\');
                    self.buffer.push(c);
                }
                c if (c as u32) < 0x20 => {
                    let _ = write!(self.buffer, "\\u{:04x}", c as u32);
                }
                c => self.buffer.push(c),
            }
        }
        self.buffer.push('"');
    }

    fn end(&mut self) {
        self.buffer.push_str("}\n");
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    /// Writes what has come together. A log that cannot be written is switched off, which is told.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if let Some(file) = &mut self.file {
            self.written += self.buffer.len() as u64;
            if let Err(error) = file.write_all(self.buffer.as_bytes()) {
                super::log(&format!("cannot write the access log any more: {error}"));
                self.file = None;
            }
        }
        self.buffer.clear();
        if self.written >= self.most
            && self.file.is_some()
            && let Some(path) = &self.path
        {
            let mut old = path.clone().into_os_string();
            old.push(".1");
            let moved = std::fs::rename(path, old);
            self.file = None;
            if let Err(error) = moved {
                super::log(&format!("cannot rename the access log: {error}; it is off"));
            } else {
                // What went wrong has been told.
                let _ = self.open();
            }
        }
    }
}

/// A path as CONTROL's arguments mean it.
pub fn absolute(path: &str) -> PathBuf {
    Path::new(FOLDER).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_length() {
        let path = std::env::temp_dir().join(format!("xenstored-trace-{}", std::process::id()));
        let old = path.with_extension("1");
        let text = path.to_str().unwrap();
        let mut trace = Trace::default();
        assert!(!trace.is_on());
        trace.command(TraceCommand::File(text)).unwrap();
        assert!(trace.is_on());
        let header = Header {
            op: Op::Write.code(),
            req_id: 5,
            tx_id: 7,
            len: 0,
        };
        trace.request(ConnId(3), 9, &header, b"a\"\n\\\0value");
        trace.reply(ConnId(3), Op::Error, &header, b"EACCES\0");
        trace.connection(ConnId(3), 9, "closed");
        trace.flush();
        let lines = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = lines
            .lines()
            .map(|l| l.split_once(',').unwrap().1)
            .collect();
        assert_eq!(
            lines,
            [
                r#""conn":3,"dom":9,"in":"WRITE","req":5,"tx":7,"path":"a\"\u000a\\","bytes":10}"#,
                r#""conn":3,"out":"ERROR","req":5,"error":"EACCES","bytes":7}"#,
                r#""conn":3,"dom":9,"connection":"closed"}"#,
            ]
        );
        // It never takes more than twice its length and a buffer.
        trace.set_most(100_000);
        for _ in 0..20_000 {
            trace.request(ConnId(3), 9, &header, b"/a\0value");
            let len = std::fs::metadata(&path).unwrap().len();
            assert!(len <= 100_000 + BUFFER as u64 + 1000, "{len}");
        }
        assert!(std::fs::metadata(&old).unwrap().len() < 150_000);
        trace.command(TraceCommand::Switch(false)).unwrap();
        assert!(!trace.is_on());
        assert!(trace.show().contains("off, to"));
        trace.command(TraceCommand::Kind("io", false)).unwrap();
        trace.command(TraceCommand::Switch(true)).unwrap();
        assert!(!trace.is_on());
        let unknown = trace.command(TraceCommand::Kind("tdb", true));
        assert_eq!(unknown, Err(Errno::EINVAL));
        let missing = trace.command(TraceCommand::File("/nonexistent/x"));
        assert_eq!(missing, Err(Errno::ENOENT));
        for path in [path, old] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
