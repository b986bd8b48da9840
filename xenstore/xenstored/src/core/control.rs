//! CONTROL: words for the daemon itself, from dom0 only. What the stock xenstore-control shows is laid out as C
//! xenstored's; `stats` is our own.

use xen_sys::{DomId, Errno};

use super::held::Usage;
use super::limits::{QUOTAS, Quota, SOFT};
use super::{Core, Host};

/// Commands and their arguments, as `help` shows them.
const COMMANDS: [(&str, &str); 10] = [
    ("check", ""),
    ("log", "[on|off|+<switch>|-<switch>]"),
    (
        "live-update",
        "[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>",
    ),
    ("logfile", "<file>"),
    ("memreport", "[<file>]"),
    ("print", "<string>"),
    ("quota", "[set <name> <val>|<domid>|max [-r]]"),
    ("quota-soft", "[set <name> <val>]"),
    ("stats", "[<domid>]"),
    ("help", ""),
];

/// What the access log is asked for (`CONTROL log`, `CONTROL logfile`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceCommand<'a> {
    /// Tell what is logged.
    Show,
    /// Log, or stop.
    Switch(bool),
    /// Log one kind of thing, or do not.
    Kind(&'a str, bool),
    /// Log to this file from now on.
    File(&'a str),
}

const DONE: &str = "OK";

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
        let done = |()| DONE.to_owned();
        match words[..] {
            ["check"] => Ok(self.check_counts().err().unwrap_or(DONE.to_owned())),
            ["help"] => Ok(help()),
            ["print", text] => {
                host.log(&format!("control: {text}"));
                Ok(DONE.to_owned())
            }
            ["log"] => host.trace(TraceCommand::Show),
            ["log", "on"] => host.trace(TraceCommand::Switch(true)),
            ["log", "off"] => host.trace(TraceCommand::Switch(false)),
            ["log", kind] => match kind.split_at_checked(1) {
                Some(("+", kind)) => host.trace(TraceCommand::Kind(kind, true)),
                Some(("-", kind)) => host.trace(TraceCommand::Kind(kind, false)),
                _ => Err(Errno::EINVAL),
            },
            ["logfile", file] => host.trace(TraceCommand::File(file)),
            ["memreport"] => Ok(self.report()),
            ["memreport", file] => host.write_report(file, &self.report()).map(done),
            ["quota"] => Ok(self.show_quotas(false)),
            ["quota-soft"] => Ok(self.show_quotas(true)),
            ["quota", "max"] => Ok(self.show_most()),
            ["quota", "max", "-r"] => {
                self.forget_most(host);
                Ok(self.show_most())
            }
            ["quota", "set", name, value] => self.set_by_text(host, name, value).map(done),
            ["quota-soft", "set", name, value] => {
                let name = format!("{SOFT}{name}");
                self.set_by_text(host, &name, value).map(done)
            }
            ["quota", dom] => {
                let dom = parse_dom(dom)?;
                let now = self.usage(host, dom).ok_or(Errno::ENOENT)?;
                let most = self.domains.get(&dom).map(|domain| domain.most);
                Ok(show_usage(dom, &now, &most.unwrap_or_default()))
            }
            ["stats"] => Ok(self.stats_of_all(host)),
            ["stats", dom] => self.stats(host, parse_dom(dom)?),
            _ => Err(Errno::EINVAL),
        }
    }

    fn set_by_text(&mut self, host: &mut dyn Host, name: &str, value: &str) -> Result<(), Errno> {
        let value: u32 = value.parse().map_err(|_| Errno::EINVAL)?;
        if value == 0 {
            // As C: a slip, rather than the wish to lift it, for which there is SET_QUOTA.
            return Err(Errno::EINVAL);
        }
        self.set_quota(host, None, name.as_bytes(), value)
    }

    fn show_quotas(&self, soft: bool) -> String {
        let shown = QUOTAS.iter().filter(|quota| quota.is_soft() == soft);
        let lines = shown.map(|quota| {
            let name = quota.name.strip_prefix(SOFT).unwrap_or(quota.name);
            let value = quota.get(&self.limits);
            format!("{name:<17}: {value:8} {}\n", quota.about)
        });
        "Quota settings:\n".to_owned() + &lines.collect::<String>()
    }

    fn show_most(&self) -> String {
        let lines = hard().map(|quota| {
            let most = self.most.get(quota.name);
            format!("{:<17}: {most:8}\n", quota.name)
        });
        "Max. seen accounting values:\n".to_owned() + &lines.collect::<String>()
    }

    /// Begins anew with the maxima, from what is held now.
    fn forget_most(&mut self, host: &mut dyn Host) {
        self.most = Usage::default();
        let doms: Vec<DomId> = self.domains.keys().copied().collect();
        for dom in doms {
            if let Some(now) = self.usage(host, dom)
                && let Some(domain) = self.domains.get_mut(&dom)
            {
                domain.most = now;
            }
        }
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

    /// What all have asked for, as JSON. dom0's clients count as one.
    fn stats_of_all(&self, host: &dyn Host) -> String {
        let mut guests = super::stats::Counters::default();
        let mut memory = 0u64;
        for (dom, domain) in &self.domains {
            guests.add(&domain.counters);
            memory += self
                .usage(host, *dom)
                .map_or(0, |usage| u64::from(usage.get("memory")));
        }
        format!(
            "{{\"domains\":{},\"connections\":{},\"guest_memory\":{memory},\"guests\":{},\"dom0\":{}}}",
            self.domains.len(),
            self.conns.len(),
            guests.json(),
            self.counters.json(),
        )
    }

    /// What a domain has asked for and what is held for it, as JSON.
    fn stats(&self, host: &dyn Host, dom: DomId) -> Result<String, Errno> {
        if dom == DomId::DOM0 {
            return Ok(format!(
                "{{\"domain\":0,\"counts\":{}}}",
                self.counters.json()
            ));
        }
        let domain = self.domains.get(&dom).ok_or(Errno::ENOENT)?;
        let usage = self.usage(host, dom).unwrap_or_default();
        let held = |usage: &Usage| {
            let items = hard().map(|quota| format!("\"{}\":{}", quota.name, usage.get(quota.name)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(","))
        };
        let events = domain.conn.map_or(0, |conn| host.buffered(conn).events);
        Ok(format!(
            "{{\"domain\":{dom},\"introduced\":{},\"counts\":{},\"events\":{events},\"held\":{},\"most\":{}}}",
            domain.introduced,
            domain.counters.json(),
            held(&usage),
            held(&domain.most),
        ))
    }
}

fn hard() -> impl Iterator<Item = &'static Quota> {
    const ALL: &[Quota] = &QUOTAS;
    ALL.iter().filter(|quota| !quota.is_soft())
}

fn parse_dom(text: &str) -> Result<DomId, Errno> {
    text.parse().map(DomId).map_err(|_| Errno::EINVAL)
}

fn show_usage(dom: DomId, now: &Usage, most: &Usage) -> String {
    let lines = hard().map(|quota| {
        let (now, most) = (now.get(quota.name), most.get(quota.name));
        format!("{:<17}: {now:8} (max {most:8})\n", quota.name)
    });
    format!("Domain {dom}:\n") + &lines.collect::<String>()
}

fn help() -> String {
    let line = |(name, arguments): &(&str, &str)| format!("{name:<15} {arguments}\n");
    COMMANDS.iter().map(line).collect()
}
