//! Writes a guest's memory and registers to a file, in the ELF format of Xen's core dumps, which `crash`
//! and gdb's helpers read (docs/misc/dump-core-format.txt in Xen's source).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use xen_hal::{DomainInfo, HostInfo, Inspect};
use xen_sys::types::PAGE_SIZE;
use xen_sys::{Mfn, Pfn, VcpuId};

use crate::error::{Error, Result};
use crate::interrupt;

/// Pages copied at a time.
const BATCH: usize = 512;
/// `XC_CORE_MAGIC`: a PV guest's dump.
const MAGIC: u64 = 0xf00f_ebed;
/// `XEN_DUMPCORE_FORMAT_VERSION_CURRENT`.
const FORMAT: u64 = 1;
/// `XEN_ELFNOTE_DUMPCORE_*`.
const NOTE_NONE: u32 = 0x200_0000;
const NOTE_HEADER: u32 = 0x200_0001;
const NOTE_XEN_VERSION: u32 = 0x200_0002;
const NOTE_FORMAT_VERSION: u32 = 0x200_0003;
/// Of ELF: `SHT_PROGBITS`, `SHT_STRTAB`, `SHT_NOTE`.
const PROGBITS: u32 = 1;
const STRTAB: u32 = 3;
const NOTE: u32 = 7;
const ELF_HEADER: usize = 64;
const SECTION_HEADER: usize = 64;

/// Dumps a guest; unless `live`, it is paused meanwhile.
///
/// # Errors
/// Xen or the file system refuse. No file is left behind then.
pub fn dump<C: Inspect>(control: &C, info: &DomainInfo, path: &Path, live: bool) -> Result<()> {
    let dom = info.dom;
    let failed = |e: io::Error| Error::system("write", path.display(), &e);
    // Beside it first, so that what has this name is whole.
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = Path::new(&part);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(part)
        .map_err(failed)?;
    let stop = !live && !info.flags.shutdown;
    let paused = match stop {
        true => control.pause(dom).map_err(Error::hal("pause domain", dom)),
        false => Ok(()),
    };
    let written = paused.and_then(|()| {
        let written = write(control, info, path, file);
        if stop {
            let resumed = control.unpause(dom);
            resumed.map_err(Error::hal("unpause domain", dom))?;
        }
        written?;
        fs::rename(part, path).map_err(failed)
    });
    if written.is_err() {
        // What it says is about the first thing that failed.
        let _ = fs::remove_file(part);
    }
    written
}

/// A section: its name, its kind, the size of an entry, its length.
struct Section {
    name: &'static str,
    kind: u32,
    entry: u64,
    len: u64,
}

fn write<C: Inspect>(control: &C, info: &DomainInfo, path: &Path, file: File) -> Result<()> {
    let dom = info.dom;
    let hal = |step| Error::hal(step, dom);
    let failed = |e: io::Error| Error::system("write", path.display(), &e);
    let host = control.host().map_err(hal("ask Xen about the host, for"))?;
    let mut frames = control
        .guest_frames(dom)
        .map_err(hal("find the memory of domain"))?;
    frames.sort_by_key(|(pfn, mfn)| (pfn.0, mfn.0));
    let mut registers = Vec::new();
    let mut vcpus = 0;
    for vcpu in (0..=info.max_vcpu_id).map(VcpuId) {
        match control.vcpu_context(dom, vcpu) {
            Ok(context) => registers.push(context),
            // One that was never started has none.
            Err(_) if vcpu.0 > 0 => continue,
            Err(error) => return Err(hal("read the registers of domain")(error)),
        }
        vcpus += 1;
    }
    let mut shared_info = Vec::new();
    control
        .copy_frames(dom, &[info.shared_info_frame], &mut shared_info)
        .map_err(hal("read the shared info of domain"))?;
    let notes = notes(&host, vcpus, frames.len() as u64);

    let each = registers.first().map_or(0, Vec::len);
    let section = |name, kind, entry: usize, len: usize| Section {
        name,
        kind,
        entry: entry as u64,
        len: len as u64,
    };
    let names = [
        "",
        ".shstrtab",
        ".note.Xen",
        ".xen_prstatus",
        ".xen_shared_info",
        ".xen_p2m",
        ".xen_pages",
    ];
    let strings = names.join("\0") + "\0";
    let sections = [
        section(names[1], STRTAB, 0, strings.len()),
        section(names[2], NOTE, 0, notes.len()),
        section(names[3], PROGBITS, each, each * registers.len()),
        section(names[4], PROGBITS, PAGE_SIZE, shared_info.len()),
        section(names[5], PROGBITS, 16, 16 * frames.len()),
        section(names[6], PROGBITS, PAGE_SIZE, PAGE_SIZE * frames.len()),
    ];
    let mut out = Out {
        file: BufWriter::with_capacity(1 << 16, file),
        at: 0,
    };
    let begin = || -> io::Result<()> {
        let starts = place(&sections);
        out.put(&elf_header(sections.len() as u16 + 1))?;
        out.put(&[0; SECTION_HEADER])?;
        for (section, start) in sections.iter().zip(&starts) {
            let name = strings.find(section.name).unwrap_or(0) as u32;
            out.put(&section_header(section, name, *start))?;
        }
        out.put(strings.as_bytes())?;
        for (index, bytes) in [(1, &notes), (2, &registers.concat()), (3, &shared_info)] {
            out.pad(starts[index])?;
            out.put(bytes)?;
        }
        out.pad(starts[4])?;
        for (pfn, mfn) in &frames {
            out.put(&pair(*pfn, *mfn))?;
        }
        out.pad(starts[5])
    };
    let mut begin = begin;
    begin().map_err(failed)?;
    let mut pages = Vec::with_capacity(BATCH * PAGE_SIZE);
    for batch in frames.chunks(BATCH) {
        interrupt::check()?;
        let numbers: Vec<Mfn> = batch.iter().map(|(_, mfn)| *mfn).collect();
        pages.clear();
        control
            .copy_frames(dom, &numbers, &mut pages)
            .map_err(hal("read the memory of domain"))?;
        out.put(&pages).map_err(failed)?;
    }
    let file = out
        .file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

/// What is written, and how far.
struct Out {
    file: BufWriter<File>,
    at: u64,
}

impl Out {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = to.saturating_sub(self.at) as usize;
        self.put(&vec![0; missing])
    }
}

/// Where each section starts: names at once, the rest on 8 bytes, pages on a page.
fn place(sections: &[Section]) -> Vec<u64> {
    let mut at = (ELF_HEADER + SECTION_HEADER * (sections.len() + 1)) as u64;
    let mut starts = Vec::new();
    for section in sections {
        let align = if section.name == ".xen_pages" {
            PAGE_SIZE as u64
        } else {
            8
        };
        at = at.next_multiple_of(align);
        starts.push(at);
        at += section.len;
    }
    starts
}

fn pair(pfn: Pfn, mfn: Mfn) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&pfn.0.to_le_bytes());
    out[8..].copy_from_slice(&mfn.0.to_le_bytes());
    out
}

/// An ELF64 core file of x86-64 without program headers; the section headers follow at once.
fn elf_header(sections: u16) -> Vec<u8> {
    const CORE: u16 = 4;
    const X86_64: u16 = 62;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    for half in [CORE, X86_64] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [0, 0, ELF_HEADER as u64] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for half in [ELF_HEADER as u16, 0, 0, SECTION_HEADER as u16, sections, 1] {
        out.extend(half.to_le_bytes());
    }
    out
}

fn section_header(section: &Section, name: u32, start: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(name.to_le_bytes());
    out.extend(section.kind.to_le_bytes());
    // Flags, address, offset, size.
    for word in [0, 0, start, section.len] {
        out.extend(word.to_le_bytes());
    }
    // Link, info.
    out.extend([0; 8]);
    for word in [8, section.entry] {
        out.extend(word.to_le_bytes());
    }
    out
}

fn notes(host: &HostInfo, vcpus: u64, pages: u64) -> Vec<u8> {
    let words =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let text = |text: &str, len: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.truncate(len - 1);
        bytes.resize(len, 0);
        bytes
    };
    let mut version = words(&[host.version.major.into(), host.version.minor.into()]);
    version.extend(text(&host.extra_version, 16));
    for (part, len) in host.compiled.iter().zip([64, 16, 32, 32]) {
        version.extend(text(part, len));
    }
    version.extend(text(&host.capabilities, 1024));
    version.extend(text(&host.changeset, 64));
    let start = host.platform_parameters.rsplit("0x").next();
    let start = start.and_then(|hex| u64::from_str_radix(hex, 16).ok());
    version.extend(words(&[start.unwrap_or(0), PAGE_SIZE as u64]));
    let mut out = Vec::new();
    for (kind, content) in [
        (NOTE_NONE, Vec::new()),
        (NOTE_HEADER, words(&[MAGIC, vcpus, pages, PAGE_SIZE as u64])),
        (NOTE_XEN_VERSION, version),
        (NOTE_FORMAT_VERSION, words(&[FORMAT])),
    ] {
        for word in [4, content.len() as u32, kind] {
            out.extend(word.to_le_bytes());
        }
        out.extend(b"Xen\0");
        out.extend(&content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_do_not_overlap_and_pages_are_aligned() {
        let section = |name, len| Section {
            name,
            kind: PROGBITS,
            entry: 0,
            len,
        };
        let sections = [
            section(".shstrtab", 61),
            section(".note.Xen", 1000),
            section(".xen_pages", 8192),
        ];
        let starts = place(&sections);
        assert_eq!(starts[0], 64 + 64 * 4);
        for (index, start) in starts.iter().enumerate().skip(1) {
            assert!(*start >= starts[index - 1] + sections[index - 1].len);
            assert_eq!(start % 8, 0);
        }
        assert_eq!(starts[2] % 4096, 0);
        assert_eq!(elf_header(7).len(), ELF_HEADER);
        assert_eq!(section_header(&sections[0], 1, 2).len(), SECTION_HEADER);
    }
}
