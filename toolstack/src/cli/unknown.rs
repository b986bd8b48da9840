//! What can be said of a Xen whose control interface is not known: what its kernel and the store tell. Nothing here
//! makes a hypercall.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use xen_hal::StoreExt;
use xen_sys::DomId;
use xlrs::store::{children, name_of};
use xlrs::{Error, Result};

use super::common::{print, print_json, shown};
use crate::cli::ExitCode;

/// `info` of such a host: less of it, in the same order and under the same names.
pub fn info_rows(root: &Path) -> Vec<(&'static str, String)> {
    const FILES: [(&str, &str); 11] = [
        ("xen_major", "version/major"),
        ("xen_minor", "version/minor"),
        ("xen_extra", "version/extra"),
        ("xen_caps", "properties/capabilities"),
        ("xen_pagesize", "properties/pagesize"),
        ("platform_params", "properties/virtual_start"),
        ("xen_changeset", "properties/changeset"),
        ("cc_compiler", "compilation/compiler"),
        ("cc_compile_by", "compilation/compiled_by"),
        ("cc_compile_date", "compilation/compile_date"),
        ("build_id", "properties/buildid"),
    ];
    let mut rows = super::manage::system_rows();
    for (key, file) in FILES {
        let text = std::fs::read_to_string(root.join("sys/hypervisor").join(file));
        if let Ok(text) = text {
            rows.push((key, text.trim_end_matches('\n').to_string()));
        }
    }
    rows
}

/// `list` of such a host: names and numbers from the store; what only Xen knows is a dash.
pub fn list(words: &[String], as_json: bool) -> Result<ExitCode> {
    let store = super::store()?;
    let failed = || Error::store("list the guests in the store", "");
    let wanted: Vec<DomId> = words
        .iter()
        .map(|word| xlrs::store::find_domain(&store, word))
        .collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for child in children(&store, None, "/local/domain").map_err(failed())? {
        let Ok(dom) = child.parse().map(DomId) else {
            continue;
        };
        if !wanted.is_empty() && !wanted.contains(&dom) {
            continue;
        }
        let name = name_of(&store, dom).map_err(failed())?;
        let target = store.read_parsed::<u64>(None, &format!("/local/domain/{dom}/memory/target"));
        rows.push((dom, name, target.ok()));
    }
    rows.sort_by_key(|(dom, ..)| dom.0);
    if as_json {
        let rows = rows
            .iter()
            .map(|(dom, name, target)| json!({"domid": dom.0, "name": name, "memory_kib": target}));
        return print_json(&Value::Array(rows.collect()));
    }
    let mut text = format!("{}\n", super::list::HEADER);
    for (dom, name, target) in rows {
        let mib = target.map_or("-".into(), |kib| (kib / 1024).to_string());
        let name = shown(name.as_deref());
        let _ = writeln!(
            text,
            "{name:<40} {:>5} {mib:>5}     -     ------        -",
            dom.0
        );
    }
    print(&text)
}

/// Tells why there is less than usual.
pub fn explain(error: &xen_hal::Error) {
    eprintln!(
        "xlrs: {error}: only what needs no control interface is shown, and nothing can be changed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_xen_it_is() {
        let root = std::env::temp_dir().join(format!("xlrs-unknown-{}", std::process::id()));
        for (file, text) in [
            ("version/major", "4\n"),
            ("version/minor", "99\n"),
            ("version/extra", ".1-rc\n"),
            ("properties/capabilities", "xen-3.0-x86_64 \n"),
        ] {
            let path = root.join("sys/hypervisor").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let rows = info_rows(&root);
        let value = |key: &str| {
            let row = rows.iter().find(|(name, _)| *name == key);
            row.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("xen_major"), Some("4"));
        assert_eq!(value("xen_minor"), Some("99"));
        assert_eq!(value("xen_extra"), Some(".1-rc"));
        assert_eq!(value("xen_caps"), Some("xen-3.0-x86_64 "));
        assert_eq!(value("machine"), Some("x86_64"));
        // What nobody tells is not there, and nothing is made up.
        assert_eq!(value("free_memory"), None);
        assert_eq!(value("build_id"), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
