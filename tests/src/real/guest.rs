//! A guest of a scenario: its configuration file, its life, its console.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scenarios::{OrStop, Outcome, Stop};
use xen_hal::{Store, StoreExt};

use crate::real::console::Console;
use crate::real::host::Host;

/// How long a guest's console may take to be there.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a domain may take to go away.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// An xl.cfg file in the making.
pub struct Config {
    name: String,
    text: String,
}

impl Config {
    /// A PV guest of one vCPU.
    pub fn new(name: &str, kernel: &str, memory_mib: u32) -> Config {
        let mut text = String::new();
        for (key, value) in [("name", name), ("type", "pv"), ("kernel", kernel)] {
            let _ = writeln!(text, "{key} = \"{value}\"");
        }
        let _ = writeln!(text, "memory = {memory_mib}\nvcpus = 1");
        Config {
            name: name.into(),
            text,
        }
    }

    /// A file as it is.
    pub fn text(name: &str, text: String) -> Config {
        Config {
            name: name.into(),
            text,
        }
    }

    /// Adds a line.
    pub fn line(mut self, line: &str) -> Config {
        self.text.push_str(line);
        self.text.push('\n');
        self
    }

    /// Adds a string.
    pub fn string(self, key: &str, value: &str) -> Config {
        self.line(&format!("{key} = \"{value}\""))
    }

    /// Adds its one disk, xvda.
    pub fn disk(self, path: &Path) -> Config {
        self.line(&format!(
            "disk = ['format=raw,vdev=xvda,access=rw,target={}']",
            path.display()
        ))
    }

    /// Writes it to a file in the scratch folder.
    pub fn write(&self, host: &Host, file: &str) -> Outcome<PathBuf> {
        host.write_file(file, &self.text)
    }

    /// Adds its one network interface.
    pub fn vif(self, bridge: &str) -> Config {
        self.vif_number(bridge, 1)
    }

    /// The same with another address than other guests of the scenario.
    pub fn vif_number(self, bridge: &str, number: u8) -> Config {
        self.line(&format!(
            "vif = ['mac=00:16:3e:5c:00:{number:02x},bridge={bridge}']"
        ))
    }
}

/// A running guest, destroyed at the end if it still lives.
pub struct Guest<'a> {
    host: &'a Host,
    /// Its name.
    pub name: String,
    /// Its number.
    pub dom: u16,
    /// Its console.
    pub console: Console,
}

impl<'a> Guest<'a> {
    /// Creates it and opens its console.
    pub fn create(host: &'a Host, config: Config) -> Outcome<Guest<'a>> {
        let file = config.write(host, &format!("{}.cfg", config.name))?;
        let created = host.toolstack(&["create", &file.display().to_string()]);
        // Whatever is left of it is not to disturb the scenarios that follow.
        let started = created.and_then(|_| attach(host, &config.name));
        if started.is_err() {
            let _ = host.run_toolstack(&["destroy", &config.name]);
        }
        let (dom, console) = started?;
        Ok(Guest {
            host,
            name: config.name,
            dom,
            console,
        })
    }

    /// One that was created by somebody else; from now on it is destroyed at the end.
    pub fn adopt(host: &'a Host, name: &str) -> Outcome<Guest<'a>> {
        let (dom, console) = attach(host, name)?;
        Ok(Guest {
            host,
            name: name.into(),
            dom,
            console,
        })
    }

    /// Asks it to shut down and waits until it is gone.
    pub fn shutdown(self) -> Outcome {
        self.host.step(format!("shut {} down", self.name));
        let ended = self.host.toolstack(&["shutdown", "-w", &self.name]);
        ended.map_err(|stop| self.with_console(stop))?;
        self.wait_gone()
    }

    /// Destroys it and waits until it is gone.
    pub fn destroy(self) -> Outcome {
        self.host.step(format!("destroy {}", self.name));
        self.host.toolstack(&["destroy", &self.name])?;
        self.wait_gone()
    }

    /// Waits until it is no longer listed.
    pub fn wait_gone(&self) -> Outcome {
        let what = format!("{} (domain {}) goes away", self.name, self.dom);
        let gone = self.host.wait_for(&what, GONE_TIMEOUT, || {
            Ok(find(self.host, &self.name)?.is_none().then_some(()))
        });
        gone.map_err(|stop| self.with_console(stop))
    }

    /// Its line of `list`: the words.
    pub fn listed(&self) -> Outcome<Vec<String>> {
        find(self.host, &self.name)?.or_fail(format!("{} is not in the list", self.name))
    }

    /// Adds the end of the console's output to a failure.
    pub fn with_console(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Failed(why) => Stop::Failed(format!(
                "{why}\nthe console of {}:\n{}",
                self.name,
                self.console.tail()
            )),
            other => other,
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if matches!(find(self.host, &self.name), Ok(Some(_))) {
            let _ = self.host.run_toolstack(&["destroy", &self.name]);
        }
    }
}

/// The words of a domain's line in `list`: name, number, memory, vCPUs, state, time.
pub fn find(host: &Host, name: &str) -> Outcome<Option<Vec<String>>> {
    let list = host.toolstack(&["list"])?;
    let words = |row: &str| row.split_whitespace().map(String::from).collect::<Vec<_>>();
    let mut rows = list.stdout.lines().skip(1).map(words);
    Ok(rows.find(|words| words.first().is_some_and(|first| first == name)))
}

fn attach(host: &Host, name: &str) -> Outcome<(u16, Console)> {
    let words =
        find(host, name)?.or_fail(format!("{name} is not in the list after its creation"))?;
    let dom: u16 = words
        .get(1)
        .and_then(|id| id.parse().ok())
        .or_fail(format!("no number in {words:?}"))?;
    host.step(format!("{name} is domain {dom}"));
    let store = host.store()?;
    let node = format!("/local/domain/{dom}/console/tty");
    let tty = host.wait_for(&node, CONSOLE_TIMEOUT, || {
        let value = store
            .read_optional(None, &node)
            .or_broken("read the console's terminal")?;
        Ok(value.filter(|value| !value.is_empty()))
    })?;
    let console = Console::open(&String::from_utf8_lossy(&tty))?;
    Ok((dom, console))
}

/// Reads a node as text.
pub fn read_node(store: &impl Store, path: &str) -> Outcome<String> {
    let value = store.read(None, path).or_fail("read")?;
    Ok(String::from_utf8_lossy(&value).into_owned())
}
