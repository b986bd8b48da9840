//! The second witness: a C compiler's opinion of the public headers.
//!
//! The headers are taken from `XLRS_XEN_HEADERS` (a directory that contains `xen/`) or /usr/include.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_sys::{Constant, Field, Layout};

/// C expressions and the values that we think they have.
pub type Rows = Vec<(String, i128)>;

/// Adds what `layout` claims: size, alignment, and offset and size of each field.
pub fn layout_rows(layout: &Layout, rows: &mut Rows) {
    let c = layout.c;
    rows.push((format!("sizeof({c})"), layout.size as i128));
    rows.push((format!("_Alignof({c})"), layout.align as i128));
    for field in layout.fields {
        let Field { c: name, .. } = field;
        rows.push((format!("offsetof({c}, {name})"), field.offset as i128));
        rows.push((format!("sizeof((({c} *)0)->{name})"), field.size as i128));
    }
}

/// Adds constants.
pub fn constant_rows(constants: &[Constant], rows: &mut Rows) {
    rows.extend(
        constants
            .iter()
            .map(|constant| (constant.c.to_owned(), constant.value)),
    );
}

/// Compares all rows with what a C program prints that includes `headers`. `newer` tells of an
/// expression and C's value whether newer headers may say so.
///
/// Without headers or compiler that is a named skip, which is a failure with CI=true.
pub fn compare(test: &str, headers: &[&str], rows: &Rows, newer: impl Fn(&str, i128) -> bool) {
    let Some(include) = include_dir() else {
        return skip(
            test,
            "no Xen headers: neither XLRS_XEN_HEADERS nor /usr/include/xen (apt install libxen-dev)",
        );
    };
    let Some(theirs) = ask_compiler(test, &include, headers, rows) else {
        return skip(
            test,
            "no C compiler: no cc in the PATH (apt install gcc libc6-dev)",
        );
    };
    let wrong: Vec<String> = rows
        .iter()
        .filter(|(expr, ours)| theirs[expr] != *ours && !newer(expr, theirs[expr]))
        .map(|(expr, ours)| format!("{expr}: ours {ours}, C {}", theirs[expr]))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{} facts compared with {}", rows.len(), include.display());
}

/// Compiles and runs a program that prints each expression; none if there is no compiler.
fn ask_compiler(
    test: &str,
    include: &Path,
    headers: &[&str],
    rows: &Rows,
) -> Option<HashMap<String, i128>> {
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <errno.h>\n\
         #define __XEN_TOOLS__ 1\n#define __XEN_INTERFACE_VERSION__ 0x00041000\n",
    );
    for header in headers {
        writeln!(source, "#include <xen/{header}>").unwrap();
    }
    source.push_str("int main(void) {\n");
    for (index, (expr, _)) in rows.iter().enumerate() {
        writeln!(
            source,
            "__int128 v{index} = (__int128)({expr}); \
             printf(\"%s%llu\\n\", v{index} < 0 ? \"-\" : \"\", \
             (unsigned long long)(v{index} < 0 ? -v{index} : v{index}));"
        )
        .unwrap();
    }
    source.push_str("return 0; }\n");

    let dir = std::env::temp_dir().join(format!("{test}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (c, exe) = (dir.join("facts.c"), dir.join("facts"));
    std::fs::write(&c, source).unwrap();
    let mut cc = Command::new("cc");
    cc.arg("-w")
        .arg("-I")
        .arg(include)
        .arg("-o")
        .arg(&exe)
        .arg(&c);
    let compiled = match cc.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("cc: {error}"),
    };
    let messages = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "cc: {messages}");
    let run = Command::new(&exe).output().expect("what cc made runs");
    assert!(run.status.success());
    std::fs::remove_dir_all(&dir).unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    let values: Vec<i128> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(values.len(), rows.len());
    let exprs = rows.iter().map(|(expr, _)| expr.clone());
    Some(exprs.zip(values).collect())
}

fn include_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("XLRS_XEN_HEADERS").map(PathBuf::from) {
        let found = dir.join("xen/xen.h").exists();
        assert!(found, "XLRS_XEN_HEADERS={}: no xen/xen.h", dir.display());
        return Some(dir);
    }
    Some(PathBuf::from("/usr/include")).filter(|dir| dir.join("xen/xen.h").exists())
}

/// Says why nothing was compared.
fn skip(test: &str, why: &str) {
    println!("SKIP {test}: {why}");
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!ci, "skipped with CI=true: {why}");
}
