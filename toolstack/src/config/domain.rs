//! The checked configuration: what every other part of the toolstack works with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::diag::{Diagnostic, Severity, Span, nearest};
use super::disk::{DiskConfig, DiskFormat};
use super::keys::{self, Use};
use super::parse::{Entry, Value, ValueKind};
use super::vif::NicConfig;
use super::{Source, lex};

/// Least memory that is believed: below it the value is surely a mistake of units.
const MIN_MEMORY_KIB: u64 = 256;
/// Most memory of a guest here, 1 TiB.
const MAX_MEMORY_KIB: u64 = 1 << 30;
/// Most vCPUs of a PV guest.
const MAX_VCPUS: u32 = 512;
/// Most disks, and most cards.
const MAX_DEVICES: usize = 64;

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
    const ALL: [(&str, Action); 7] = [
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

    /// The action with this word.
    pub fn parse(word: &str) -> Option<Action> {
        // xl takes both - and _ here.
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
    fn say(&mut self, severity: Severity, span: Span, message: String, help: Option<String>) {
        let mut diagnostic = Diagnostic::at(severity, self.sources, span, message);
        diagnostic.remedy = help;
        self.diagnostics.push(diagnostic);
    }

    fn error(&mut self, span: Span, message: impl Into<String>, help: Option<&str>) {
        self.say(
            Severity::Error,
            span,
            message.into(),
            help.map(String::from),
        );
    }

    fn missing(&mut self, message: &str, help: &str) {
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
                ValueKind::Number(_) => false,
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

/// Takes values out of the entries, complaining about wrong ones.
struct Getter<'a, 'b, 'c> {
    entries: &'a [Entry],
    cx: &'b mut Context<'c>,
}

impl<'a> Getter<'a, '_, '_> {
    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn wrong(&mut self, value: &Value, key: &str, wanted: &str) {
        let message = format!("`{key}` must be {wanted}, not {}", value.kind.describe());
        self.cx.error(value.span, message, None);
    }

    fn text(&mut self, key: &str) -> Option<&'a str> {
        let value = &self.entry(key)?.value;
        match &value.kind {
            ValueKind::Text(text) => Some(text),
            _ => {
                self.wrong(value, key, "a string");
                None
            }
        }
    }

    /// A number, quoted or not.
    fn number(&mut self, key: &str, min: i64, max: i64) -> Option<i64> {
        let value = &self.entry(key)?.value;
        let number = match &value.kind {
            ValueKind::Number(number) => *number,
            ValueKind::Text(text) => match lex::number(text.trim()) {
                Some(number) => number,
                None => {
                    let message = format!("`{key}` must be a number, not {text:?}");
                    self.cx.error(value.span, message, None);
                    return None;
                }
            },
            ValueKind::List(_) => {
                self.wrong(value, key, "a number");
                return None;
            }
        };
        if !(min..=max).contains(&number) {
            let message = format!("`{key}` = {number} is out of range");
            let help = format!("{min} to {max}");
            self.cx.error(value.span, message, Some(&help));
            return None;
        }
        Some(number)
    }

    /// Memory in MiB, or a string with a unit.
    fn memory(&mut self, key: &str) -> Option<u64> {
        let value = &self.entry(key)?.value;
        let kib = match &value.kind {
            ValueKind::Number(mib) => u64::try_from(*mib).ok().and_then(|m| m.checked_mul(1024)),
            ValueKind::Text(text) => match size_kib(text.trim()) {
                Some(kib) => Some(kib),
                None => {
                    let message = format!("`{key}` = {text:?} is no size");
                    let help = "a number of MiB, or a number and a unit: \"64M\", \"1G\"";
                    self.cx.error(value.span, message, Some(help));
                    return None;
                }
            },
            ValueKind::List(_) => {
                self.wrong(value, key, "a number of MiB");
                return None;
            }
        };
        match kib {
            Some(kib) if (MIN_MEMORY_KIB..=MAX_MEMORY_KIB).contains(&kib) => Some(kib),
            _ => {
                let message = format!("`{key}` is out of range");
                self.cx
                    .error(value.span, message, Some("1 to 1048576 (MiB)"));
                None
            }
        }
    }

    fn action(&mut self, key: &str, default: Action) -> Action {
        let Some(word) = self.text(key) else {
            return default;
        };
        if let Some(action) = Action::parse(word)
            && (action != Action::SoftReset || key == "on_soft_reset")
        {
            return action;
        }
        if let Some(entry) = self.entry(key) {
            let message = format!("`{key}` = {word:?} is no action");
            let names: Vec<_> = Action::ALL[..6].iter().map(|(name, _)| *name).collect();
            let help = format!("one of {}", names.join(", "));
            self.cx.error(entry.value.span, message, Some(&help));
        }
        default
    }

    fn guest_type(&mut self) {
        for (key, good) in [("type", &["pv"][..]), ("builder", &["generic", "linux"])] {
            if let Some(word) = self.text(key)
                && !good.contains(&word)
                && let Some(entry) = self.entry(key)
            {
                let message = format!("`{key}` = {word:?}: only PV guests are supported");
                self.cx
                    .error(entry.value.span, message, Some("type = \"pv\""));
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let Some(entry) = self.entry("name") else {
            let help = "add a line such as name = \"web\"";
            self.cx.missing("the guest has no name", help);
            return None;
        };
        let name = self.text("name")?;
        let why = if name.is_empty() {
            "is empty"
        } else if name.len() > 200 {
            "is longer than 200 bytes"
        } else if name.contains('/') || name.chars().any(char::is_control) {
            "holds `/` or a control character"
        } else if name.bytes().all(|b| b.is_ascii_digit()) {
            "has digits only, so that it would be taken for a number"
        } else if name == "." || name == ".." || name == "Domain-0" {
            "is reserved"
        } else {
            return Some(name.to_string());
        };
        let message = format!("the guest's name {name:?} {why}");
        self.cx.error(entry.value.span, message, None);
        None
    }

    fn uuid(&mut self) -> Option<[u8; 16]> {
        let text = self.text("uuid")?;
        let uuid = crate::uuid::parse(text);
        if uuid.is_none()
            && let Some(entry) = self.entry("uuid")
        {
            let message = format!("{text:?} is no UUID");
            let help =
                "such as 0a1b2c3d-1111-2222-3333-444455556666; without one a random one is made";
            self.cx.error(entry.value.span, message, Some(help));
        }
        uuid
    }

    fn kernel(&mut self) -> Option<PathBuf> {
        match self.text("kernel") {
            Some("") | None => {
                // A wrong value has been complained about.
                if self
                    .entry("kernel")
                    .is_none_or(|e| e.value.kind == ValueKind::Text("".into()))
                {
                    self.cx.missing(
                        "the guest has no kernel",
                        "add a line such as kernel = \"/boot/vmlinuz\"",
                    );
                }
                None
            }
            Some(path) => Some(path.into()),
        }
    }

    /// `cmdline`, else `root` and `extra`.
    fn cmdline(&mut self) -> String {
        let (root, extra) = (self.text("root"), self.text("extra"));
        if let Some(cmdline) = self.text("cmdline") {
            for key in ["root", "extra"] {
                if let Some(entry) = self.entry(key) {
                    let message = format!("`{key}` is ignored because `cmdline` is given");
                    self.cx.say(Severity::Warning, entry.span, message, None);
                }
            }
            return cmdline.to_string();
        }
        match (root, extra) {
            (Some(root), Some(extra)) => format!("root={root} {extra}"),
            (Some(root), None) => format!("root={root}"),
            (None, extra) => extra.unwrap_or("").to_string(),
        }
    }

    /// The strings of a list.
    fn list(&mut self, key: &str) -> Vec<(&'a str, Span)> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let ValueKind::List(items) = &entry.value.kind else {
            self.wrong(&entry.value, key, "a list such as [ \"…\" ]");
            return Vec::new();
        };
        if items.len() > MAX_DEVICES {
            let message = format!("`{key}` has more than {MAX_DEVICES} elements");
            self.cx.error(entry.value.span, message, None);
            return Vec::new();
        }
        let mut out = Vec::new();
        for item in items {
            match &item.kind {
                ValueKind::Text(text) => out.push((text.as_str(), item.span)),
                _ => self.wrong(item, key, "a list of strings"),
            }
        }
        out
    }

    fn disks(&mut self) -> Vec<DiskConfig> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        for (text, span) in self.list("disk") {
            match DiskConfig::parse(text) {
                Ok(disk) => {
                    if disks.iter().any(|other| other.number == disk.number) {
                        let message = format!("there are two disks `{}`", disk.vdev);
                        self.cx.error(span, message, None);
                    }
                    if let Some((what, help)) = unsupported(&disk) {
                        self.cx.error(span, what, Some(help));
                    }
                    disks.push(disk);
                }
                Err((message, help)) => self.cx.error(span, message, help.as_deref()),
            }
        }
        disks
    }

    fn nics(&mut self) -> Vec<NicConfig> {
        let mut nics = Vec::new();
        for (text, span) in self.list("vif") {
            let mut warnings = Vec::new();
            match NicConfig::parse(text, &mut warnings) {
                Ok(nic) => nics.push(nic),
                Err((message, help)) => self.cx.error(span, message, help.as_deref()),
            }
            for (message, help) in warnings {
                self.cx.say(Severity::Warning, span, message, help);
            }
        }
        nics
    }
}

/// What of a disk's wishes cannot be met yet.
fn unsupported(disk: &DiskConfig) -> Option<(String, &'static str)> {
    if disk.format != DiskFormat::Raw {
        let what = format!("disk format {} is not supported yet", disk.format.name());
        return Some((what, "convert it: qemu-img convert -O raw OLD NEW"));
    }
    if disk.cdrom {
        return Some((
            "CD drives are not supported yet".into(),
            "attach it as a read-only disk",
        ));
    }
    if let Some(kind) = disk.backend_type.as_deref().filter(|kind| *kind != "phy") {
        return Some((
            format!("backendtype={kind} is not supported"),
            "leave backendtype out",
        ));
    }
    if disk.script.is_some() {
        return Some((
            "disk scripts are not supported yet".into(),
            "name a file or block device",
        ));
    }
    if disk.backend.is_some() {
        return Some((
            "driver domains are not supported yet".into(),
            "leave backend= out",
        ));
    }
    None
}

/// A size with an optional unit (K, M, G, T, with B or iB behind it); MiB without one.
pub fn size_kib(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    let unit = unit
        .trim_start()
        .trim_end_matches('B')
        .trim_end_matches('i');
    let factor = match unit {
        "K" | "k" => 1,
        "" | "M" | "m" => 1 << 10,
        "G" | "g" => 1 << 20,
        "T" | "t" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
