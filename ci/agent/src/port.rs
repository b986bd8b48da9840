//! Finds and opens the virtio-serial port; one lock around its writing end.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lab_agent::PORT_NAME;
use lab_agent::message::Message;

/// Sends whole messages from any thread.
pub struct Sender(Mutex<File>);

impl Sender {
    /// Sends one message; a port that does not take it is told on dom0's console.
    pub fn send(&self, message: &Message) {
        let Ok(frame) = message.to_frame() else {
            eprintln!("lab-agent: a message too long for a frame");
            return;
        };
        let mut port = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(e) = port.write_all(&frame.encode()) {
            eprintln!("lab-agent: writing to the port: {e}");
        }
    }
}

/// Opens the port, waiting for the driver to bring it up.
pub fn open(limit: Duration) -> io::Result<(File, Sender)> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(path) = find() {
            let file = File::options().read(true).write(true).open(&path)?;
            let writer = file.try_clone()?;
            return Ok((file, Sender(Mutex::new(writer))));
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no virtio-serial port named {PORT_NAME:?}"),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn find() -> Option<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            return Some(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    None
}
