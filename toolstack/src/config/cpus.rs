//! Lists of CPUs as in `cpus=` and `vcpu-pin`: `0-3,^1`, `all`, `node:1`, `nodes:0-1,^node:2`.

use serde::{Deserialize, Serialize};
use xen_hal::{CpuMap, CpuPlace};

/// Highest CPU or node number that is believed.
const MAX: u32 = 4095;

/// A list of CPUs that may speak of nodes, so that it means something only on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSet(Vec<Item>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Item {
    All,
    Cpus { from: u32, to: u32, out: bool },
    Nodes { from: u32, to: u32, out: bool },
}

impl CpuSet {
    /// Reads a list, as xl does: later parts add to earlier ones, or take from them.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<CpuSet, String> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let items = parts.map(parse_item).collect::<Result<Vec<_>, _>>()?;
        let set = CpuSet(items);
        match set.plain().is_some_and(|cpus| cpus.is_empty()) {
            true => Err("it names no CPU".into()),
            false => Ok(set),
        }
    }

    /// One CPU.
    pub fn one(cpu: u32) -> CpuSet {
        CpuSet(vec![Item::Cpus {
            from: cpu,
            to: cpu,
            out: false,
        }])
    }

    /// The CPUs, if the list means the same on every host.
    pub fn plain(&self) -> Option<Vec<u32>> {
        let plain = |item: &Item| matches!(item, Item::Cpus { .. });
        let all = self.0.iter().all(plain);
        all.then(|| self.resolve(&[]).iter().collect())
    }

    /// The CPUs that it means on a host.
    pub fn resolve(&self, topology: &[Option<CpuPlace>]) -> CpuMap {
        let mut map = CpuMap::new();
        for item in &self.0 {
            match *item {
                Item::All => (0..=MAX).for_each(|cpu| map.insert(cpu)),
                Item::Cpus { from, to, out } => {
                    (from..=to).for_each(|cpu| put(&mut map, cpu, out));
                }
                Item::Nodes { from, to, out } => {
                    for (cpu, place) in (0..).zip(topology) {
                        if place.is_some_and(|place| (from..=to).contains(&place.node)) {
                            put(&mut map, cpu, out);
                        }
                    }
                }
            }
        }
        map
    }
}

fn put(map: &mut CpuMap, cpu: u32, out: bool) {
    match out {
        true => map.remove(cpu),
        false => map.insert(cpu),
    }
}

fn parse_item(part: &str) -> Result<Item, String> {
    let part = part.trim_start();
    let (out, rest) = match part.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, part),
    };
    let node = rest
        .strip_prefix("nodes:")
        .or_else(|| rest.strip_prefix("node:"));
    let range = node.unwrap_or(rest);
    if range == "all" {
        return match out {
            true => Err("`^` and `all` do not go together".into()),
            false => Ok(Item::All),
        };
    }
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse::<u32>().ok()).flatten();
        number.filter(|number| *number <= MAX)
    };
    match (number(from), number(to)) {
        (Some(from), Some(to)) if from <= to => Ok(match node {
            Some(_) => Item::Nodes { from, to, out },
            None => Item::Cpus { from, to, out },
        }),
        _ => Err(format!("`{part}` is no range of CPUs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_mean_cpus() {
        let place = |node| {
            Some(CpuPlace {
                core: 0,
                socket: 0,
                node,
            })
        };
        let host = [place(0), place(0), place(1), None, place(1), place(2)];
        for (text, shown) in [
            ("all", "all"),
            ("0", "0"),
            ("0-3", "0-3"),
            ("0-3,5,^1", "0,2-3,5"),
            ("^1,0-2", "0-2"),
            ("node:1", "2,4"),
            ("nodes:0-1", "0-2,4"),
            ("nodes:0-2,^node:2", "0-2,4"),
            ("nodes:0-1,^2", "0-1,4"),
            ("nodes:all", "all"),
            ("all,^0", "1-5"),
            ("0,,1,", "0-1"),
            ("node:7", "none"),
            ("3, 1", "1,3"),
        ] {
            let set = CpuSet::parse(text).unwrap();
            assert_eq!(set.resolve(&host).shown(6), shown, "{text}");
        }
        assert_eq!(CpuSet::one(3).resolve(&host).shown(6), "3");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ",",
            "^all",
            "^0",
            "0-1,^0-3",
            "^nodes:all",
            "x",
            "1-",
            "-1",
            "3-1",
            "1-2-3",
            "node:",
            "node:x",
            "99999",
            "+1",
            "1 ",
            "0x1",
        ] {
            assert!(CpuSet::parse(text).is_err(), "{text:?}");
        }
    }
}
