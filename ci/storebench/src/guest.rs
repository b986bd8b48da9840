//! A guest behind a ring, which makes one request at a time.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fakexen::{Folder, GuestEnd, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_sys::DomId;
use xs_wire::{Decoder, Op};

use crate::error::{Context, Result, fail};
use crate::plain::{encode, refused};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a ring in one direction.
const RING: usize = 1024;

/// A guest.
pub struct Guest {
    end: GuestEnd,
    decoder: Decoder,
}

impl Guest {
    /// Lets a domain exist.
    pub fn create(folder: &Folder, dom: DomId) -> Result<Guest> {
        let end = GuestEnd::create(folder, dom).context(|| format!("making domain {dom}"))?;
        folder
            .set_state(dom, State::Running)
            .context(|| format!("making domain {dom}"))?;
        Ok(Guest {
            end,
            decoder: Decoder::new(),
        })
    }

    /// Makes a request and waits for its reply; watch events on the way are dropped.
    pub fn ask(&mut self, op: Op, body: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        encode(&mut bytes, op, 0, &[body]);
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (mut moved, dom) = (0, self.end.dom());
            let trouble = || format!("the ring of domain {dom}");
            if sent < bytes.len() {
                moved = self.end.send(&bytes[sent..]).context(trouble)?;
                sent += moved;
            }
            let mut room = [0; RING];
            let len = self.end.receive(&mut room).context(trouble)?;
            let mut input = &room[..len];
            // All of it, for what comes after the reply belongs to the stream too.
            let mut reply = None;
            while let Some(message) = self.decoder.feed(&mut input).context(trouble)? {
                match Op::from_code(message.header.op) {
                    Some(Op::WatchEvent) => {}
                    Some(Op::Error) => {
                        reply = Some(fail(refused(op, &[body], &message.body)));
                    }
                    _ => reply = Some(Ok(message.body)),
                }
            }
            if let Some(reply) = reply {
                return reply;
            }
            if moved + len == 0 {
                if Instant::now() > deadline {
                    return fail(format!("{}: no reply to {op:?}", trouble()));
                }
                self.wait()?;
            }
        }
    }

    fn wait(&self) -> Result<()> {
        let fd = self.end.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context(|| "waiting for an event".into()),
        }
    }
}
