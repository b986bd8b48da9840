//! The functions of a program for x86-64, from its symbol table.
//!
//! Invariant: no panic on any input.

use crate::bytes::{u16_at, u32_at, u64_at};

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its name, as the compiler mangled it.
    pub name: &'a str,
    /// Where it is once the program runs, if that is linked without PIE.
    pub address: u64,
    /// Its instructions.
    pub code: &'a [u8],
}

const SECTION: usize = 64;
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SYMBOL: usize = 24;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;

/// The functions of a 64-bit ELF file, in the order of its symbol table; nothing if it is none or has no such table.
pub fn functions(program: &[u8]) -> Option<Vec<Function<'_>>> {
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(program, 40)?;
    let count = u16_at(program, 60)?;
    let sections: Vec<&[u8]> = (0..u64::from(count))
        .map(|n| {
            part(
                program,
                table.checked_add(n * SECTION as u64)?,
                SECTION as u64,
            )
        })
        .collect::<Option<_>>()?;
    let symtab = sections
        .iter()
        .find(|section| u32_at(section, 4) == Some(SHT_SYMTAB))?;
    let symbols = content(program, symtab)?;
    let names = content(program, sections.get(u32_at(symtab, 40)? as usize)?)?;
    let mut out = Vec::new();
    for symbol in symbols.chunks_exact(SYMBOL) {
        let section = sections.get(u16_at(symbol, 6)? as usize);
        let is_function = matches!(symbol[4] & 15, STT_FUNC | STT_GNU_IFUNC);
        // Absolute ones and undefined ones have no section.
        let (true, Some(section)) = (is_function, section) else {
            continue;
        };
        let (address, size) = (u64_at(symbol, 8)?, u64_at(symbol, 16)?);
        let Some(at) = address.checked_sub(u64_at(section, 16)?) else {
            continue;
        };
        if u32_at(section, 4)? == SHT_NOBITS {
            continue;
        }
        let name = names.get(u32_at(symbol, 0)? as usize..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        out.push(Function {
            name: std::str::from_utf8(name).ok()?,
            address,
            code: part(content(program, section)?, at, size)?,
        });
    }
    Some(out)
}

fn content<'a>(program: &'a [u8], section: &[u8]) -> Option<&'a [u8]> {
    if u32_at(section, 4)? == SHT_NOBITS || u32_at(section, 4)? == 0 {
        return Some(&[]);
    }
    part(program, u64_at(section, 24)?, u64_at(section, 32)?)
}

fn part(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(len)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_very_test_is_among_its_functions() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let all = functions(&own).unwrap();
        let this = all
            .iter()
            .find(|f| f.name.contains("this_very_test_is_among_its_functions"));
        assert!(!this.unwrap().code.is_empty());
    }

    #[test]
    fn a_script_has_none() {
        assert_eq!(functions(b"#!/bin/sh\n"), None);
    }

    proptest! {
        #[test]
        fn damaged_files_are_survived(at in 0usize..64, value in any::<[u8; 8]>(), cut in 64usize..8192) {
            let mut own = std::fs::read("/bin/true").unwrap();
            own[at..at + 8].copy_from_slice(&value);
            let _ = functions(&own);
            own.truncate(cut);
            let _ = functions(&own);
        }
    }
}
