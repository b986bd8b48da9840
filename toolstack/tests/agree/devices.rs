//! Disks, their names and rates of cards against libxlutil.

use std::collections::BTreeMap;

use xlrs::config::{DiskConfig, NicConfig, vdev_number};

use crate::generate::Maker;
use crate::tally::{Difference, Outcome, Tally};
use crate::witness::Witness;

type Fields = BTreeMap<String, String>;

#[test]
fn disks_mean_what_libxlutil_says() {
    let Some(mut witness) = Witness::start("disks_mean_what_libxlutil_says") else {
        return;
    };
    let mut maker = Maker::new(2);
    let mut tally = Tally::new("disks", maker.seed, DISKS);
    for _ in 0..Maker::count(40_000) {
        // At a line break libxlutil ends the whole program.
        let text = disk_text(&mut maker).replace('\n', " ");
        let ours = DiskConfig::parse(&text)
            .map(|disk| fields(&disk))
            .map_err(|(message, _)| message);
        let answer = witness.ask(b'd', &[&text]);
        let mut theirs: Outcome<Fields> = match answer.status {
            0 => Ok(answer
                .text
                .lines()
                .filter_map(|line| line.split_once('='))
                .filter(said)
                .map(owned)
                .collect()),
            errno => Err(format!("errno {errno}")),
        };
        // xl takes any name here, and refuses a wrong one when the disk is added.
        if let Ok(fields) = &theirs {
            let vdev = fields.get("vdev").cloned().unwrap_or_default();
            // What the two make of names is compared below.
            let ours_refuses = !vdev.is_empty() && vdev_number(&vdev).is_err();
            if ours_refuses || witness.ask(b'v', &[&vdev]).status != 0 {
                theirs = Err(format!("no virtual disk {vdev}"));
            }
        }
        tally.compare(&text, &ours, &theirs);
    }
    tally.finish(15_000);
}

/// A back end in dom0 is none that need be named, and an empty target is none.
fn said(field: &(&str, &str)) -> bool {
    !matches!(field, ("backend", "0" | "Domain-0") | ("target", ""))
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.into(), value.into())
}

fn fields(disk: &DiskConfig) -> Fields {
    let flag = |on: bool| if on { "1" } else { "0" }.to_string();
    let defbool = |on: Option<bool>| match on {
        None => "<default>",
        Some(true) => "True",
        Some(false) => "False",
    };
    let mut fields = Fields::new();
    let mut put = |key: &str, value: String| fields.insert(key.into(), value);
    put("vdev", disk.vdev.clone());
    put("format", disk.format.name().into());
    put(
        "backendtype",
        disk.backend_type.clone().unwrap_or("unknown".into()),
    );
    put("readwrite", flag(disk.writable));
    put("cdrom", flag(disk.cdrom));
    put("direct", flag(disk.direct_io_safe));
    put("discard", defbool(disk.discard).into());
    put("trusted", defbool(disk.trusted).into());
    for (key, value) in [
        (
            "target",
            Some(disk.target.display().to_string()).filter(|target| !target.is_empty()),
        ),
        ("script", disk.script.clone()),
        ("backend", disk.backend.clone()),
    ] {
        if let Some(value) = value {
            put(key, value);
        }
    }
    fields
}

fn disk_text(maker: &mut Maker) -> String {
    const TARGETS: &[&str] = &[
        "/a.img",
        "/dev/vg/a",
        "a",
        "phy:/x",
        "file:/y",
        "tap:qcow2:/z",
        "raw:/q",
        "vhd:/x",
        "qcow:/x",
        "iscsi:y",
        "nbd:a:1",
        "drbd:r",
        "tapdisk:/x",
        "aio:/x",
        "tap2:/x",
        "ioemu:/x",
        "block-x:y",
    ];
    const FORMATS: &[&str] = &["raw", "raw", "", "qcow", "qcow2", "vhd", "qed", "empty"];
    const NAMES: &[&str] = &[
        "xvda",
        "xvda",
        "xvdb1",
        "hda",
        "hdc:cdrom",
        "xvda:disk",
        "sda",
        "51712",
        "d0p1",
    ];
    const ACCESS: &[&str] = &["w", "r", "rw", "ro", "w", "r", ""];
    const BAD: &[&str] = &[
        "rav",
        "xvda:foo",
        "floppy",
        "",
        "w!",
        "r!",
        "x",
        "http://h/x",
    ];
    const KEYED: &[&str] = &[
        "format=raw",
        "format=qcow2",
        "vdev=xvda",
        "access=rw",
        "access=r",
        "backend=0",
        "backend=disks",
        "backend=Domain-0",
        "backendtype=phy",
        "backendtype=qdisk",
        "backendtype=tap",
        "backendtype=standalone",
        "script=block-x",
        "script=/s",
        "devtype=cdrom",
        "devtype=disk",
        "discard",
        "no-discard",
        "direct-io-safe",
        "cdrom",
        "target=/t",
        "target=/t,r,xvdz",
    ];
    const BAD_KEYED: &[&str] = &[
        "format=",
        "format=x",
        "vdev=hdb:cdrom",
        "access=x",
        "backendtype=x",
        "devtype=x",
        "trusted",
        "untrusted",
        "unknown=1",
        "unknown",
        "/x=y",
        "target=",
        " vdev = xvdb",
        "format =raw",
        "discard=1",
        "cdrom=1",
        "VDEV=xvda",
        "vdev=",
    ];
    let pick = |maker: &mut Maker, good: &[&str], bad: &[&str]| -> String {
        let from = if maker.percent(96) { good } else { bad };
        maker.one(from).into()
    };
    let mut parts: Vec<String> = Vec::new();
    if maker.percent(75) {
        let mut lists = vec![TARGETS, FORMATS, NAMES, ACCESS];
        lists.truncate([4, 4, 4, 3, 3, 2][maker.below(6)]);
        for list in &lists {
            let part = pick(maker, list, BAD);
            // Behind an old prefix there is no format.
            let prefixed = parts
                .first()
                .is_some_and(|target| target.contains(':') && !target.starts_with("block"));
            if list.as_ptr() != FORMATS.as_ptr() || !prefixed || maker.percent(10) {
                parts.push(part);
            }
        }
        if maker.percent(3) {
            parts.push("w".into());
        }
    } else {
        parts.push("vdev=xvda".into());
        parts.push("target=/t".into());
    }
    for _ in 0..[0, 0, 0, 1, 1, 2, 3][maker.below(7)] {
        let at = maker.below(parts.len() + 1);
        let part = pick(maker, KEYED, BAD_KEYED);
        parts.insert(at, part);
    }
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text += match maker.below(100) {
                0 => " ,",
                1 => ",\t",
                2..20 => ", ",
                _ => ",",
            };
        }
        text += part;
    }
    maker.spoil(text, 8)
}

const DISKS: &[Difference<Fields>] = &[
    Difference {
        name: "blanks",
        why: "xl takes a blank before a comma or a tab behind one as part of a name, which nobody means",
        is: |text, _, _| {
            let odd = |part: &str| {
                part != part.trim_end()
                    || part.contains('\t')
                    || part.contains(" =")
                    || part.contains("= ")
                    || part.contains(": ")
            };
            text.split(',').any(odd)
        },
    },
    Difference {
        name: "trusted",
        why: "this word came with a later xl",
        is: |text, _, _| text.contains("trusted"),
    },
    Difference {
        name: "path with =",
        why: "xl takes /a=b for a parameter with the name /a",
        is: |text, ours, theirs| {
            let path = |part: &str| {
                part.split_once('=')
                    .is_some_and(|(key, _)| key.contains('/'))
            };
            text.split(',').any(path) && ours.is_ok() && theirs.is_err()
        },
    },
    Difference {
        name: "= at an end",
        why: "xl drops the sign if nothing is behind it",
        is: |text, _, _| text.split(',').any(|part| part.ends_with('=')),
    },
    Difference {
        name: "no target",
        why: "xl fails later, when it opens the file without a name",
        is: |_, ours, theirs| {
            let none = |why: &String| why.contains("no target");
            theirs
                .as_ref()
                .is_ok_and(|fields| !fields.contains_key("target"))
                && ours.as_ref().is_err_and(none)
        },
    },
    Difference {
        name: "no name",
        why: "xl takes an empty vdev for disk number 0, which no guest has",
        is: |_, ours, theirs| {
            let empty = theirs
                .as_ref()
                .is_ok_and(|fields| fields.get("vdev").is_none_or(String::is_empty));
            empty
                && ours
                    .as_ref()
                    .is_err_and(|why| why.contains("no virtual device"))
        },
    },
];

#[test]
fn names_of_disks_have_libxls_numbers() {
    let Some(mut witness) = Witness::start("names_of_disks_have_libxls_numbers") else {
        return;
    };
    let mut maker = Maker::new(3);
    let mut tally = Tally::new("names of disks", maker.seed, NAMES);
    for _ in 0..Maker::count(12_000) {
        let text = name_text(&mut maker).replace('\n', "z");
        let ours = vdev_number(&text).map_err(|e| e.to_string());
        let answer = witness.ask(b'v', &[&text]);
        // It looks for the disk's node: /libxl/1/device/vbd/NUMBER/…
        let theirs = match (answer.status, answer.text.split('/').nth(5)) {
            (0, Some(number)) => Ok(number.parse::<u32>().expect("a number")),
            _ => Err("invalid".to_string()),
        };
        tally.compare(&text, &ours, &theirs);
    }
    tally.finish(4_000);
}

fn name_text(maker: &mut Maker) -> String {
    let kind = maker.one(&["xvd", "xvd", "hd", "sd", "d", "d", "", "vd"]);
    let mut text = String::from(kind);
    let part = maker.number();
    match kind {
        "d" => {
            text += &maker.number();
            text += &maker.some(&["p"], 1);
            if text.ends_with('p') {
                text += &part;
            }
        }
        "" => text += &maker.number(),
        _ => {
            text += &maker.some(&["a", "b", "c", "d", "p", "q", "z"], 3);
            if maker.percent(50) {
                text += &part;
            }
        }
    }
    maker.spoil(text, 10)
}

const NAMES: &[Difference<u32>] = &[
    Difference {
        name: "no letter",
        why: "libxl makes 832 of hd, the number of no disk",
        is: |text, ours, _| {
            text.starts_with("hd")
                && !text[2..].starts_with(|c: char| c.is_ascii_lowercase())
                && ours.is_err()
        },
    },
    Difference {
        name: "strtoul",
        why: "libxl takes blanks, a plus and zeros before a number",
        is: |text, ours, theirs| {
            let octal = text.starts_with('d') && (text.starts_with("d0") || text.contains("p0"));
            (octal || text.contains(['+', '-', ' ', '\t'])) && ours.is_err() && theirs.is_ok()
        },
    },
    Difference {
        name: "no name",
        why: "libxl makes 0 of nothing",
        is: |text, _, theirs| text.is_empty() && *theirs == Ok(0),
    },
];

#[test]
fn rates_are_libxlutils() {
    let Some(mut witness) = Witness::start("rates_are_libxlutils") else {
        return;
    };
    let mut maker = Maker::new(4);
    let mut tally = Tally::new("rates", maker.seed, RATES);
    for _ in 0..Maker::count(12_000) {
        // A comma or a blank at an end would be of the card's description.
        let text = rate_text(&mut maker).replace([' ', '\t', '\n', ','], "x");
        let ours = NicConfig::parse(&format!("rate={text}"), &mut Vec::new());
        let ours = match ours {
            Ok(nic) => nic
                .rate
                .map(|r| (r.bytes_per_interval, r.interval_us))
                .ok_or("none".to_string()),
            Err((message, _)) => Err(message),
        };
        let answer = witness.ask(b'r', &[&text]);
        let theirs = match (answer.status, answer.text.split_once(',')) {
            (0, Some((bytes, us))) => Ok((bytes.parse().unwrap(), us.parse().unwrap())),
            (errno, _) => Err(format!("errno {errno}")),
        };
        tally.compare(&text, &ours, &theirs);
    }
    tally.finish(3_000);
}

fn rate_text(maker: &mut Maker) -> String {
    let mut text = maker.number();
    if maker.percent(2) {
        text.insert(0, '0');
    }
    text += maker.one(&["G", "M", "K", "M", "K", "", "k", "T"]);
    text += maker.one(&["b/s", "B/s", "b/s", "B/s", "B", "/s", "bps"]);
    if maker.percent(50) {
        text += "@";
        text += &maker.number();
        text += maker.one(&["ms", "us", "s", "ms", "us", "", "m"]);
    }
    maker.spoil(text, 8)
}

const RATES: &[Difference<(u64, u32)>] = &[
    Difference {
        name: "nothing",
        why: "less than a byte an interval would stop the card for ever",
        is: |_, ours, theirs| ours.is_err() && theirs.as_ref().is_ok_and(|(bytes, _)| *bytes == 0),
    },
    Difference {
        name: "leading zero",
        why: "libxlutil reads 010MB/s as 8 MB/s, which nobody means",
        is: |text, _, _| text.split('@').any(|part| part.starts_with('0')),
    },
];
