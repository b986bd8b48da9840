//! Brings up the host daemons in dom0: stock ones by the lab's own script, ours by `xlrs host start`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Result, fail};
use crate::lab::Lab;
use crate::packages::XenVersion;
use crate::ui;

/// A part that exists twice: the stock one and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Part {
    /// The toolstack: nothing to start, but scenarios look at it.
    Xl,
    /// The C store daemon.
    Xenstored,
    /// The OCaml store daemon.
    Oxenstored,
    /// xenconsoled.
    Console,
    /// The kernel's xen-blkback.
    Blkback,
    /// The kernel's xen-netback.
    Netback,
}

impl Part {
    /// The name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Part::Xl => "xl",
            Part::Xenstored => "xenstored",
            Part::Oxenstored => "oxenstored",
            Part::Console => "console",
            Part::Blkback => "blkback",
            Part::Netback => "netback",
        }
    }

    /// The part of that name.
    pub fn named(name: &str) -> Option<Part> {
        let all = [
            Part::Xl,
            Part::Xenstored,
            Part::Oxenstored,
            Part::Console,
            Part::Blkback,
            Part::Netback,
        ];
        all.into_iter().find(|p| p.name() == name)
    }
}

/// What is to be started.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Stock parts that need nothing of ours: arguments for `/usr/lib/lab/up`.
    first: Vec<&'static str>,
    /// Stock parts that wait for our store, started beside our own.
    beside: Vec<&'static str>,
    /// Our own; none if nothing is ours.
    ours: Option<Vec<String>>,
}

fn plan(stock: &BTreeSet<Part>) -> Plan {
    let store_is_stock = stock.contains(&Part::Xenstored) || stock.contains(&Part::Oxenstored);
    let mut plan = Plan {
        first: vec!["bridge"],
        beside: Vec::new(),
        ours: None,
    };
    let mut left = Vec::new();
    for part in stock {
        match part {
            Part::Xl => continue,
            Part::Console if !store_is_stock => plan.beside.push(part.name()),
            _ => plan.first.push(part.name()),
        }
        // For `xlrs host` a store is a store.
        left.push(if *part == Part::Oxenstored {
            "xenstored"
        } else {
            part.name()
        });
    }
    let all_daemons = [Part::Console, Part::Blkback, Part::Netback];
    if store_is_stock && stock.contains(&Part::Xl) && all_daemons.iter().all(|p| stock.contains(p))
    {
        return plan;
    }
    let mut ours: Vec<String> = ["/lab/bin/xlrs", "host", "start"]
        .map(String::from)
        .to_vec();
    if !left.is_empty() {
        ours.push(format!("--stock={}", left.join(",")));
    }
    plan.ours = Some(ours);
    plan
}

/// What commands in dom0 are told about their surroundings: `XLRS_STOCK`, the stock parts as a comma
/// list, and `LAB_XEN`, the Xen release.
pub fn environment(version: XenVersion, stock: &BTreeSet<Part>) -> Vec<(String, String)> {
    let names: Vec<&str> = stock.iter().map(|p| p.name()).collect();
    vec![
        ("XLRS_STOCK".into(), names.join(",")),
        ("LAB_XEN".into(), version.name().into()),
    ]
}

/// Starts everything; an error tells which part did not come up and what it said.
pub fn up(lab: &Lab, stock: &BTreeSet<Part>) -> Result<()> {
    let plan = plan(stock);
    let script = |parts: &[&'static str]| -> Vec<String> {
        let mut argv = vec!["/usr/lib/lab/up".to_string()];
        argv.extend(parts.iter().map(|p| p.to_string()));
        argv
    };
    run(lab, &script(&plan.first))?;
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| match plan.beside.as_slice() {
            [] => Ok(()),
            parts => run(lab, &script(parts)),
        });
        let ours = plan.ours.as_ref().map_or(Ok(()), |argv| run(lab, argv));
        let beside = beside
            .join()
            .unwrap_or_else(|_| fail("starting stock daemons: a panic"));
        ours.and(beside)
    })
}

fn run(lab: &Lab, argv: &[String]) -> Result<()> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let out = lab.output(&words, Duration::from_secs(60))?;
    if out.status != 0 {
        return fail(format!(
            "starting the daemons: `{}` in dom0 ended with {}\n{}",
            argv.join(" "),
            out.status,
            ui::tail(&(out.stdout + &out.stderr), 15)
        ));
    }
    if !out.stderr.is_empty() {
        ui::detail(out.stderr.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: [Part; 5] = [
        Part::Xl,
        Part::Xenstored,
        Part::Console,
        Part::Blkback,
        Part::Netback,
    ];

    #[test]
    fn the_plan_names_each_part_once() {
        let rows: &[(&[Part], &str, &str, &str)] = &[
            (&[], "bridge", "", "/lab/bin/xlrs host start"),
            (&STOCK, "bridge xenstored console blkback netback", "", ""),
            (
                &STOCK[1..],
                "bridge xenstored console blkback netback",
                "",
                "/lab/bin/xlrs host start --stock=xenstored,console,blkback,netback",
            ),
            (
                &[Part::Oxenstored, Part::Console],
                "bridge oxenstored console",
                "",
                "/lab/bin/xlrs host start --stock=xenstored,console",
            ),
            (
                &[Part::Xl, Part::Console, Part::Blkback],
                "bridge blkback",
                "console",
                "/lab/bin/xlrs host start --stock=console,blkback",
            ),
        ];
        for (stock, first, beside, ours) in rows {
            let got = plan(&stock.iter().copied().collect());
            assert_eq!(got.first.join(" "), *first);
            assert_eq!(got.beside.join(" "), *beside);
            assert_eq!(got.ours.unwrap_or_default().join(" "), *ours);
        }
    }

    #[test]
    fn names_lead_back_to_parts() {
        for part in STOCK {
            assert_eq!(Part::named(part.name()), Some(part));
        }
        assert_eq!(Part::named("xend"), None);
    }
}
