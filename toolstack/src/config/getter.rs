//! Takes values out of a configuration's entries, complaining about wrong ones.

use std::path::{Path, PathBuf};

use super::cpus::CpuSet;
use super::diag::{Severity, Span};
use super::disk::{DiskConfig, DiskFormat};
use super::domain::{Action, Context};
use super::lex;
use super::parse::{Entry, Value, ValueKind};
use super::vif::NicConfig;

/// Least memory that is believed: below it the value is surely a mistake of units.
const MIN_MEMORY_KIB: u64 = 256;
/// Most memory of a guest here, 1 TiB.
const MAX_MEMORY_KIB: u64 = 1 << 30;
/// Most disks, and most cards.
const MAX_DEVICES: usize = 64;

/// Takes values out of the entries, complaining about wrong ones.
pub(super) struct Getter<'a, 'b, 'c> {
    pub(super) entries: &'a [Entry],
    pub(super) cx: &'b mut Context<'c>,
}

impl<'a> Getter<'a, '_, '_> {
    pub(super) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    pub(super) fn is_list(&self, key: &str) -> bool {
        self.entry(key)
            .is_some_and(|entry| matches!(entry.value.kind, ValueKind::List(_)))
    }

    fn wrong(&mut self, value: &Value, key: &str, wanted: &str) {
        let message = format!("`{key}` must be {wanted}, not {}", value.kind.describe());
        self.cx.error(value.span, message, None);
    }

    pub(super) fn text(&mut self, key: &str) -> Option<&'a str> {
        let value = &self.entry(key)?.value;
        match &value.kind {
            // xl's values have no types: a number is the text that stands there.
            ValueKind::Text(text) | ValueKind::Number(_, text) => Some(text),
            ValueKind::List(_) => {
                self.wrong(value, key, "a string");
                None
            }
        }
    }

    /// A number, quoted or not.
    pub(super) fn number(&mut self, key: &str, min: i64, max: i64) -> Option<i64> {
        let value = &self.entry(key)?.value;
        let number = match &value.kind {
            ValueKind::Number(number, _) => *number,
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
    pub(super) fn memory(&mut self, key: &str) -> Option<u64> {
        let value = &self.entry(key)?.value;
        let kib = match &value.kind {
            ValueKind::Number(mib, _) => u64::try_from(*mib).ok().and_then(|m| m.checked_mul(1024)),
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

    pub(super) fn action(&mut self, key: &str, default: Action) -> Action {
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

    pub(super) fn guest_type(&mut self) {
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

    pub(super) fn name(&mut self) -> Option<String> {
        let Some(entry) = self.entry("name") else {
            let help = "add a line such as name = \"web\"";
            self.cx.missing("the guest has no name", help);
            return None;
        };
        let name = self.text("name")?;
        let Some(why) = name_fault(name) else {
            return Some(name.to_string());
        };
        let message = format!("the guest's name {name:?} {why}");
        let help = "choose another, such as name = \"web\"";
        self.cx.error(entry.value.span, message, Some(help));
        None
    }

    pub(super) fn uuid(&mut self) -> Option<[u8; 16]> {
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

    pub(super) fn kernel(&mut self) -> Option<PathBuf> {
        match self.text("firmware") {
            None | Some("") => {}
            Some("pvgrub64") => {
                if let Some(entry) = self.entry("kernel") {
                    let message = "`kernel` is ignored because `firmware` is given".to_string();
                    self.cx.say(Severity::Warning, entry.span, message, None);
                }
                return Some(pvgrub64());
            }
            Some(other) => {
                let message = format!("{other:?} is no firmware for a 64-bit PV guest");
                if let Some(entry) = self.entry("firmware") {
                    let help = "pvgrub64, or name the kernel with kernel=";
                    self.cx.error(entry.value.span, message, Some(help));
                }
                return None;
            }
        }
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
    pub(super) fn cmdline(&mut self) -> String {
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

    /// CPUs for each vCPU: one string for all of them, or a list with an element for each.
    pub(super) fn cpus(&mut self, key: &str, vcpus: u32) -> Vec<CpuSet> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let mut read = |value: &Value| {
            let parsed = match &value.kind {
                ValueKind::Text(text) => CpuSet::parse(text.trim()),
                ValueKind::Number(number, _) => match u32::try_from(*number) {
                    Ok(number) => Ok(CpuSet::one(number)),
                    Err(_) => Err("it is no CPU's number".into()),
                },
                ValueKind::List(_) => Err("a list in a list".into()),
            };
            match parsed {
                Ok(set) => Some(set),
                Err(why) => {
                    let help =
                        "such as \"0-3,^1\", \"all\", \"node:1\", or a list of such for each vCPU";
                    self.cx
                        .error(value.span, format!("`{key}`: {why}"), Some(help));
                    None
                }
            }
        };
        match &entry.value.kind {
            // What is said of vCPUs that there are not is passed over, as xl does.
            ValueKind::List(items) => items
                .iter()
                .take(vcpus as usize)
                .filter_map(&mut read)
                .collect(),
            _ => match read(&entry.value) {
                Some(set) => vec![set; vcpus as usize],
                None => Vec::new(),
            },
        }
    }

    /// How the time-stamp counter behaves, as a word or a number.
    pub(super) fn tsc_mode(&mut self) -> u32 {
        let Some(entry) = self.entry("tsc_mode") else {
            return 0;
        };
        if let ValueKind::Text(word) = &entry.value.kind {
            // The fourth, native_paravirt, is native on every Xen that is supported here.
            let words = ["default", "always_emulate", "native", "native_paravirt"];
            if let Some(mode) = words.iter().position(|known| known == word) {
                return mode.min(2) as u32;
            }
            if lex::number(word.trim()).is_none() {
                let message = format!("`tsc_mode` = {word:?} is no mode");
                let help = "one of default, always_emulate, native";
                self.cx.error(entry.value.span, message, Some(help));
                return 0;
            }
        }
        self.number("tsc_mode", 0, 3)
            .map_or(0, |mode| mode.min(2) as u32)
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
                ValueKind::Text(text) | ValueKind::Number(_, text) => {
                    out.push((text.as_str(), item.span));
                }
                ValueKind::List(_) => self.wrong(item, key, "a list of strings"),
            }
        }
        out
    }

    pub(super) fn disks(&mut self) -> Vec<DiskConfig> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        for (text, span) in self.list("disk") {
            match DiskConfig::parse(text) {
                Ok(disk) => {
                    if disks.iter().any(|other| other.number == disk.number) {
                        let message = format!("there are two disks `{}`", disk.vdev);
                        let help = "each disk needs a name of its own: xvda, xvdb, …";
                        self.cx.error(span, message, Some(help));
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

    pub(super) fn nics(&mut self) -> Vec<NicConfig> {
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
pub fn unsupported(disk: &DiskConfig) -> Option<(String, &'static str)> {
    match disk.format {
        DiskFormat::Raw | DiskFormat::Qcow2 | DiskFormat::Vhd => {}
        DiskFormat::Vmdk if !disk.writable => {}
        DiskFormat::Vmdk => {
            return Some((
                "vmdk images can only be read".into(),
                "use access r, or convert it: qemu-img convert -O qcow2 OLD NEW",
            ));
        }
        DiskFormat::Empty => {
            return Some((
                "disks without a medium are not supported yet".into(),
                "name an image",
            ));
        }
        DiskFormat::Qcow | DiskFormat::Qed => {
            let what = format!("disk format {} is not supported", disk.format.name());
            return Some((what, "convert it: qemu-img convert -O qcow2 OLD NEW"));
        }
    }
    if let Some(kind) = disk.backend_type.as_deref().filter(|kind| *kind != "phy") {
        return Some((
            format!("backendtype={kind} is not supported"),
            "leave backendtype out",
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

/// A size on the command line, as `mem-set` takes it: as in a configuration, or with `b` for bytes.
pub fn memory_kib(text: &str) -> Option<u64> {
    match text.strip_suffix('b').map(str::parse::<u64>) {
        Some(Ok(bytes)) => Some(bytes / 1024),
        _ => size_kib(text),
    }
}

/// What is wrong with a guest's name, if anything is.
pub fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > 200 {
        Some("is longer than 200 bytes")
    } else if name.contains('/') || name.chars().any(char::is_control) {
        Some("holds `/` or a control character")
    } else if name.bytes().all(|b| b.is_ascii_digit()) {
        Some("has digits only, so that it would be taken for a number")
    } else if name == "." || name == ".." || name == "Domain-0" {
        Some("is reserved")
    } else {
        None
    }
}

/// Where packages put the boot loader that runs as a PV guest: Debian's grub-xen-bin, Xen's own build.
const PVGRUB64: [&str; 3] = [
    "/usr/lib/grub-xen/grub-x86_64-xen.bin",
    "/usr/lib/xen/boot/pvgrub64.bin",
    "/usr/lib/xen/boot/pvgrub64",
];

fn pvgrub64() -> PathBuf {
    let found = PVGRUB64.iter().find(|path| Path::new(path).exists());
    found.unwrap_or(&PVGRUB64[0]).into()
}
