//! The steps in which xenstore-control asks for a live update: `-f FILE`, `-c COMMAND LINE`, `-s [-F] [-t SECONDS]
//! [-v VERSION]`, `-a`. Each is answered with `OK` or with why not; the start only once it has succeeded or failed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use xen_sys::Errno;
use xs_wire::Header;

use super::MARK;
use crate::core::ConnId;

/// How much of a program is searched for [`MARK`].
const MARK_WITHIN: u64 = 64 << 10;

/// A live update that is being prepared.
#[derive(Debug)]
pub struct Session {
    /// Who asks for it.
    pub conn: ConnId,
    /// The new program.
    pub file: PathBuf,
    /// Whether it is one of ours.
    pub ours: bool,
    /// Its arguments, if not this program's own.
    pub arguments: Option<Vec<Vec<u8>>>,
    /// Once it was started.
    pub start: Option<Start>,
}

/// A live update that was started.
#[derive(Debug)]
pub struct Start {
    /// The request that is to be answered.
    pub header: Header,
    /// Whether open transactions may be lost, where the new program cannot take them over.
    pub force: bool,
    /// How long to wait for their ends.
    pub timeout: Duration,
    /// The version of the stream, if it matters to the client.
    pub version: Option<u32>,
    /// Since when.
    pub since: Instant,
    /// The new program, looking whether it can read the state.
    pub check: Option<Child>,
}

impl Drop for Start {
    fn drop(&mut self) {
        if let Some(check) = &mut self.check {
            // It has ended, most likely.
            let _ = check.kill();
            let _ = check.wait();
        }
    }
}

pub(super) fn control(
    session: &mut Option<Session>,
    conn: ConnId,
    header: &Header,
    words: &[&[u8]],
    now: Instant,
) -> Result<Option<String>, Errno> {
    let said = match words {
        [b"-f", file] => begin(session, conn, Path::new(OsStr::from_bytes(file))),
        [b"-a"] => match session.take() {
            Some(_) => Ok(()),
            None => Err("No live-update session active.".to_owned()),
        },
        [b"-c", line] => of(session, conn).map(|session| {
            let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
            let words = words.filter(|word| !word.is_empty());
            session.arguments = Some(words.map(Vec::from).collect());
        }),
        [b"-s", options @ ..] => {
            let start = start(header, options, now)?;
            match of(session, conn) {
                Ok(session) if session.start.is_some() => {
                    Err("live-update session already started.".to_owned())
                }
                Ok(session) if start.version.is_none_or(is_known) => {
                    session.start = Some(start);
                    return Ok(None);
                }
                Ok(_) => Err("Migration stream version not supported.".to_owned()),
                Err(why) => Err(why),
            }
        }
        _ => return Err(Errno::EINVAL),
    };
    Ok(Some(said.map_or_else(|why| why, |()| "OK".to_owned())))
}

fn is_known(version: u32) -> bool {
    (1..=xs_stream::NEWEST).contains(&version)
}

/// The session that this client has begun.
fn of(session: &mut Option<Session>, conn: ConnId) -> Result<&mut Session, String> {
    let own = session.as_mut().filter(|session| session.conn == conn);
    own.ok_or_else(|| "Not in live-update session.".to_owned())
}

fn begin(session: &mut Option<Session>, conn: ConnId, file: &Path) -> Result<(), String> {
    if session.is_some() {
        return Err("live-update session already active.".to_owned());
    }
    let said = |error| format!("{}: {error}", file.display());
    let meta = fs::metadata(file).map_err(said)?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{}: File not executable.", file.display()));
    }
    let mut head = Vec::new();
    let opened = File::open(file).and_then(|f| f.take(MARK_WITHIN).read_to_end(&mut head));
    opened.map_err(said)?;
    *session = Some(Session {
        conn,
        file: file.to_owned(),
        ours: head.windows(MARK.len()).any(|window| window == MARK),
        arguments: None,
        start: None,
    });
    Ok(())
}

fn start(header: &Header, mut options: &[&[u8]], now: Instant) -> Result<Start, Errno> {
    let number = |word: &[u8]| -> Result<u32, Errno> {
        let text = str::from_utf8(word).map_err(|_| Errno::EINVAL)?;
        text.parse().map_err(|_| Errno::EINVAL)
    };
    let mut start = Start {
        header: *header,
        force: false,
        timeout: Duration::ZERO,
        version: None,
        since: now,
        check: None,
    };
    loop {
        options = match options {
            [] => return Ok(start),
            [b"-F", rest @ ..] => {
                start.force = true;
                rest
            }
            [b"-t", seconds, rest @ ..] => {
                start.timeout = Duration::from_secs(number(seconds)?.into());
                rest
            }
            [b"-v", version, rest @ ..] => {
                start.version = Some(number(version)?);
                rest
            }
            _ => return Err(Errno::EINVAL),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        op: 0,
        req_id: 7,
        tx_id: 0,
        len: 0,
    };

    #[test]
    fn steps() {
        let mut session = None;
        let program = std::env::current_exe().unwrap();
        let program = program.as_os_str().as_bytes();
        let mut check = |conn, words: &[&[u8]], wanted: Result<Option<&str>, Errno>| {
            let said = control(&mut session, ConnId(conn), &HEADER, words, Instant::now());
            match (&said, wanted) {
                (Ok(Some(said)), Ok(Some(wanted))) => assert!(said.contains(wanted), "{said}"),
                (said, wanted) => assert_eq!(*said, wanted.map(|w| w.map(String::from))),
            }
        };
        check(1, &[], Err(Errno::EINVAL));
        check(1, &[b"-x"], Err(Errno::EINVAL));
        check(1, &[b"-s"], Ok(Some("Not in live-update session.")));
        check(1, &[b"-a"], Ok(Some("No live-update session active.")));
        check(1, &[b"-f", b"/nowhere"], Ok(Some("No such file")));
        check(1, &[b"-f", b"/etc/passwd"], Ok(Some("not executable")));
        check(1, &[b"-f", program], Ok(Some("OK")));
        check(2, &[b"-f", program], Ok(Some("already active")));
        check(2, &[b"-c", b"x"], Ok(Some("Not in live-update session.")));
        check(1, &[b"-c", b" -N\t--socket  /x"], Ok(Some("OK")));
        check(1, &[b"-s", b"-t"], Err(Errno::EINVAL));
        check(1, &[b"-s", b"-t", b"x"], Err(Errno::EINVAL));
        check(1, &[b"-s", b"-v", b"3"], Ok(Some("not supported")));
        check(1, &[b"-s", b"-F", b"-t", b"5", b"-v", b"1"], Ok(None));
        check(1, &[b"-s"], Ok(Some("already started")));
        let kept = session.take().unwrap();
        let words: [&[u8]; 3] = [b"-N", b"--socket", b"/x"];
        assert_eq!(kept.arguments.unwrap(), words);
        let start = kept.start.unwrap();
        assert_eq!((start.force, start.version), (true, Some(1)));
        assert_eq!(start.timeout, Duration::from_secs(5));
    }
}
