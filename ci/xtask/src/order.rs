//! Puts beside each other the functions of a program that one command of it runs. A page fault brings 64 KiB of
//! a program in, and on Xen each costs more than hundred system calls' worth of mapping; in a large program every
//! function called is most likely in another 64 KiB.
//!
//! The list of functions is a recording in the repository. Names end in a hash that depends on the compiler:
//! where a name as recorded is not in the program, the function of that name with another hash is taken.

use std::collections::{HashMap, HashSet};

use crate::elf;

/// Most functions that a recorded name without its hash may stand for: more are instances of one generic
/// function, of which it cannot be told which are meant.
const MAX_INSTANCES: usize = 4;

/// The lines of a linker's symbol ordering file: what of `recorded` is in a program, under its name there.
pub fn order(recorded: &str, program: &[u8]) -> Option<String> {
    let names = elf::functions(program)?;
    let exact: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut alike: HashMap<String, Vec<&str>> = HashMap::new();
    for name in &names {
        alike.entry(without_hashes(name)).or_default().push(name);
    }
    let mut out = String::new();
    for name in recorded.lines() {
        let others = alike.get(&without_hashes(name));
        let found = match others {
            _ if exact.contains(name) => &[name],
            Some(others) if others.len() <= MAX_INSTANCES => &others[..],
            _ => &[],
        };
        for name in found {
            out += name;
            out.push('\n');
        }
    }
    Some(out)
}

/// A mangled name without what differs from compiler to compiler.
fn without_hashes(name: &str) -> String {
    let name = name.split(".llvm.").next().unwrap_or(name);
    if let Some(rest) = name.strip_prefix("_ZN") {
        // 17h and 16 digits, E.
        let hash = rest.len().checked_sub(20).and_then(|at| rest.get(at..));
        let is_hash = hash.is_some_and(|hash| hash.starts_with("17h"));
        return rest[..rest.len() - if is_hash { 20 } else { 0 }].to_string();
    }
    if !name.starts_with("_R") {
        return name.to_string();
    }
    // Cs, the hash in base 62, _, then the crate's name.
    let mut parts = name.split("Cs");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out += "Cs";
        out += part.split_once('_').map_or(part, |(_, rest)| rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_hashes() {
        for (a, b) in [
            (
                "_ZN4xlrs4main17h0123456789abcdefE",
                "_ZN4xlrs4main17hfedcba9876543210E",
            ),
            (
                "_ZN4xlrs4main17h0123456789abcdefE.llvm.12",
                "_ZN4xlrs4main17hfedcba9876543210E",
            ),
            ("_RNvNtCsaB3_4core3fmt5write", "_RNvNtCs9z_4core3fmt5write"),
            ("malloc", "malloc"),
        ] {
            assert_eq!(without_hashes(a), without_hashes(b));
        }
        assert_ne!(
            without_hashes("_ZN1a1b17h0123456789abcdefE"),
            without_hashes("_ZN1a1c17h0123456789abcdefE")
        );
    }

    #[test]
    fn what_is_not_in_the_program_is_left_out() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let here = elf::functions(&own).unwrap();
        let recorded = format!("no_such_function\n{}\n", here[0]);
        assert_eq!(order(&recorded, &own).unwrap(), format!("{}\n", here[0]));
    }
}
