//! The scenarios on real Xen, in the lab's dom0: which there are, and how one is run.

mod backend;
mod cases;
mod console;
mod driver;
mod guest;
mod host;
mod journals;
mod linux;
mod snapshot;

use serde::Serialize;

use host::Host;
use scenarios::Outcome;

/// A scenario with the parts it is run on.
#[derive(Serialize)]
pub struct Entry {
    /// Its name, which says what is run and on whose parts.
    pub name: &'static str,
    /// The Xen releases it is run on.
    pub xen: &'static [&'static str],
    /// The stock parts that take the place of ours.
    pub stock: &'static [&'static str],
    /// How long it may take, with room for a slow machine.
    pub timeout_s: u32,
    /// Xen calls itself a release that nobody knows.
    pub unknown_xen: bool,
    /// What it shows.
    pub about: &'static str,
    #[serde(skip)]
    body: fn(&Host) -> Outcome,
}

/// Every part that exists twice is the stock one; the guest is ours.
const ALL_STOCK: &[&str] = &["xl", "xenstored", "console", "blkback", "netback"];

impl Entry {
    /// A scenario on our parts and every Xen.
    fn new(name: &'static str, about: &'static str, body: fn(&Host) -> Outcome) -> Entry {
        Entry {
            name,
            xen: &["4.17", "4.20"],
            stock: &[],
            timeout_s: 180,
            unknown_xen: false,
            about,
            body,
        }
    }

    fn stock(self, stock: &'static [&'static str]) -> Entry {
        Entry { stock, ..self }
    }

    /// On one Xen only: what it shows does not depend on Xen's interfaces.
    fn on_4_17(self) -> Entry {
        Entry {
            xen: &["4.17"],
            ..self
        }
    }

    /// On Debian 13's Xen only: it rests on what its libxl has and that of Debian 12 has not.
    fn on_4_20(self) -> Entry {
        Entry {
            xen: &["4.20"],
            ..self
        }
    }

    /// On Debian 11's Xen, too: what rests on Xen's interfaces most.
    fn and_4_14(self) -> Entry {
        Entry {
            xen: &["4.14", "4.17", "4.20"],
            ..self
        }
    }

    /// On a Xen that calls itself a release that nobody knows.
    fn on_unknown_xen(self) -> Entry {
        Entry {
            unknown_xen: true,
            ..self.on_4_17()
        }
    }

    fn timeout_s(self, timeout_s: u32) -> Entry {
        Entry { timeout_s, ..self }
    }
}

/// All scenarios.
pub fn entries() -> Vec<Entry> {
    use cases::{
        bad_input, block, callers, changeover, commands, cycles, debian, device_nodes, disks,
        features, formats, golden, hostile, http, killed, lifecycle, mistakes, pvgrub, script,
        snapshots, stock_tools, store, survival, survive, units, unknown_xen, upheaval, vbd3,
    };
    let about_survive =
        "the store daemon is killed in the middle of create and destroy; nobody notices";
    let about_store = "nodes, transactions and watches of the store, through its socket";
    let about_rights = "what a guest may do with its own nodes and others', through its ring";
    let about_tools = "xlrs store and the stock xenstore-* tools print and do the same";
    let about_upheaval =
        "50 guests come and go while the store daemon is killed and updated 10 times each";
    let about_block = "64 MiB through blkfront stand in the file behind it and read back the same";
    let about_http = "our guest serves 1 MiB over HTTP to dom0 with the right content";
    let about_debian = "a Debian kernel mounts its disk, copies a file and pings dom0";
    let about_golden =
        "every command that shows something says the same as xl, with the same status";
    vec![
        Entry::new(
            "device-nodes",
            "hypercalls, grants and events of dom0 do what the daemons and the toolstack rely on",
            device_nodes::all,
        )
        .and_4_14(),
        Entry::new("store-ours", about_store, store::socket),
        Entry::new("store-stock", about_store, store::socket).stock(ALL_STOCK),
        Entry::new("store-guest-ours", about_rights, store::guest),
        Entry::new("store-guest-stock", about_rights, store::guest).stock(ALL_STOCK),
        Entry::new(
            "lifecycle-ours",
            "create, list, pause, unpause, shutdown, destroy; guests that end are removed",
            lifecycle::all,
        )
        .and_4_14(),
        Entry::new(
            "lifecycle-oxenstored",
            "the same on the OCaml store daemon",
            lifecycle::all,
        )
        .stock(&["oxenstored"])
        .on_4_17(),
        Entry::new("block-ours", about_block, block::round_trip)
            .timeout_s(240)
            .and_4_14(),
        Entry::new("block-stock", about_block, block::round_trip)
            .stock(ALL_STOCK)
            .timeout_s(240)
            .and_4_14(),
        Entry::new("block-our-blkback", about_block, block::round_trip)
            .stock(&["xl", "xenstored", "console", "netback"])
            .timeout_s(240)
            .on_4_17(),
        Entry::new("block-their-blkback", about_block, block::round_trip)
            .stock(&["blkback"])
            .timeout_s(240)
            .on_4_17(),
        Entry::new(
            "block-features-debian",
            "every feature of the block back end with Linux's front end, by name",
            features::linux::all,
        )
        .timeout_s(600),
        Entry::new(
            "block-features-ours",
            "every feature of the block back end with our front end, by name",
            features::ours::all,
        )
        .timeout_s(400),
        Entry::new(
            "block-cycles",
            "a disk is attached and detached 100 times: nothing of it stays in dom0 or the guest",
            cycles::all,
        )
        .timeout_s(400)
        .on_4_17(),
        Entry::new(
            "block-vbd3-xl",
            "disks that a stock xl declares as vbd3 are served by ours, beside the kernel's vbd",
            vbd3::by_xl,
        )
        .stock(&["xl", "xenstored", "console", "netback"])
        .on_4_20(),
        Entry::new(
            "block-formats",
            "qcow2, VHD and VMDK under a guest of xlrs and of a stock xl, judged by qemu-img",
            formats::all,
        )
        .timeout_s(600),
        Entry::new(
            "block-snapshot",
            "a disk goes on in new images under load; back ends and commands are killed; the old ones stay",
            snapshots::all,
        )
        .timeout_s(300)
        .on_4_17(),
        Entry::new("http-ours", about_http, http::serve).and_4_14(),
        Entry::new("http-stock", about_http, http::serve).stock(ALL_STOCK),
        Entry::new("http-our-netback", about_http, http::serve)
            .stock(&["xl", "xenstored", "console", "blkback"])
            .on_4_17(),
        Entry::new("debian-ours", about_debian, debian::copy_and_ping).timeout_s(400),
        Entry::new("debian-our-backends", about_debian, debian::copy_and_ping)
            .stock(&["xl", "xenstored", "console"])
            .timeout_s(400)
            .on_4_17(),
        Entry::new(
            "hostile-block",
            "malformed block requests get errors, and every disk goes on",
            hostile::block,
        ),
        Entry::new(
            "block-kills",
            "blkback is killed 100 times with requests in flight: no error, no wrong byte",
            survival::kills,
        )
        .timeout_s(400),
        Entry::new(
            "hostile-net",
            "malformed packets end their sender's interface at most",
            hostile::net,
        ),
        Entry::new(
            "stock-tools-on-our-store",
            "xl list, xenstore-ls and xl create with a disk work on our store",
            stock_tools::all,
        )
        .stock(&["xl", "console", "blkback"]),
        Entry::new(
            "commands",
            "dumps, restarts, autostart, run; attachments killed half way leave nothing",
            commands::all,
        )
        .timeout_s(400),
        Entry::new(
            "callers",
            "Debian's xendomains and Ganeti's commands work with xlrs by the name of xl; bash completes",
            callers::all,
        )
        .timeout_s(300)
        .on_4_17(),
        Entry::new(
            "pvgrub",
            "firmware=pvgrub64 boots a Debian kernel from its disk, as its grub.cfg says",
            pvgrub::boot,
        )
        .timeout_s(600)
        .on_4_17(),
        Entry::new(
            "systemd-units",
            "systemd starts our daemons, restarts those that die, and keeps the store's sockets",
            units::all,
        )
        .timeout_s(300)
        .on_4_17(),
        Entry::new(
            "hotplug-debian",
            "a Debian guest gets and loses a disk and a card, and its memory shrinks and grows",
            commands::hotplug,
        )
        .timeout_s(600)
        .on_4_17(),
        Entry::new("golden-ours", about_golden, golden::ours).timeout_s(400),
        Entry::new("golden-stock", about_golden, golden::stock)
            .stock(&["xl", "console", "blkback", "netback"])
            .timeout_s(400),
        Entry::new(
            "store-tools-ours",
            about_tools,
            stock_tools::ours_beside_theirs,
        ),
        Entry::new(
            "store-tools-stock",
            about_tools,
            stock_tools::ours_beside_theirs,
        )
        .stock(&["xenstored"]),
        Entry::new(
            "store-changeover",
            "C xenstored becomes ours, ours another, and that C again, under guests that live on; ours is killed",
            changeover::all,
        )
        .stock(ALL_STOCK)
        .timeout_s(400),
        Entry::new("store-upheaval-ours", about_upheaval, upheaval::all).timeout_s(400),
        Entry::new("store-upheaval-xl", about_upheaval, upheaval::all)
            .stock(&["xl", "console", "blkback"])
            .timeout_s(600)
            .on_4_17(),
        Entry::new(
            "bad-input",
            "every kind of bad input is refused by name and leaves nothing behind",
            bad_input::in_dom0,
        ),
        Entry::new(
            "mistakes",
            "what fails with a stock xl fails with xlrs, with the same status or for a reason",
            mistakes::all,
        )
        .stock(&["xenstored", "console", "blkback", "netback"])
        .on_4_17(),
        Entry::new(
            "unknown-xen",
            "on a Xen of an unknown release what only looks goes on, all else refuses and says why",
            unknown_xen::all,
        )
        .stock(ALL_STOCK)
        .on_unknown_xen(),
        Entry::new(
            "killed",
            "create and destroy killed at any moment leave nothing behind",
            killed::create_and_destroy,
        )
        .timeout_s(400)
        .on_4_17(),
        Entry::new("survive-ours", about_survive, survive::kills).timeout_s(400),
        Entry::new("survive-stock", about_survive, survive::kills)
            .stock(&["xl", "console", "blkback", "netback"])
            .timeout_s(400),
        Entry::new(
            "disks-in-use",
            "a disk that is in use is refused under all its names, whoever uses it",
            disks::in_use,
        )
        .on_4_17(),
        Entry::new(
            "disk-script",
            "a custom script= is called with the arguments and environment that xl gives it",
            script::called_as_by_xl,
        )
        .stock(&["xenstored", "console", "blkback"])
        .on_4_17(),
    ]
}

/// Runs one in this dom0.
pub fn run(entry: &Entry) -> Outcome {
    let host = Host::open(entry.name)?;
    (entry.body)(&host)
}
