//! CONTROL: words for the daemon itself, from dom0 only.

use xen_sys::Errno;

use super::{Core, Host};

const HELP: &str = "commands: check | help | memreport | print <text>";

impl Core {
    /// Carries out a command; returns its text.
    pub(super) fn control(
        &mut self,
        host: &mut dyn Host,
        words: &[&[u8]],
    ) -> Result<String, Errno> {
        let text = |word: &&[u8]| String::from_utf8_lossy(word).into_owned();
        let words: Vec<String> = words.iter().map(text).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["check"] => self.check(),
            ["help"] => Ok(HELP.to_owned()),
            ["print", text] => {
                host.log(text);
                Ok("OK".to_owned())
            }
            ["memreport"] => Ok(self.report()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Compares what is counted with what is there.
    fn check(&self) -> Result<String, Errno> {
        Ok(match self.check_counts() {
            Ok(()) => "OK".to_owned(),
            Err(wrong) => wrong,
        })
    }

    fn report(&self) -> String {
        let watches: u32 = self.conns.values().map(|client| client.watch_count).sum();
        let transactions: usize = self.conns.values().map(|c| c.transactions.len()).sum();
        let introduced = self.domains.values().filter(|d| d.introduced).count();
        format!(
            "nodes {}\nwatches {watches}\ntransactions {transactions}\nconnections {}\ndomains {introduced}\n",
            self.tree.count(),
            self.conns.len(),
        )
    }
}
