//! Speaks QEMU's monitor protocol (QMP): one JSON object per line, answers in order, events between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result, fail};

/// A monitor that has been greeted.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes the greeting and enters command mode.
    pub fn greet(stream: UnixStream) -> Result<Qmp> {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .context(|| "setting a timeout".into())?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
        };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            return fail(format!("QEMU's monitor greeted with {greeting}"));
        }
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and gives its answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .context(|| format!("QEMU monitor, {command}"))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return fail(format!("QEMU monitor, {command}: {}", error["desc"]));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Asks `command` until `field` of its answer is one of `good`; `bad` values end the wait.
    pub fn wait_for(
        &mut self,
        command: &str,
        good: &str,
        bad: &[&str],
        limit: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.run(command, json!({}))?;
            let status = answer["status"].as_str().unwrap_or("none");
            if status == good {
                return Ok(());
            }
            if bad.contains(&status) || Instant::now() > deadline {
                return fail(format!("QEMU monitor, {command}: {answer}, not {good:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let n = self
            .reader
            .read_line(&mut line)
            .context(|| "reading from QEMU's monitor".into())?;
        if n == 0 {
            return fail("QEMU closed its monitor");
        }
        serde_json::from_str(&line).map_err(|e| Error(format!("QEMU's monitor said {line:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_between_answers_are_passed_over() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut theirs = theirs;
            theirs.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut line = String::new();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"running\"}}\n",
                "{\"error\": {\"desc\": \"no\"}}\n",
            ] {
                line.clear();
                reader.read_line(&mut line).unwrap();
                theirs.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut qmp = Qmp::greet(ours).unwrap();
        let status = qmp.run("query-status", json!({})).unwrap();
        assert_eq!(status["status"], "running");
        assert!(qmp.run("x", json!({})).is_err());
        qemu.join().unwrap();
    }
}
