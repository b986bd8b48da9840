//! The part that runs as root: opens what the store and the host's options name, and hands it to the worker, which
//! does the rest. Guests' rings and images never pass through here.
//!
//! Invariant: the worker is believed nothing but what harms only its own disks: a file is opened because the
//! toolstack named it in the store, or because it lies in a folder of `--backing`.
//! Invariant: nothing here waits for the worker but threads that open an image, and a look at a size, for a
//! bounded time.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkback::{
    Connect, Datapath, Disk, Format, Identity, OpenImage, OtherFiles, Policy, Storage, identity,
    open_disk,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use xen_backend::{DeviceId, Wake, account};
use xen_dom0::{Events, Grants};
use xen_hal::{Error, Result};
use xen_sys::Errno;

use crate::messages::{self, Medium, Message, Serve};

/// How long a look at a disk's size may take.
const REFRESH: Duration = Duration::from_millis(500);
/// How long an image may take to be opened by the worker, from one question to the next.
const OPEN: Duration = Duration::from_secs(60);

/// The way to the worker. Every clone is the same.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    control: OwnedFd,
    wake: Wake,
    over: AtomicBool,
}

impl Link {
    pub fn new(control: OwnedFd, wake: Wake) -> Link {
        Link(Arc::new(Inner {
            control,
            wake,
            over: AtomicBool::new(false),
        }))
    }

    /// The worker has ended: nothing of what it had is left.
    pub fn end(&self) {
        self.0.over.store(true, Ordering::Release);
        self.0.wake.wake();
    }

    pub fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Acquire)
    }

    /// Begins the conversation about a device.
    fn begin(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = messages::pair()?;
        let control = self.0.control.as_fd();
        messages::send(control, &Message::Device, &[theirs.as_fd()])?;
        Ok(ours)
    }
}

/// Opens disks: their files here, what is in them there.
pub fn open_images(link: Link, folders: Vec<PathBuf>) -> OpenImage {
    Arc::new(move |disk| {
        let opened = open(&link, &folders, disk);
        match opened {
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                link.end();
                // Not the disk's fault: the main loop starts over before it hears of this.
                std::thread::sleep(Duration::from_secs(2));
                Err(error)
            }
            other => Ok(Arc::new(other?)),
        }
    })
}

fn open(link: &Link, folders: &[PathBuf], disk: &Disk) -> io::Result<Remote> {
    let gone = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
    let (file, direct) = open_disk(disk)?;
    let identity = identity(&file)?;
    let policy = Policy::new(folders)?;
    let socket = link.begin().map_err(gone)?;
    let ask = Message::Open {
        path: disk.path.clone(),
        format: messages::format_name(disk.format),
        read_only: disk.read_only,
        direct,
    };
    let fds = [file.as_fd(), link.0.wake.as_fd()];
    messages::send(&socket, &ask, &fds).map_err(gone)?;
    let mut behind = Vec::new();
    loop {
        if !readable(&socket, OPEN)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match messages::receive(&socket, RecvFlags::empty())? {
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some((Message::Opened(medium), _)) => {
                return Ok(Remote {
                    raw: (disk.format == Format::Raw).then_some(file),
                    sectors_512: AtomicU64::new(medium.sectors_512),
                    medium,
                    identity,
                    behind,
                    conversation: Mutex::new(Conversation {
                        socket,
                        link: link.clone(),
                        failed: None,
                        stopped: false,
                    }),
                });
            }
            Some((Message::Refused { errno, why }, _)) => {
                return Err(messages::refusal(errno, why));
            }
            Some((
                Message::Need {
                    image,
                    name,
                    role,
                    read_only,
                },
                _,
            )) => {
                // Never more than the disk itself may do.
                let found = policy.open(&image, &name, &role, read_only || disk.read_only);
                let sent = match &found {
                    Ok((file, path)) => {
                        behind.push(blkback::identity(file)?);
                        let answer = Message::File { path: path.clone() };
                        messages::send(&socket, &answer, &[file.as_fd()])
                    }
                    Err(error) => messages::send(&socket, &messages::refused(error), &[]),
                };
                sent.map_err(gone)?;
            }
            Some((other, _)) => {
                let why = format!("the worker said {other:?} while it opened a disk");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
}

/// A disk that the worker has open.
struct Remote {
    /// Its file, if its size is the disk's.
    raw: Option<File>,
    medium: Medium,
    sectors_512: AtomicU64,
    identity: Identity,
    /// The files that it names.
    behind: Vec<Identity>,
    conversation: Mutex<Conversation>,
}

struct Conversation {
    socket: OwnedFd,
    link: Link,
    failed: Option<(i32, String)>,
    stopped: bool,
}

impl Conversation {
    /// Takes what the worker has said; a size, if it told one.
    fn hear(&mut self) -> Option<u64> {
        loop {
            match messages::receive(&self.socket, RecvFlags::DONTWAIT) {
                Ok(Some((Message::Size { sectors_512 }, _))) => return Some(sectors_512),
                Ok(Some((Message::Failed { errno, why }, _))) => self.failed = Some((errno, why)),
                Ok(Some((Message::Stopped, _))) => self.stopped = true,
                Ok(Some((other, _))) => {
                    self.failed = Some((Errno::EIO.0, format!("the worker said {other:?}")));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.failed = Some((Errno::EIO.0, format!("the worker said: {error}")));
                }
                Ok(None) | Err(_) => {
                    self.link.end();
                    return None;
                }
            }
        }
    }

    fn tell(&self, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if messages::send(&self.socket, message, fds).is_err() {
            self.link.end();
        }
    }
}

impl Remote {
    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn elsewhere<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "its data is the worker's affair",
    ))
}

impl Storage for Remote {
    fn sectors_512(&self) -> u64 {
        self.sectors_512.load(Ordering::Relaxed)
    }
    fn sector_size(&self) -> u32 {
        self.medium.sector_size
    }
    fn can_discard(&self) -> bool {
        self.medium.can_discard
    }
    fn discard_unit(&self) -> u32 {
        self.medium.discard_unit
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        elsewhere()
    }
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        elsewhere()
    }
    fn flush(&self) -> io::Result<()> {
        elsewhere()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        elsewhere()
    }
    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
    fn behind(&self) -> Vec<Identity> {
        self.behind.clone()
    }
    fn refresh(&self) -> io::Result<()> {
        // The worker is asked only if there is something new.
        let Some(mut file) = self.raw.as_ref() else {
            return Ok(());
        };
        let unit = u64::from(self.medium.sector_size);
        let now = file.seek(SeekFrom::End(0))? / unit * unit / 512;
        if now == self.sectors_512() {
            return Ok(());
        }
        let mut conversation = self.conversation();
        conversation.tell(&Message::Refresh, &[]);
        let deadline = Instant::now() + REFRESH;
        loop {
            if let Some(sectors) = conversation.hear() {
                self.sectors_512.store(sectors, Ordering::Relaxed);
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if conversation.link.is_over() || !readable(&conversation.socket, left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

/// Has the worker serve rings.
pub struct Broker {
    pub link: Link,
    pub keep_mapped: bool,
    pub engine: String,
}

/// A device whose rings the worker serves.
pub struct Remotely {
    id: DeviceId,
    queues: usize,
    storage: Arc<dyn Storage>,
    stopping: AtomicBool,
}

impl Remotely {
    fn remote(&self) -> Option<&Remote> {
        self.storage.as_any()?.downcast_ref()
    }

    /// Asks the worker to serve it no more; true once it does not.
    pub fn stop(&self, forget: bool) -> bool {
        let Some(remote) = self.remote() else {
            return true;
        };
        let mut conversation = remote.conversation();
        if !self.stopping.swap(true, Ordering::AcqRel) {
            conversation.tell(&Message::Stop { forget }, &[]);
        }
        conversation.hear();
        if conversation.stopped && forget {
            for queue in 0..self.queues {
                // Whoever connects next makes another.
                let _ = std::fs::remove_file(journal_path(self.id, queue));
            }
        }
        conversation.stopped
    }
}

impl Datapath for Broker {
    type Connection = Remotely;

    fn serve(&mut self, connect: &Connect, storage: Arc<dyn Storage>) -> Result<Remotely> {
        let system = |op, object: String| {
            move |error: io::Error| Error::System {
                op,
                object,
                errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
            }
        };
        let mut fds = vec![dup(&Grants::open()?).map_err(system("pass on", "gntdev".into()))?];
        for queue in 0..connect.rings.len() {
            let events = Events::open()?;
            events.restrict(connect.id.dom)?;
            fds.push(dup(&events).map_err(system("pass on", "evtchn".into()))?);
            let path = journal_path(connect.id, queue);
            let object = path.display().to_string();
            fds.push(open_journal(&path).map_err(system("open", object))?);
        }
        let connection = Remotely {
            id: connect.id,
            queues: connect.rings.len(),
            storage,
            stopping: AtomicBool::new(false),
        };
        if let Some(remote) = connection.remote() {
            let mut conversation = remote.conversation();
            (conversation.failed, conversation.stopped) = (None, false);
            let serve = Serve::new(connect, self.keep_mapped, self.engine.clone());
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            conversation.tell(&Message::Serve(serve), &fds);
        }
        Ok(connection)
    }

    fn failure(&self, connection: &Remotely) -> Option<Error> {
        let remote = connection.remote()?;
        let mut conversation = remote.conversation();
        conversation.hear();
        let (errno, why) = conversation.failed.clone()?;
        Some(Error::System {
            op: "serve",
            object: why,
            errno: Errno(errno),
        })
    }

    fn stop(&self, connection: &Remotely) -> bool {
        connection.stop(true)
    }

    fn pause(&self, connection: &Remotely) -> bool {
        connection.stop(false)
    }

    fn over(&self) -> bool {
        self.link.is_over()
    }
}

fn journal_path(id: DeviceId, queue: usize) -> PathBuf {
    Path::new(account::FOLDER).join(account::file_name(id, queue))
}

fn open_journal(path: &Path) -> io::Result<OwnedFd> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).mode(0o644);
    Ok(open.truncate(false).open(path)?.into())
}

fn dup(of: &impl AsFd) -> io::Result<OwnedFd> {
    of.as_fd().try_clone_to_owned()
}

fn readable(fd: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// The user that the worker runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Looks a user up by name or number.
    pub fn find(name: &str) -> std::result::Result<User, String> {
        let passwd = Path::new("/etc/passwd");
        let text = std::fs::read_to_string(passwd)
            .map_err(|error| format!("read {}: {error}", passwd.display()))?;
        User::parse(name, &text).ok_or_else(|| {
            format!(
                "there is no user {name} but root that disks could be served as: \
                 `adduser --system --group {name}` makes one, --user names another"
            )
        })
    }

    fn parse(name: &str, passwd: &str) -> Option<User> {
        let found = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (login, _, uid, gid) = (
                fields.next()?,
                fields.next()?,
                fields.next()?,
                fields.next()?,
            );
            let user = User {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            };
            (login == name || uid == name).then_some(user)
        })?;
        (found.uid != 0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nxlrs:x:900:901:x:/:/bin/false\n";
        let xlrs = Some(User { uid: 900, gid: 901 });
        for (name, user) in [
            ("xlrs", xlrs),
            ("900", xlrs),
            ("root", None),
            ("nobody", None),
        ] {
            assert_eq!(User::parse(name, passwd), user, "{name}");
        }
    }
}
