//! `top`: what the guests use, in xentop's columns.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{DomainControl, DomainInfo, ShutdownReason};
use xlrs::destroy::devices;
use xlrs::{Error, Result};

use super::common::{Host, print, print_json, shown};
use crate::cli::ExitCode;

#[derive(Args)]
pub struct TopArgs {
    /// One table below the other, without clearing the screen
    #[arg(short, long)]
    batch: bool,
    /// Seconds between two tables
    #[arg(short, long, value_name = "SECONDS", default_value_t = 3.0, value_parser = delay)]
    delay: f64,
    /// Stop after so many tables
    #[arg(short, long, value_name = "COUNT")]
    iterations: Option<u64>,
    /// Print JSON, one array a line
    #[arg(long)]
    json: bool,
}

fn delay(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_string())?;
    match (0.05..=86_400.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("it is less than 0.05, or more than a day".into()),
    }
}

/// A guest's line.
#[derive(Default)]
struct Row {
    name: Option<String>,
    info: Option<DomainInfo>,
    cpu_percent: f64,
    nets: u32,
    net_kib: [u64; 2],
    disks: u32,
    /// Out-of-requests, reads, writes, sectors read, sectors written.
    disk_counts: [u64; 5],
}

pub fn top(args: &TopArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let clear = !args.batch && !args.json && io::stdout().is_terminal();
    let total = host.control.host();
    let total = total.map_err(Error::hal("ask Xen about the host", ""))?;
    let mut before: Vec<(u16, u64)> = Vec::new();
    let mut at = Instant::now();
    let mut round = 0;
    loop {
        let now = Instant::now();
        let passed_ns = now.duration_since(at).as_nanos() as f64;
        at = now;
        let mut rows = Vec::new();
        for (info, name) in host.named(host.domains(&[])?)? {
            rows.push(look(&host, info, name, &before, passed_ns)?);
        }
        before = rows
            .iter()
            .filter_map(|row| row.info.as_ref())
            .map(|info| (info.dom.0, info.cpu_time_ns))
            .collect();
        if args.json {
            let list: Vec<Value> = rows.iter().map(row_json).collect();
            match args.iterations {
                Some(1) => print_json(&Value::Array(list))?,
                _ => print(&format!("{}\n", Value::Array(list)))?,
            };
        } else {
            let table = table(&rows, total.total_pages * 4);
            let head = if clear { "\x1b[H\x1b[J" } else { "" };
            print(&format!("{head}{table}"))?;
        }
        round += 1;
        if args.iterations.is_some_and(|wanted| round >= wanted) {
            return Ok(ExitCode::SUCCESS);
        }
        // Nobody reads any more: a pipe that was closed.
        if io::stdout().flush().is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_secs_f64(args.delay));
    }
}

fn look(
    host: &Host,
    info: DomainInfo,
    name: Option<String>,
    before: &[(u16, u64)],
    passed_ns: f64,
) -> Result<Row> {
    let mut row = Row {
        name,
        ..Row::default()
    };
    let earlier = before.iter().find(|(dom, _)| *dom == info.dom.0);
    if let Some((_, time)) = earlier {
        let used = info.cpu_time_ns.saturating_sub(*time) as f64;
        row.cpu_percent = 100.0 * used / passed_ns.max(1.0);
    }
    for device in devices(&host.store, info.dom)? {
        match device.kind.as_str() {
            "vif" => {
                row.nets += 1;
                let at = format!(
                    "/sys/class/net/vif{}.{}/statistics",
                    info.dom, device.number
                );
                // What dom0 receives the guest has sent.
                for (sum, name) in row.net_kib.iter_mut().zip(["rx_bytes", "tx_bytes"]) {
                    *sum += count(&at, name) / 1024;
                }
            }
            "vbd" => {
                row.disks += 1;
                let at = format!(
                    "/sys/bus/xen-backend/devices/vbd-{}-{}/statistics",
                    info.dom, device.number
                );
                let names = ["oo_req", "rd_req", "wr_req", "rd_sect", "wr_sect"];
                for (sum, name) in row.disk_counts.iter_mut().zip(names) {
                    *sum += count(&at, name);
                }
            }
            _ => {}
        }
    }
    row.info = Some(info);
    Ok(row)
}

/// A counter of the kernel's; 0 where a back end of ours serves, which has none there.
fn count(folder: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(Path::new(folder).join(name));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn table(rows: &[Row], host_kib: u64) -> String {
    let mut out = format!(
        "{:>10} {:>6} {:>10} {:>6} {:>10} {:>6} {:>10} {:>9} {:>5} {:>4} {:>8} {:>8} {:>4} {:>8} {:>8} {:>8} {:>10} {:>10}\n",
        "NAME",
        "STATE",
        "CPU(sec)",
        "CPU(%)",
        "MEM(k)",
        "MEM(%)",
        "MAXMEM(k)",
        "MAXMEM(%)",
        "VCPUS",
        "NETS",
        "NETTX(k)",
        "NETRX(k)",
        "VBDS",
        "VBD_OO",
        "VBD_RD",
        "VBD_WR",
        "VBD_RSECT",
        "VBD_WSECT"
    );
    for row in rows {
        let Some(info) = &row.info else { continue };
        let flags = info.flags;
        let letter = |on: bool, letter: char| if on { letter } else { '-' };
        let state: String = [
            letter(flags.dying, 'd'),
            letter(flags.shutdown, 's'),
            letter(flags.blocked, 'b'),
            letter(info.shutdown_reason == Some(ShutdownReason::Crash), 'c'),
            letter(flags.paused, 'p'),
            letter(flags.running, 'r'),
        ]
        .iter()
        .collect();
        let percent = |kib: u64| 100.0 * kib as f64 / host_kib.max(1) as f64;
        let memory = info.total_pages * 4;
        // Dom0's limit is often that there is none.
        let max = Some(info.max_pages).filter(|pages| *pages < u64::MAX >> 14);
        let max = max
            .map(|pages| pages * 4)
            .filter(|kib| *kib <= host_kib * 16);
        let [oo, reads, writes, sectors_read, sectors_written] = row.disk_counts;
        let _ = writeln!(
            out,
            "{:>10} {state:>6} {:>10} {:>6.1} {memory:>10} {:>6.1} {:>10} {:>9} {:>5} {:>4} {:>8} {:>8} {:>4} {oo:>8} {reads:>8} {writes:>8} {sectors_read:>10} {sectors_written:>10}",
            shown(row.name.as_deref()),
            info.cpu_time_ns / 1_000_000_000,
            row.cpu_percent,
            percent(memory),
            max.map_or("no limit".into(), |kib| kib.to_string()),
            max.map_or("n/a".into(), |kib| format!("{:.1}", percent(kib))),
            info.online_vcpus,
            row.nets,
            row.net_kib[0],
            row.net_kib[1],
            row.disks,
        );
    }
    out
}

fn row_json(row: &Row) -> Value {
    let Some(info) = &row.info else {
        return Value::Null;
    };
    let [oo, reads, writes, sectors_read, sectors_written] = row.disk_counts;
    json!({
        "domid": info.dom.0, "name": row.name, "cpu_time_ns": info.cpu_time_ns,
        "cpu_percent": (row.cpu_percent * 10.0).round() / 10.0,
        "memory_kib": info.total_pages * 4, "vcpus": info.online_vcpus,
        "cards": row.nets, "sent_kib": row.net_kib[0], "received_kib": row.net_kib[1],
        "disks": row.disks, "disk_out_of_requests": oo, "disk_reads": reads,
        "disk_writes": writes, "disk_sectors_read": sectors_read,
        "disk_sectors_written": sectors_written,
    })
}
