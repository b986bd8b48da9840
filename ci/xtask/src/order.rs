//! Puts beside each other the functions of a program that one command of it runs. A page fault brings 64 KiB of
//! a program in, and on Xen each costs more than hundred system calls' worth of mapping; in a large program every
//! function called is most likely in another 64 KiB.
//!
//! The list of functions is a recording in the repository (`cargo xtask record-order`). Names end in a hash that depends
//! on the compiler and the sources: where a name as recorded is not in the program, the functions of that name with
//! another hash stand for it; if these are many, as instances of one generic function are, those of them that other
//! functions of the list refer to.

use std::collections::{HashMap, HashSet};

use lab_agent::symbols::{self, Function};

/// Most functions that a recorded name without its hash may stand for if nothing on the list refers to any of them.
const MAX_INSTANCES: usize = 4;

/// The lines of a linker's symbol ordering file: what of `recorded` is in a program, under its name there.
pub fn order(recorded: &str, program: &[u8]) -> Option<String> {
    let mut functions = symbols::functions(program)?;
    // The same however they lie now.
    functions.sort_by_key(|function| function.name);
    let mut exact: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, function) in functions.iter().enumerate() {
        exact.entry(function.name).or_default().push(index);
        let name = without_hashes(function.name);
        alike.entry(name).or_default().push(index);
    }
    let found = recorded.lines().map(|name| {
        let found = exact.get(name).or_else(|| alike.get(&without_hashes(name)));
        found.map_or(&[][..], Vec::as_slice)
    });
    let found: Vec<&[usize]> = found.collect();
    let chosen = choose(&functions, &found);
    let mut out = String::new();
    let mut seen = HashSet::new();
    for index in found.into_iter().flatten() {
        let name = functions[*index].name;
        if chosen.contains(index) && seen.insert(name) {
            out += name;
            out.push('\n');
        }
    }
    Some(out)
}

/// Which functions are meant, of those that may be for each recorded name.
fn choose(functions: &[Function<'_>], found: &[&[usize]]) -> HashSet<usize> {
    let mut open: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut chosen = HashSet::new();
    let mut to_look_at = Vec::new();
    for candidates in found {
        if let [only] = candidates {
            to_look_at.push(*only);
        } else {
            for &index in *candidates {
                let address = functions[index].address as u32;
                open.entry(address).or_default().push(index);
            }
        }
    }
    loop {
        while let Some(index) = to_look_at.pop() {
            if chosen.insert(index) {
                for address in references(&functions[index]) {
                    to_look_at.extend(open.remove(&address).into_iter().flatten());
                }
            }
        }
        // What only tables refer to, if it is few.
        let unmet = found.iter().find(|candidates| {
            (1..=MAX_INSTANCES).contains(&candidates.len())
                && !candidates.iter().any(|index| chosen.contains(index))
        });
        match unmet {
            Some(candidates) => to_look_at.extend_from_slice(candidates),
            None => return chosen,
        }
    }
}

/// What a function refers to: the targets of its calls and jumps, and the addresses that it loads. It is not
/// disassembled: what only looks like such an instruction most likely leads to no function.
fn references<'a>(function: &'a Function<'_>) -> impl Iterator<Item = u32> + 'a {
    let code = function.code;
    (1..code.len().saturating_sub(3)).filter_map(move |at| {
        let word = u32::from_le_bytes(code[at..at + 4].try_into().ok()?);
        let relative = (function.address as u32)
            .wrapping_add(at as u32 + 4)
            .wrapping_add(word);
        match (code[at - 1], at.checked_sub(2).map(|before| code[before])) {
            // call, jmp
            (0xe8 | 0xe9, _) => Some(relative),
            // lea with a displacement from the next instruction
            (modrm, Some(0x8d)) if modrm & 0xc7 == 0x05 => Some(relative),
            // jcc
            (0x80..=0x8f, Some(0x0f)) => Some(relative),
            // mov of a constant to a register, push
            (0xb8..=0xbf | 0x68, _) => Some(word),
            // mov of a constant to memory: what is between is a displacement of 0, 1 or 4 bytes
            _ if (2..=7).any(|back| at >= back && code[at - back] == 0xc7) => Some(word),
            _ => None,
        }
    })
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
        let here = symbols::functions(&own).unwrap();
        let recorded = format!("no_such_function\n{}\n", here[0].name);
        assert_eq!(
            order(&recorded, &own).unwrap(),
            format!("{}\n", here[0].name)
        );
    }

    #[test]
    fn of_many_instances_those_are_meant_that_are_called() {
        let function = |name, address, code| Function {
            name,
            address,
            code,
        };
        // Calls what is at 0x2000, and names 0x2020.
        let caller = &[0xe8, 0xfb, 0x0f, 0, 0, 0xb8, 0x20, 0x20, 0, 0];
        let mut functions = vec![function("caller", 0x1000, &caller[..])];
        for n in 0..8 {
            functions.push(function("generic", 0x2000 + n * 16, &[0xc3][..]));
        }
        functions.push(function("in_tables", 0x3000, &[0xc3][..]));
        functions.push(function("in_tables", 0x3010, &[0xc3][..]));
        let generic: Vec<usize> = (1..9).collect();
        let chosen = choose(&functions, &[&[0], &generic, &[9, 10]]);
        let mut chosen: Vec<usize> = chosen.into_iter().collect();
        chosen.sort();
        assert_eq!(chosen, [0, 1, 3, 9, 10]);
    }
}
