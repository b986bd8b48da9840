//! The checked configuration: what every other part of the toolstack works with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Source;
use super::cpus::CpuSet;
use super::diag::{Diagnostic, Severity, Span, nearest};
use super::disk::DiskConfig;
use super::getter::Getter;
use super::keys::{self, Use};
use super::parse::{Entry, ValueKind};
use super::vif::NicConfig;

/// Most seconds that a guest's clock may differ from UTC: a hundred years.
const MAX_OFFSET_S: i64 = 100 * 366 * 86_400;
/// Most vCPUs of a PV guest.
const MAX_VCPUS: u32 = 512;

/// A guest as it shall be. Nothing in it is raw any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// Its name.
    pub name: String,
    /// Its UUID, if one is given; else a random one is made when it is created.
    pub uuid: Option<[u8; 16]>,
    /// The kernel file.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory at the start.
    pub memory_kib: u64,
    /// Most memory it may have.
    pub max_memory_kib: u64,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// Most vCPUs it may have.
    pub max_vcpus: u32,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// Its network cards.
    pub nics: Vec<NicConfig>,
    /// What happens when it ends.
    pub events: Events,
    /// Frames of its grant table; `None` leaves it to Xen.
    pub max_grant_frames: Option<u32>,
    /// Frames of its maptrack table; `None` leaves it to Xen.
    pub max_maptrack_frames: Option<u32>,
    /// Highest version of its grant table.
    pub max_grant_version: u8,
    /// Highest event channel port.
    pub max_event_channels: u32,
    /// Where it runs and what it may have of the CPUs.
    #[serde(default)]
    pub placement: Placement,
    /// How the time-stamp counter behaves: 0 default, 1 always emulated, 2 native.
    #[serde(default)]
    pub tsc_mode: u32,
    /// How far its clock is ahead of UTC, in seconds.
    #[serde(default)]
    pub time_offset_s: i64,
    /// Its clock is to be the host's local time, plus the offset.
    #[serde(default)]
    pub local_time: bool,
}

/// Where a guest runs and what it may have of the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The cpupool, by name or number; `None` for the one that Xen starts with.
    pub pool: Option<String>,
    /// Where each vCPU may run; those behind the end may run everywhere.
    pub hard: Vec<CpuSet>,
    /// Where each vCPU runs best.
    pub soft: Vec<CpuSet>,
    /// Its share, relative to others'.
    pub weight: Option<u16>,
    /// The most that it may have, in per cent of one CPU.
    pub cap: Option<u16>,
    /// Under RTDS: the period of its vCPUs, in µs. Other schedulers have none, and it is passed over.
    #[serde(default)]
    pub period_us: Option<u32>,
    /// Under RTDS: how much a vCPU may run in each period, in µs. xl has no key for it.
    #[serde(default)]
    pub budget_us: Option<u32>,
    /// Under RTDS: its vCPUs may have what others leave.
    #[serde(default)]
    pub extra_time: Option<bool>,
    /// The CPUs were chosen one vCPU at a time: libxl keeps its hands off then.
    #[serde(default)]
    pub by_hand: bool,
}

/// What is done when a guest ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// It powered off.
    pub on_poweroff: Action,
    /// It asked for a reboot.
    pub on_reboot: Action,
    /// Its watchdog fired.
    pub on_watchdog: Action,
    /// It crashed.
    pub on_crash: Action,
    /// It asked for a soft reset.
    pub on_soft_reset: Action,
}

/// What is done with a guest that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It is removed.
    Destroy,
    /// It is removed and created again.
    Restart,
    /// It stays under another name, and is created again.
    RenameRestart,
    /// It stays.
    Preserve,
    /// Its memory is saved to a file, and it is removed.
    CoredumpDestroy,
    /// Its memory is saved to a file, and it is created again.
    CoredumpRestart,
    /// As restart, with memory kept (`on_soft_reset` only).
    SoftReset,
}

impl Action {
    pub(super) const ALL: [(&str, Action); 7] = [
        ("destroy", Action::Destroy),
        ("restart", Action::Restart),
        ("rename-restart", Action::RenameRestart),
        ("preserve", Action::Preserve),
        ("coredump-destroy", Action::CoredumpDestroy),
        ("coredump-restart", Action::CoredumpRestart),
        ("soft-reset", Action::SoftReset),
    ];

    /// The word in configuration files.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, action)| *action == self)
            .map_or("", |(name, _)| name)
    }

    /// The word in libxl's JSON.
    pub fn libxl_name(self) -> String {
        match self {
            Action::RenameRestart => "restart_rename".into(),
            other => other.name().replace('-', "_"),
        }
    }

    /// The action with this word.
    pub fn parse(word: &str) -> Option<Action> {
        // xl takes - alone; _ is what libxl's JSON has.
        let word = word.replace('_', "-");
        Self::ALL
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, action)| *action)
    }
}

/// What checking needs besides the entries.
pub(crate) struct Context<'a> {
    pub(crate) sources: &'a [Source],
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Context<'_> {
    pub(super) fn say(
        &mut self,
        severity: Severity,
        span: Span,
        message: String,
        help: Option<String>,
    ) {
        let mut diagnostic = Diagnostic::at(severity, self.sources, span, message);
        diagnostic.remedy = help;
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn error(&mut self, span: Span, message: impl Into<String>, help: Option<&str>) {
        self.say(
            Severity::Error,
            span,
            message.into(),
            help.map(String::from),
        );
    }

    pub(super) fn missing(&mut self, message: &str, help: &str) {
        self.diagnostics
            .push(Diagnostic::whole(Severity::Error, self.sources, message).help(help));
    }
}

/// Checks all entries; `None` if what is needed most is missing, and then there is an error.
pub(crate) fn check(entries: &[Entry], cx: &mut Context<'_>) -> Option<DomainConfig> {
    for entry in entries {
        check_key(entry, cx);
    }
    let mut get = Getter { entries, cx };
    get.guest_type();
    let name = get.name();
    let uuid = get.uuid();
    let kernel = get.kernel();
    let cmdline = get.cmdline();
    let memory_kib = get.memory("memory").unwrap_or(32 << 10);
    let max_memory_kib = get.memory("maxmem").unwrap_or(memory_kib);
    if max_memory_kib < memory_kib
        && let Some(entry) = get.entry("maxmem")
    {
        let span = entry.value.span;
        get.cx.error(span, "maxmem is less than memory", None);
    }
    let vcpus = get.number("vcpus", 1, MAX_VCPUS.into());
    let max_vcpus = get.number("maxvcpus", 1, MAX_VCPUS.into());
    let vcpus = vcpus.or(max_vcpus).unwrap_or(1) as u32;
    let max_vcpus = max_vcpus.map_or(vcpus, |max| max as u32);
    if max_vcpus < vcpus
        && let Some(entry) = get.entry("maxvcpus")
    {
        let span = entry.value.span;
        get.cx.error(span, "maxvcpus is less than vcpus", None);
    }
    let config = DomainConfig {
        uuid,
        ramdisk: get.text("ramdisk").map(PathBuf::from),
        cmdline,
        memory_kib,
        max_memory_kib,
        vcpus,
        max_vcpus,
        disks: get.disks(),
        nics: get.nics(),
        events: Events {
            on_poweroff: get.action("on_poweroff", Action::Destroy),
            on_reboot: get.action("on_reboot", Action::Restart),
            on_watchdog: get.action("on_watchdog", Action::Destroy),
            on_crash: get.action("on_crash", Action::Destroy),
            on_soft_reset: get.action("on_soft_reset", Action::SoftReset),
        },
        max_grant_frames: get.number("max_grant_frames", 1, 1 << 20).map(|n| n as u32),
        max_maptrack_frames: get
            .number("max_maptrack_frames", 0, 1 << 20)
            .map(|n| n as u32),
        max_grant_version: get.number("max_grant_version", 1, 2).unwrap_or(2) as u8,
        max_event_channels: get.number("max_event_channels", 8, 131_071).unwrap_or(1023) as u32,
        placement: Placement {
            pool: get.text("pool").map(String::from),
            hard: get.cpus("cpus", max_vcpus),
            soft: get.cpus("cpus_soft", max_vcpus),
            weight: get.number("cpu_weight", 1, 65_535).map(|n| n as u16),
            cap: get.number("cap", 0, 65_534).map(|n| n as u16),
            period_us: get
                .number("period", 1, i64::from(u32::MAX))
                .map(|n| n as u32),
            budget_us: get
                .number("budget", 1, i64::from(u32::MAX))
                .map(|n| n as u32),
            extra_time: get.number("extratime", 0, 1).map(|n| n == 1),
            by_hand: get.is_list("cpus") || get.entry("cpus_soft").is_some(),
        },
        tsc_mode: get.tsc_mode(),
        time_offset_s: get.number("rtc_timeoffset", 0, MAX_OFFSET_S).unwrap_or(0),
        local_time: get.number("localtime", 0, 1) == Some(1),
        name: name?,
        kernel: kernel?,
    };
    Some(config)
}

fn check_key(entry: &Entry, cx: &mut Context<'_>) {
    let key = &entry.key;
    match keys::find(key) {
        Some(Use::Full | Use::NotPv) => {}
        Some(Use::NotYet) => {
            let message = format!("`{key}` has no effect yet");
            cx.say(Severity::Warning, entry.span, message, None);
        }
        Some(Use::Refused(why)) => {
            let unset = match &entry.value.kind {
                ValueKind::List(list) => list.is_empty(),
                ValueKind::Text(text) => text.is_empty(),
                ValueKind::Number(..) => false,
            };
            if !unset {
                cx.error(entry.span, format!("`{key}`: {why}"), None);
            }
        }
        None => {
            let help = nearest(key, keys::KEYS.iter().map(|(name, _)| *name))
                .map(|name| format!("did you mean `{name}`?"));
            let message = format!("unknown key `{key}` is ignored");
            cx.say(Severity::Warning, entry.span, message, help);
        }
    }
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
