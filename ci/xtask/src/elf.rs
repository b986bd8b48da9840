//! Reads the little that is needed from ELF files: libraries, the loader, a kernel module's `.modinfo`.
//!
//! Invariant: no panic on any input.

use lab_agent::bytes::{u16_at, u32_at, u64_at};

/// What a dynamically linked program asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The program loader (PT_INTERP).
    pub interpreter: Option<String>,
    /// Library names (DT_NEEDED).
    pub libraries: Vec<String>,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Whether the bytes begin an ELF file for x86-64.
pub fn is_elf64(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && u16_at(bytes, 18) == Some(62)
}

/// The needs of a 64-bit ELF file; nothing if it is none.
pub fn needs(bytes: &[u8]) -> Option<Needs> {
    if !is_elf64(bytes) {
        return None;
    }
    let table = u64_at(bytes, 32)? as usize;
    let size = u16_at(bytes, 54)? as usize;
    let count = u16_at(bytes, 56)? as usize;
    let mut out = Needs::default();
    let mut loads = Vec::new();
    let mut dynamic = None;
    for n in 0..count {
        let at = table.checked_add(n * size)?;
        let (offset, addr) = (u64_at(bytes, at + 8)?, u64_at(bytes, at + 16)?);
        let len = u64_at(bytes, at + 32)?;
        match u32_at(bytes, at)? {
            PT_LOAD => loads.push((addr, offset, len)),
            PT_DYNAMIC => dynamic = Some((offset as usize, len as usize)),
            PT_INTERP => out.interpreter = Some(text_at(bytes, offset as usize)?),
            _ => {}
        }
    }
    let Some((offset, len)) = dynamic else {
        return Some(out);
    };
    let entries: Vec<(u64, u64)> = bytes
        .get(offset..offset.checked_add(len)?)?
        .chunks_exact(16)
        .filter_map(|e| Some((u64_at(e, 0)?, u64_at(e, 8)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    let (addr, file, _) = loads
        .iter()
        .find(|(addr, _, len)| strings >= *addr && strings - addr < *len)?;
    let strings = (strings - addr + file) as usize;
    for (_, at) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        out.libraries
            .push(text_at(bytes, strings.checked_add(*at as usize)?)?);
    }
    Some(out)
}

/// The `key=value` strings of a kernel module.
pub fn modinfo(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    if !is_elf64(bytes) {
        return None;
    }
    let table = u64_at(bytes, 40)? as usize;
    let size = u16_at(bytes, 58)? as usize;
    let count = u16_at(bytes, 60)? as usize;
    let names = u16_at(bytes, 62)? as usize;
    let section = |n: usize| {
        let at = table.checked_add(n * size)?;
        Some((
            u32_at(bytes, at)? as usize,
            u64_at(bytes, at + 24)? as usize,
            u64_at(bytes, at + 32)? as usize,
        ))
    };
    let (_, names, _) = section(names)?;
    for n in 0..count {
        let (name, offset, len) = section(n)?;
        if text_at(bytes, names.checked_add(name)?)? == ".modinfo" {
            let part = bytes.get(offset..offset.checked_add(len)?)?;
            return Some(
                part.split(|b| *b == 0)
                    .filter_map(|s| {
                        let (k, v) = std::str::from_utf8(s).ok()?.split_once('=')?;
                        Some((k.to_string(), v.to_string()))
                    })
                    .collect(),
            );
        }
    }
    None
}

fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_very_test_program_needs_libc() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let needs = needs(&own).unwrap();
        assert!(
            needs.libraries.iter().any(|l| l == "libc.so.6"),
            "{needs:?}"
        );
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn a_script_is_no_elf() {
        assert_eq!(needs(b"#!/bin/sh\n"), None);
    }

    proptest! {
        #[test]
        fn damaged_files_are_survived(at in 0usize..4096, value in any::<[u8; 8]>(), cut in 64usize..8192) {
            let mut own = std::fs::read("/bin/true").unwrap();
            let at = at.min(own.len() - 8);
            own[at..at + 8].copy_from_slice(&value);
            own.truncate(cut);
            let _ = needs(&own);
            let _ = modinfo(&own);
        }
    }
}
