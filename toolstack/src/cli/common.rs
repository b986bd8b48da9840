//! What the commands share: printing, and finding guests, pools and CPUs by what people call them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::Args;
use serde_json::Value;
use xen_dom0::Hypervisor;
use xen_hal::{CpuMap, CpuPool, DomainControl, DomainInfo, Placement};
use xlrs::config::CpuSet;
use xlrs::store::{children, find_domain, names_of, no_such_domain, text};
use xlrs::{Error, Kind, Result};
use xs_client::Connection;

use crate::cli::ExitCode;

#[derive(Args)]
pub struct DomainArgs {
    /// The guest's name or number
    pub domain: String,
}

#[derive(Args)]
pub struct DomainsArgs {
    /// Only these guests, by name or number
    pub domains: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The hypervisor and the store.
pub struct Host {
    pub control: Hypervisor,
    pub store: Connection,
}

impl Host {
    pub fn open() -> Result<Host> {
        Ok(Host {
            control: super::hypervisor()?,
            store: super::store()?,
        })
    }

    /// The guest that a word means; it exists.
    pub fn domain(&self, word: &str) -> Result<DomainInfo> {
        let dom = find_domain(&self.store, word)?;
        let info = self.control.info(dom);
        let info = info.map_err(Error::hal("ask Xen about domain", dom))?;
        info.ok_or_else(|| no_such_domain(word))
    }

    /// The guests that words mean; all of them without a word.
    pub fn domains(&self, words: &[String]) -> Result<Vec<DomainInfo>> {
        match words {
            [] => self
                .control
                .list()
                .map_err(Error::hal("list the domains", "")),
            words => words.iter().map(|word| self.domain(word)).collect(),
        }
    }

    /// Guests with their names.
    pub fn named(&self, list: Vec<DomainInfo>) -> Result<Vec<(DomainInfo, Option<String>)>> {
        let doms: Vec<_> = list.iter().map(|info| info.dom).collect();
        let names = names_of(&self.store, &doms)
            .map_err(Error::store("read the names of", "the domains"))?;
        Ok(list.into_iter().zip(names).collect())
    }

    pub fn pools(&self) -> Result<Vec<CpuPool>> {
        self.control
            .pools()
            .map_err(Error::hal("list the cpupools", ""))
    }

    /// The pools' names, which only the store knows.
    pub fn pool_names(&self) -> Result<BTreeMap<u32, String>> {
        let failed = Error::store("read the names of", "the cpupools");
        let read = || {
            let mut names = BTreeMap::new();
            for child in children(&self.store, None, "/local/pool")? {
                let name = text(&self.store, None, &format!("/local/pool/{child}/name"))?;
                if let (Ok(id), Some(name)) = (child.parse(), name) {
                    names.insert(id, name);
                }
            }
            // Nobody has named the pool that Xen starts with, then.
            names.entry(0).or_insert_with(|| "Pool-0".to_string());
            Ok(names)
        };
        read().map_err(failed)
    }

    /// The pool of a name or number.
    pub fn pool(&self, word: &str) -> Result<CpuPool> {
        let names = self.pool_names()?;
        let named = names.iter().find(|(_, name)| *name == word);
        let id = named.map(|(id, _)| *id).or_else(|| word.parse().ok());
        let pools = self.pools()?;
        let found = pools.into_iter().find(|pool| Some(pool.id) == id);
        found.ok_or_else(|| {
            Error::new("find the cpupool", word, "there is none of this name")
                .kind(Kind::NoSuchDomain)
                .hint("`xlrs cpupool-list` shows those that exist")
        })
    }

    /// How many CPUs this host may have.
    pub fn cpu_count(&self) -> Result<u32> {
        let host = self.control.host();
        let host = host.map_err(Error::hal("ask Xen about the host", ""))?;
        Ok(host.max_cpu_id + 1)
    }

    /// The CPUs that words such as `0-3,^1` or `node:1` mean.
    pub fn cpus(&self, words: &str) -> Result<CpuMap> {
        let set = CpuSet::parse(words).map_err(|why| {
            Error::new("read the list of CPUs", words, why)
                .kind(Kind::Invalid)
                .hint("such as 0-3,^1 or all or node:1")
        })?;
        let topology = self.control.topology();
        let topology = topology.map_err(Error::hal("ask Xen where the CPUs are", ""))?;
        Ok(set.resolve(&topology))
    }
}

/// A name as C prints it.
pub fn shown(name: Option<&str>) -> &str {
    name.unwrap_or("(null)")
}

/// CPU time in seconds, of the precision that xl has.
pub fn seconds(ns: u64) -> f64 {
    f64::from(ns as f32) / 1e9
}

pub fn print_json(value: &Value) -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::new("print", "JSON", e))?;
    print(&format!("{text}\n"))
}

pub fn print(text: &str) -> Result<ExitCode> {
    print_bytes(text.as_bytes())
}

pub fn print_bytes(bytes: &[u8]) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::system("print", "to the standard output", &error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}
