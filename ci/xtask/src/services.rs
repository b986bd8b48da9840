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

/// What is to be started, in order: arguments for `/usr/lib/lab/up`, then those for `xlrs host start`
/// (none if nothing is ours).
fn plan(stock: &BTreeSet<Part>) -> (Vec<&'static str>, Option<Vec<String>>) {
    let mut theirs = vec!["bridge"];
    theirs.extend(stock.iter().filter(|p| **p != Part::Xl).map(|p| p.name()));
    let store_is_stock = stock.contains(&Part::Xenstored) || stock.contains(&Part::Oxenstored);
    let mut left: Vec<String> = Vec::new();
    if store_is_stock {
        left.push("xenstored".into());
    }
    for part in [Part::Console, Part::Blkback, Part::Netback] {
        if stock.contains(&part) {
            left.push(part.name().into());
        }
    }
    if left.len() == 4 {
        return (theirs, None);
    }
    let mut ours: Vec<String> = ["/lab/bin/xlrs", "host", "start"]
        .map(String::from)
        .to_vec();
    if !left.is_empty() {
        ours.push("--stock".into());
        ours.push(left.join(","));
    }
    (theirs, Some(ours))
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
    let (theirs, ours) = plan(stock);
    let mut argv = vec!["/usr/lib/lab/up"];
    argv.extend(theirs);
    run(lab, &argv)?;
    if let Some(ours) = ours {
        let argv: Vec<&str> = ours.iter().map(String::as_str).collect();
        run(lab, &argv)?;
    }
    Ok(())
}

fn run(lab: &Lab, argv: &[&str]) -> Result<()> {
    let out = lab.output(argv, Duration::from_secs(60))?;
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
        let rows: &[(&[Part], &str, Option<&str>)] = &[
            (&[], "bridge", Some("/lab/bin/xlrs host start")),
            (&STOCK, "bridge xenstored console blkback netback", None),
            (
                &[Part::Oxenstored, Part::Console],
                "bridge oxenstored console",
                Some("/lab/bin/xlrs host start --stock xenstored,console"),
            ),
            (&[Part::Xl], "bridge", Some("/lab/bin/xlrs host start")),
        ];
        for (stock, theirs, ours) in rows {
            let got = plan(&stock.iter().copied().collect());
            assert_eq!(got.0.join(" "), *theirs);
            assert_eq!(got.1.map(|o| o.join(" ")).as_deref(), *ours);
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
