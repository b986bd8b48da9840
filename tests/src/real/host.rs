//! The dom0 a scenario runs in: which parts are stock, its commands, its scratch folder, its steps.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scenarios::{OrStop, Outcome, Stop};
use xs_client::Connection;

/// How long a command may take unless said otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// This dom0.
pub struct Host {
    stock: BTreeSet<String>,
    scratch: PathBuf,
    started: Instant,
}

/// What a command did.
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Its exit status; -1 if a signal ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Host {
    /// Looks at where we are; a scenario cannot run outside a dom0.
    pub fn open(name: &str) -> Outcome<Host> {
        let stock = std::env::var("XLRS_STOCK").unwrap_or_default();
        if !Path::new("/dev/xen/privcmd").exists() && !Path::new("/proc/xen/privcmd").exists() {
            return Err(Stop::Skipped(
                "this is no Xen dom0 (no /dev/xen/privcmd); `cargo xtask test` runs scenarios in the lab".into(),
            ));
        }
        let scratch = PathBuf::from(format!("/tmp/scenario-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).or_broken(format!("make {}", scratch.display()))?;
        Ok(Host {
            stock: stock
                .split(',')
                .filter(|part| !part.is_empty())
                .map(String::from)
                .collect(),
            scratch,
            started: Instant::now(),
        })
    }

    /// Says what comes now, with the time since the start.
    pub fn step(&self, what: impl Display) {
        println!("[{:7.3}] {what}", self.started.elapsed().as_secs_f64());
    }

    /// Whether a stock part takes the place of ours.
    pub fn is_stock(&self, part: &str) -> bool {
        self.stock.contains(part)
    }

    /// The toolstack's command.
    pub fn tool(&self) -> &'static str {
        if self.is_stock("xl") { "xl" } else { "xlrs" }
    }

    /// A path in the scratch folder, which goes away with the scenario.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Makes a file of this length, all zero, in the scratch folder.
    pub fn zero_file(&self, name: &str, mib: u64) -> Outcome<PathBuf> {
        let path = self.scratch(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(mib << 20))
            .or_broken(format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Makes an ext4 file system in `image`, with all that is in the folder `tree`. Without a journal, so that a small
    /// image has room for the files.
    pub fn make_ext4(&self, image: &Path, tree: &Path) -> Outcome {
        let [image, tree] = [image, tree].map(|path| path.display().to_string());
        let options = ["-q", "-F", "-O", "^has_journal", "-d"];
        let words = [&["mkfs.ext4"], &options[..], &[&tree, &image]].concat();
        self.run(&words)?.succeeded()?;
        Ok(())
    }

    /// Writes a file in the scratch folder.
    pub fn write_file(&self, name: &str, content: impl AsRef<[u8]>) -> Outcome<PathBuf> {
        let path = self.scratch(name);
        std::fs::write(&path, content).or_broken(format!("write {}", path.display()))?;
        Ok(path)
    }

    /// A file the lab brings, such as a guest image; without it the scenario is skipped.
    pub fn lab_file(&self, path: &str) -> Outcome<PathBuf> {
        let found = Path::new(path).exists();
        found
            .then(|| PathBuf::from(path))
            .ok_or_else(|| Stop::Skipped(format!("{path} is not there")))
    }

    /// A connection to the store.
    pub fn store(&self) -> Outcome<Connection> {
        Connection::from_env().or_broken("connect to the store")
    }

    /// Runs the toolstack's command and demands success.
    pub fn toolstack(&self, arguments: &[&str]) -> Outcome<Ran> {
        self.run_toolstack(arguments)?.succeeded()
    }

    /// Runs the toolstack's command, however it ends.
    pub fn run_toolstack(&self, arguments: &[&str]) -> Outcome<Ran> {
        let mut words = vec![self.tool()];
        words.extend(arguments);
        self.run(&words)
    }

    /// Runs a command, however it ends.
    pub fn run(&self, words: &[&str]) -> Outcome<Ran> {
        self.run_for(words, COMMAND_TIMEOUT)
    }

    /// Runs a command, which must end in this time.
    pub fn run_for(&self, words: &[&str], timeout: Duration) -> Outcome<Ran> {
        let command = words.join(" ");
        let files = ["stdout", "stderr"].map(|name| self.scratch(name));
        let [out, err] = files.each_ref().map(std::fs::File::create);
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            // Files, so that a daemon which keeps them open holds nobody up.
            .stdout(out.or_broken("make a file for output")?)
            .stderr(err.or_broken("make a file for output")?)
            .spawn()
            .or_broken(format!("run {command}"))?;
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = child.try_wait().or_broken(format!("wait for {command}"))? {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                let said = files.each_ref().map(|file| read_text(file));
                return Err(Stop::Failed(format!(
                    "`{command}` did not end in {timeout:?}; it said: {} {}",
                    said[0], said[1]
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let [stdout, stderr] = files.each_ref().map(|file| read_text(file));
        Ok(Ran {
            command,
            status: status.code().unwrap_or(-1),
            stdout,
            stderr,
        })
    }

    /// Waits until `ready` gives something.
    pub fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut() -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                return Err(Stop::Failed(format!("{what}: not in {timeout:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The bridge for guests, made if the lab has not done so.
    pub fn bridge(&self) -> Outcome<&'static str> {
        let made = Path::new("/sys/class/net/xenbr0").exists();
        let commands: [&[&str]; 3] = [
            &["ip", "link", "add", "xenbr0", "type", "bridge"],
            &["ip", "addr", "add", "10.0.0.1/24", "dev", "xenbr0"],
            &["ip", "link", "set", "xenbr0", "up"],
        ];
        for words in commands.into_iter().filter(|_| !made) {
            self.run(words)?
                .succeeded()
                .map_err(|stop| Stop::Broken(stop.reason().into()))?;
        }
        Ok("xenbr0")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

impl Ran {
    /// Fails unless the command succeeded.
    pub fn succeeded(self) -> Outcome<Ran> {
        if self.status == 0 {
            return Ok(self);
        }
        Err(Stop::Failed(self.to_string()))
    }
}

impl Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}; stdout {:?}, stderr {:?}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

fn read_text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
