//! `cargo xtask demo`: everything once, step by step, with times.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::builds::Profile;
use crate::error::{Error, Result, fail};
use crate::lab::{Lab, Origin, Prepared};
use crate::packages::XenVersion;
use crate::services::{self, Part};
use crate::ui;

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// The Xen release.
    #[arg(long, value_enum, default_value = "4.17")]
    xen: XenVersion,
    /// Stock parts that take the place of ours.
    #[arg(long, value_enum, value_delimiter = ',')]
    stock: Vec<Part>,
    /// The guest: our own kernel, or Debian's.
    #[arg(long, value_enum, default_value = "ours")]
    guest: Guest,
    /// Keep the run's folder (console, logs, shared files) and say where it is.
    #[arg(long)]
    keep: bool,
    /// Tell what is done, with times, and the packages used.
    #[arg(long, short)]
    verbose: bool,
}

/// Who serves the file.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Guest {
    /// The appliance `httpd` on our own guest kernel.
    Ours,
    /// Debian's kernel with busybox.
    Debian,
}

/// The guest's address; dom0 is 10.0.0.1.
const ADDRESS: &str = "10.0.0.2";
/// Where the demo's files lie in dom0.
const DIR: &str = "/var/lib/lab";

/// The steps done so far, for the table at the end.
#[derive(Default)]
struct Steps {
    done: Vec<(String, Duration, String)>,
}

impl Steps {
    /// Runs one step and tells how it went; `note` puts its result into words.
    fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T>,
        note: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        println!("{:2}. {name} ...", self.done.len() + 1);
        let begun = Instant::now();
        match work() {
            Ok(value) => {
                let (took, note) = (begun.elapsed(), note(&value));
                println!("    {:6.2} s  {note}", took.as_secs_f64());
                self.done.push((name.into(), took, note));
                Ok(value)
            }
            Err(e) => fail(format!(
                "step {} of the demo failed: {name}\n{e}",
                self.done.len() + 1
            )),
        }
    }

    fn table(&self) {
        let width = self.done.iter().map(|d| d.0.len()).max().unwrap_or(0);
        println!("\n{:width$}  {:>8}  result", "step", "seconds");
        let mut sum = Duration::ZERO;
        for (name, took, note) in &self.done {
            println!("{name:width$}  {:8.2}  {note}", took.as_secs_f64());
            sum += *took;
        }
        println!("{:width$}  {:8.2}", "total", sum.as_secs_f64());
    }
}

/// Runs the demo; 0 if every step went well.
pub fn run(args: &DemoArgs) -> Result<i32> {
    ui::init(args.verbose);
    let mut steps = Steps::default();
    let prepared = steps.step(
        "get Xen, kernel and stock tools ready; build our parts",
        || Prepared::new(&[args.xen], false, Some(Profile::Checked), args.keep),
        |p| {
            let (programs, guests) = (p.built.programs.len(), p.built.guests.len());
            format!("{programs} programs, {guests} guest images")
        },
    )?;
    let lab = steps.step(
        "boot Xen and Linux as dom0 under QEMU",
        || Lab::start_from(&prepared, args.xen, 2048, Origin::Boot),
        |lab| lab.how().to_string(),
    )?;
    match in_lab(&mut steps, &lab, args) {
        Ok(()) => {
            steps.table();
            Ok(0)
        }
        Err(e) => {
            lab.keep();
            fail(format!("{e}\n{}", lab.words()))
        }
    }
}

fn in_lab(steps: &mut Steps, lab: &Lab, args: &DemoArgs) -> Result<()> {
    let stock: BTreeSet<Part> = args.stock.iter().copied().collect();
    let tool = if stock.contains(&Part::Xl) {
        "xl"
    } else {
        "/lab/bin/xlrs"
    };
    steps.step(
        "ask Xen who it is",
        || lab.sh(&format!("{tool} info"), LIMIT),
        |text| {
            let field = |name: &str| {
                let line = text.lines().find(|l| l.starts_with(name));
                line.and_then(|l| l.split_once(": "))
                    .map_or("?", |(_, v)| v.trim())
                    .to_string()
            };
            format!(
                "Xen {}, {} MiB free",
                field("xen_version"),
                field("free_memory")
            )
        },
    )?;
    steps.step(
        "start the host daemons",
        || services::up(lab, &stock),
        |()| daemons(&stock),
    )?;
    let sum = steps.step(
        "make a disk with a 1 MiB file on it",
        || lab.sh(&make_disk(args.guest), LIMIT),
        |sum| format!("sha256 {}...", &sum[..sum.len().min(16)]),
    )?;
    let config = config(args.guest);
    steps.step(
        &format!(
            "create the guest with {}",
            tool.rsplit('/').next().unwrap_or(tool)
        ),
        || {
            lab.sh(&format!("cat > {DIR}/demo.cfg <<'END'\n{config}END"), LIMIT)?;
            lab.sh(
                &format!("{tool} create {DIR}/demo.cfg && {tool} list"),
                LIMIT,
            )
        },
        |list| {
            list.lines()
                .last()
                .unwrap_or("")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        },
    )?;
    let said = steps.step(
        "see it on its console, and its disk written and read",
        || wait_for_console(lab, "disk ok"),
        |said| said.lines().last().unwrap_or("").trim().to_string(),
    )?;
    for line in said.lines().filter(|l| !l.trim().is_empty()) {
        println!("             | {line}");
    }
    steps.step(
        "fetch the file from it over HTTP",
        || {
            lab.sh(
                &format!(
                    "for i in $(seq 50); do timeout 10 wget -qO /tmp/got http://{ADDRESS}/file && break; sleep 0.2; done; \
                     sha256sum < /tmp/got; stat -c %s /tmp/got"
                ),
                LIMIT,
            )
        },
        |got| format!("{} bytes", got.lines().nth(1).unwrap_or("?")),
    )
    .and_then(|got| same_sum(&sum, &got, "the file fetched"))?;
    steps.step(
        "shut it down",
        || {
            lab.sh(&format!("{tool} shutdown demo"), LIMIT)?;
            lab.sh(
                &format!(
                    "for i in $(seq 300); do {tool} list demo >/dev/null 2>&1 || exit 0; sleep 0.1; done; \
                     echo 'still there after 30 s'; {tool} list; exit 1"
                ),
                LIMIT,
            )
        },
        |_| "gone".into(),
    )?;
    if args.guest == Guest::Debian {
        steps.step(
            "read in dom0 what it wrote to its disk",
            || {
                let got = lab.sh(
                    &format!("mount {DIR}/disk.img /mnt && sha256sum < /mnt/written; umount /mnt"),
                    LIMIT,
                )?;
                let sum = said.lines().find_map(|l| l.trim().strip_prefix("written "));
                same_sum(sum.unwrap_or(""), &got, "the file written")
            },
            |()| "same checksum".into(),
        )?;
    }
    Ok(())
}

/// Longest one command in dom0 may take.
const LIMIT: Duration = Duration::from_secs(90);

fn daemons(stock: &BTreeSet<Part>) -> String {
    let who = |ours: &str, theirs: &[Part]| {
        let is_stock = theirs.iter().any(|p| stock.contains(p));
        format!("{ours} {}", if is_stock { "stock" } else { "ours" })
    };
    [
        who("store", &[Part::Xenstored, Part::Oxenstored]),
        who("console", &[Part::Console]),
        who("blkback", &[Part::Blkback]),
        who("netback", &[Part::Netback]),
    ]
    .join(", ")
}

/// A disk the guest serves from: a file system for Debian, the bare file for our httpd.
fn make_disk(guest: Guest) -> String {
    let fill = match guest {
        Guest::Debian => {
            "truncate -s 64M disk.img && mkfs.ext4 -q -F disk.img && mount disk.img /mnt && cp file /mnt/ && umount /mnt"
        }
        Guest::Ours => "tar cf disk.img file && truncate -s 64M disk.img",
    };
    format!(
        "set -e; mkdir -p {DIR}; cd {DIR}; dd if=/dev/urandom of=file bs=1M count=1 2>/dev/null; {fill}; sha256sum < file"
    )
}

fn config(guest: Guest) -> String {
    let image = match guest {
        Guest::Debian => format!(
            "kernel = \"/lab/debian/vmlinuz\"\nramdisk = \"/lab/debian/initrd\"\nmemory = 256\n\
             extra = \"console=hvc0 quiet lab.ip={ADDRESS}/24 lab.disk lab.run=mount /dev/xvda /mnt && \
             dd if=/dev/urandom of=/mnt/written bs=64k count=16 && sync && \
             echo written $(sha256sum < /mnt/written) && echo disk ok && httpd -f -h /mnt\"\n"
        ),
        Guest::Ours => {
            format!("kernel = \"/lab/guests/httpd\"\nmemory = 32\nextra = \"ip={ADDRESS}/24\"\n")
        }
    };
    format!(
        "name = \"demo\"\n{image}disk = [ \"format=raw, vdev=xvda, access=rw, target={DIR}/disk.img\" ]\n\
         vif = [ \"bridge=xenbr0,mac=00:16:3e:00:00:02\" ]\non_poweroff = \"destroy\"\n"
    )
}

/// Waits until the guest's console log holds `what`; gives the log.
fn wait_for_console(lab: &Lab, what: &str) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let said = lab.sh("cat /var/log/xen/console/guest-demo.log /var/log/xlrs/console/demo.log 2>/dev/null; true", LIMIT)?;
        if said.contains(what) {
            return Ok(said.replace('\r', ""));
        }
        if Instant::now() > deadline {
            return fail(format!(
                "the guest's console did not say {what:?} in {} s; it said:\n{}",
                LIMIT.as_secs(),
                ui::tail(&said, 15)
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether two outputs of sha256sum begin with the same checksum.
fn same_sum(wanted: &str, got: &str, what: &str) -> Result<()> {
    let first = |s: &str| s.split_whitespace().next().unwrap_or("").to_string();
    let (wanted, got) = (first(wanted), first(got));
    if wanted.len() == 64 && wanted == got {
        return Ok(());
    }
    Err(Error(format!(
        "{what} has the checksum {got:?}, not {wanted:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_must_be_there_and_equal() {
        let sum = "a".repeat(64);
        assert!(same_sum(&format!("{sum}  -\n"), &format!("{sum}  file"), "x").is_ok());
        assert!(same_sum("", "", "x").is_err());
        assert!(same_sum(&sum, &"b".repeat(64), "x").is_err());
    }
}
