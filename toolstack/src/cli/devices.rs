//! Commands about guests' devices: `block-attach`, `-list`, `-detach`, `network-*`, `channel-list`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use xen_backend::DeviceId;
use xen_backend::account::{self, Count};
use xen_hal::DomainInfo;
use xen_sys::DomId;
use xlrs::attach::{self, Unwilling};
use xlrs::config::{DiskConfig, DiskFormat, NicConfig, memory_kib, parse_mac, vdev_number};
use xlrs::destroy::{Device, devices};
use xlrs::interrupt::Held;
use xlrs::prepare::name_nic;
use xlrs::store::texts;
use xlrs::{Error, Kind, Result, resize, snapshot, userdata};

use super::common::{Host, print, print_json};
use super::look::Look;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct BlockAttachArgs {
    /// The guest's name or number
    domain: String,
    /// The disk as in disk=[…], such as `format=raw,vdev=xvdb,access=rw,target=/srv/data.img`
    #[arg(required = true)]
    disk: Vec<String>,
    #[arg(skip)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct NetworkAttachArgs {
    /// The guest's name or number
    domain: String,
    /// The card as in vif=[…], such as `bridge=xenbr0 mac=00:16:3e:01:02:03`
    #[arg(value_name = "KEY=VALUE")]
    card: Vec<String>,
    #[arg(skip)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct BlockDetachArgs {
    /// The guest's name or number
    domain: String,
    /// The disk's name in the guest, such as `xvdb`, or its number
    disk: String,
    /// Even if the guest does not let go of it
    #[arg(short, long)]
    force: bool,
}

#[derive(Args)]
pub struct BlockResizeArgs {
    /// The guest's name or number
    domain: String,
    /// The disk's name in the guest, such as `xvdb`, or its number
    disk: String,
    /// So large, if it is a raw file: a number of MiB, or a number and a unit, such as 20G. Without it the
    /// size that file or device have now
    size: Option<String>,
}

#[derive(Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct BlockSnapshotArgs {
    /// The guest's name or number
    domain: String,
    /// The disk's name in the guest, such as `xvda`, or its number
    disk: String,
    /// The new file; there is none of this name yet
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const SNAPSHOT_HELP: &str = "\
The disk's image stays as it is at this moment, and the guest, which does not notice, goes on in FILE, a qcow2 image
on top of it. blkback opens images that rest on others only below the folders of its --backing.

Example, a disk whose image lies in /srv:
  xlrs block-snapshot web xvda /srv/web-monday.qcow2
  cp /srv/web.img /backup/               # nobody writes to it any more
With the guest down, qemu-img commit /srv/web-monday.qcow2 puts the two together again.";

#[derive(Args)]
pub struct NetworkDetachArgs {
    /// The guest's name or number
    domain: String,
    /// The card's number or MAC address
    card: String,
    /// Even if the guest does not let go of it
    #[arg(short, long)]
    force: bool,
}

#[derive(Args)]
pub struct ListArgs {
    /// The guests' names or numbers
    #[arg(required = true, value_name = "DOMAIN")]
    domains: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct BlockListArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Show what each disk's queues have done, as our back end counts it
    #[arg(long)]
    stats: bool,
}

pub fn block_attach(args: &BlockAttachArgs) -> Result<ExitCode> {
    let text = args.disk.join(",");
    let disk = DiskConfig::parse(&text)
        .map_err(complaint("read the disk", &text))
        .and_then(|disk| match xlrs::config::unsupported(&disk) {
            Some((what, help)) => Err(complaint("read the disk", &text)((
                what,
                Some(help.to_string()),
            ))),
            None => Ok(disk),
        })?;
    if args.dry_run {
        let json = userdata::libxl_text(&userdata::disk_json(&disk));
        return print(&format!("disk: {json}\n"));
    }
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let held = Held::begin()?;
    attach::attach_disk(&host.control, &host.store, &info, &disk)?;
    held.release();
    Ok(ExitCode::SUCCESS)
}

pub fn network_attach(args: &NetworkAttachArgs) -> Result<ExitCode> {
    let text = args.card.join(",");
    let mut warnings = Vec::new();
    let nic = NicConfig::parse(&text, &mut warnings).map_err(complaint("read the card", &text))?;
    for (message, help) in warnings {
        eprintln!("xlrs: {message}");
        if let Some(help) = help {
            eprintln!("  help: {help}");
        }
    }
    if args.dry_run {
        let mut json = userdata::nic_json(&name_nic(&nic, &[])?);
        // What is left open is decided when it is attached.
        let open = [
            ("devid", nic.devid.is_none()),
            ("mac", nic.mac.is_none()),
            ("bridge", nic.bridge.is_none()),
        ];
        if let Some(map) = json.as_object_mut() {
            for (key, _) in open.iter().filter(|(_, open)| *open) {
                map.shift_remove(*key);
            }
        }
        return print(&format!("vif: {}\n", userdata::libxl_text(&json)));
    }
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let held = Held::begin()?;
    attach::attach_nic(&host.control, &host.store, &info, &nic)?;
    held.release();
    Ok(ExitCode::SUCCESS)
}

fn complaint(step: &'static str, text: &str) -> impl Fn((String, Option<String>)) -> Error + use<> {
    let text = text.to_string();
    move |(what, help)| {
        let error = Error::new(step, &text, what).kind(Kind::Invalid);
        match help {
            Some(help) => error.hint(help),
            None => error,
        }
    }
}

pub fn block_detach(args: &BlockDetachArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let device = find_disk(&host, &info, &args.domain, &args.disk)?;
    detach(&host, &info, &device, args.force, Unwilling::Spare)
}

pub fn block_resize(args: &BlockResizeArgs) -> Result<ExitCode> {
    let bytes = args.size.as_deref().map(|text| match memory_kib(text) {
        Some(kib) => Ok(kib << 10),
        None => Err(Error::new("read the size", text, "it is no size")
            .kind(Kind::Invalid)
            .hint("a number of MiB, or a number and a unit: 64, 64M, 1G")),
    });
    let bytes = bytes.transpose()?;
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let device = find_disk(&host, &info, &args.domain, &args.disk)?;
    let sectors = resize::resize_disk(&host.store, &device, bytes)?;
    print(&format!("{}: {sectors} sectors of 512 bytes\n", args.disk))
}

pub fn block_snapshot(args: &BlockSnapshotArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let device = find_disk(&host, &info, &args.domain, &args.disk)?;
    let held = Held::begin()?;
    let done = snapshot::snapshot_disk(&host.store, &info, &device, &args.file)?;
    held.release();
    if args.json {
        return print_json(&json!({
            "domid": info.dom.0, "disk": done.vdev, "number": device.number.parse::<u32>().ok(),
            "image": done.image, "format": "qcow2",
            "backing": done.backing, "backing_format": done.backing_format,
            "sectors": done.sectors_512, "config": done.config,
        }));
    }
    print(&format!(
        "{} goes on in {}; {} stays as it is\nfor its configuration file: {}\n",
        done.vdev,
        done.image.display(),
        done.backing.display(),
        done.config
    ))
}

fn find_disk(host: &Host, info: &DomainInfo, domain: &str, disk: &str) -> Result<Device> {
    let number = vdev_number(disk).ok().map(|n| n.to_string());
    let object = format!("{disk} of {domain}");
    let found = |device: &Device| Ok(Some(&device.number) == number.as_ref());
    find(host, info, "vbd", &object, "block-list", found)
}

pub fn network_detach(args: &NetworkDetachArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let mac = args.card.contains(':').then(|| parse_mac(&args.card));
    let object = format!("{} of {}", args.card, args.domain);
    let found = |device: &Device| match mac {
        None => Ok(device.number == args.card),
        Some(mac) => {
            let path = [format!("{}/mac", device.backend)];
            let known = texts(&host.store, None, &path);
            let known = known.map_err(Error::store("look at", &device.backend))?;
            let known = known.into_iter().flatten().next();
            Ok(mac.is_some() && known.and_then(|text| parse_mac(&text)) == mac)
        }
    };
    let device = find(&host, &info, "vif", &object, "network-list", found)?;
    // As xl: a guest may lose a card at any time, but not a disk that it writes to.
    detach(&host, &info, &device, args.force, Unwilling::Force)
}

fn find(
    host: &Host,
    info: &DomainInfo,
    kind: &str,
    object: &str,
    list: &str,
    wanted: impl Fn(&Device) -> Result<bool>,
) -> Result<Device> {
    for device in devices(&host.store, info.dom)? {
        if device.kind == kind && wanted(&device)? {
            return Ok(device);
        }
    }
    let error = Error::new("find the device", object, "it has none of this name");
    Err(error
        .kind(Kind::Invalid)
        .hint(format!("`xlrs {list} {}` shows what it has", info.dom)))
}

fn detach(
    host: &Host,
    info: &DomainInfo,
    device: &Device,
    force: bool,
    unwilling: Unwilling,
) -> Result<ExitCode> {
    let held = Held::begin()?;
    let unwilling = if force {
        Unwilling::DoNotAsk
    } else {
        unwilling
    };
    attach::detach(&host.store, info, device, unwilling)?;
    held.release();
    Ok(ExitCode::SUCCESS)
}

/// A device's line: what xl shows of it.
struct Row {
    dom: u16,
    number: i64,
    backend_id: i64,
    state: i64,
    port: i64,
    rings: [i64; 2],
    mac: Option<String>,
    /// A disk's `params`.
    params: Option<String>,
    backend: String,
}

/// The devices of a kind of some guests; `rings` are the nodes that hold the rings' grants.
fn rows(look: &Look, words: &[String], kind: &str, rings: [&str; 2]) -> Result<Vec<Row>> {
    let mut out = Vec::new();
    for word in words {
        let dom = look.guest(word)?;
        for device in devices(look.store(), dom)? {
            if device.kind != kind {
                continue;
            }
            let front = |key: &str| format!("{}/{key}", device.frontend);
            let paths = [
                front("backend-id"),
                front("state"),
                front("event-channel"),
                front(rings[0]),
                front(rings[1]),
                format!("{}/mac", device.backend),
                format!("{}/params", device.backend),
            ];
            let values = texts(look.store(), None, &paths);
            let values = values.map_err(Error::store("look at", &device.frontend))?;
            let number = |at: usize| {
                let value = values.get(at).and_then(Option::as_deref);
                value
                    .and_then(|text| text.trim().parse().ok())
                    .unwrap_or(-1)
            };
            out.push(Row {
                dom: dom.0,
                number: device.number.parse().unwrap_or(-1),
                backend_id: number(0),
                state: number(1),
                port: number(2),
                rings: [number(3), number(4)],
                mac: values.get(5).cloned().flatten(),
                params: values.get(6).cloned().flatten(),
                backend: device.backend,
            });
        }
    }
    Ok(out)
}

fn json(row: &Row, rings: [&str; 2]) -> Value {
    let known = |value: i64| (value >= 0).then_some(value);
    let mut out = json!({
        "domid": row.dom, "number": row.number, "backend_domid": row.backend_id,
        "state": known(row.state), "event_channel": known(row.port), "backend": row.backend,
    });
    for (name, value) in rings.iter().zip(row.rings) {
        out[name.replace('-', "_")] = known(value).into();
    }
    if let Some(mac) = &row.mac {
        out["mac"] = mac.clone().into();
    }
    if let Some(params) = &row.params {
        let (format, target) = DiskFormat::of_params(params);
        out["format"] = format.name().into();
        out["target"] = target.into();
    }
    out
}

/// Like xl, `block-list` goes on after a guest that does not exist, and tells of it in words only.
pub fn block_list(args: &BlockListArgs) -> Result<ExitCode> {
    const RINGS: [&str; 2] = ["ring-ref", "ring-ref0"];
    let look = Look::open()?;
    let mut all = Vec::new();
    for word in &args.list.domains {
        match rows(&look, std::slice::from_ref(word), "vbd", RINGS) {
            Err(error) if error.kind == Kind::NoSuchDomain => eprintln!("xlrs: {error}"),
            rows => all.extend(rows?),
        }
    }
    if args.stats {
        return print_stats(&all, args.list.json, |row| json(row, RINGS));
    }
    if args.list.json {
        return print_json(&all.iter().map(|row| json(row, RINGS)).collect());
    }
    let mut out = format!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
        "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
    );
    for row in &all {
        let _ = writeln!(
            out,
            "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}",
            row.number, row.backend_id, row.dom, row.state, row.port, row.rings[0], row.backend
        );
    }
    print(&out)
}

/// What disks' queues have done; nothing of a disk that is not served by our back end.
fn print_stats(rows: &[Row], as_json: bool, json: impl Fn(&Row) -> Value) -> Result<ExitCode> {
    let mut out = format!("{:<5} {:<6} {:<5}", "Vdev", "handle", "queue");
    for count in Count::ALL {
        let _ = write!(out, " {:>1$}", count.name(), count.name().len().max(12));
    }
    out.push('\n');
    let mut all = Vec::new();
    for row in rows {
        let id = DeviceId {
            dom: DomId(row.dom),
            index: row.number.try_into().unwrap_or(u32::MAX),
        };
        let queues = account::read(account::FOLDER.as_ref(), id).map_err(|error| {
            let name = format!("{}/{}", account::FOLDER, account::file_name(id, 0));
            Error::new("read the counts of a disk", name, error).hint("try again")
        })?;
        let mut whole = json(row);
        let object = |counts: &[u64]| -> Value {
            let named = Count::ALL.iter().zip(counts);
            let named = named.map(|(count, value)| (count.name().to_string(), json!(value)));
            Value::Object(named.collect())
        };
        whole["queues"] = queues.iter().map(|counts| object(counts)).collect();
        all.push(whole);
        for (queue, counts) in queues.iter().enumerate() {
            let _ = write!(out, "{:<5} {:<6} {queue:<5}", row.number, row.dom);
            for (count, value) in Count::ALL.iter().zip(counts) {
                let _ = write!(out, " {value:>0$}", count.name().len().max(12));
            }
            out.push('\n');
        }
    }
    match as_json {
        true => print_json(&Value::Array(all)),
        false => print(&out),
    }
}

pub fn network_list(args: &ListArgs) -> Result<ExitCode> {
    const RINGS: [&str; 2] = ["tx-ring-ref", "rx-ring-ref"];
    let look = Look::open()?;
    let mut out = format!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
        "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
    );
    let found = rows(&look, &args.domains, "vif", RINGS);
    if let Err(error) = &found
        && error.kind == Kind::NoSuchDomain
        && !args.json
    {
        // Scripts that look for lines find the header all the same.
        print(&out)?;
    }
    let all = found?;
    if args.json {
        return print_json(&all.iter().map(|row| json(row, RINGS)).collect());
    }
    for row in &all {
        let _ = writeln!(
            out,
            "{:<3} {:<2} {}{:>6} {:>5} {:>6} {:>5}/{:<11} {:<30}",
            row.number,
            row.backend_id,
            row.mac.as_deref().unwrap_or("00:00:00:00:00:00"),
            row.number,
            row.state,
            row.port,
            row.rings[0],
            row.rings[1],
            row.backend
        );
    }
    print(&out)
}

pub fn channel_list(args: &ListArgs) -> Result<ExitCode> {
    // They are consoles beyond the first, which no guest of ours has yet; those of a stock xl have.
    let look = Look::open()?;
    let mut all = Vec::new();
    let mut out = format!(
        "{:<3} {:<2} {:<5} {:<6} {:<8} {:<10} {:<30}\n",
        "Idx", "BE", "state", "evt-ch", "ring-ref", "connection", ""
    );
    for word in &args.domains {
        let dom = look.guest(word)?;
        for device in devices(look.store(), dom)? {
            if device.kind != "console" || device.number == "0" {
                continue;
            }
            let front = |key: &str| format!("{}/{key}", device.frontend);
            let paths = [
                front("backend-id"),
                front("state"),
                front("port"),
                front("ring-ref"),
                format!("{}/connection", device.backend),
                front("tty"),
                format!("{}/path", device.backend),
            ];
            let values = texts(look.store(), None, &paths);
            let values = values.map_err(Error::store("look at", &device.frontend))?;
            let text = |at: usize| values.get(at).cloned().flatten().unwrap_or_default();
            let number = |at: usize| text(at).trim().parse::<i64>().unwrap_or(-1);
            let connection = text(4);
            let place = match connection.as_str() {
                "pty" => text(5),
                _ => text(6),
            };
            // libxl numbers channels from 0, consoles from 1.
            let index = device.number.parse::<i64>().unwrap_or(0) - 1;
            let _ = writeln!(
                out,
                "{index:<3} {:<2} {:<5} {:<6} {:<8} {connection:<10} {place:<30}",
                number(0),
                number(1),
                number(2),
                number(3)
            );
            all.push(json!({
                "domid": dom.0, "channel": index, "backend_domid": number(0),
                "state": number(1), "event_channel": number(2), "ring_ref": number(3),
                "connection": connection, "path": place,
            }));
        }
    }
    match args.json {
        true => print_json(&Value::Array(all)),
        false => print(&out),
    }
}
