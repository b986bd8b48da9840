//! What can be said of a Xen whose control interface is not known: what its kernel and the store tell. Nothing here
//! makes a hypercall.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use xen_hal::StoreExt;
use xlrs::userdata::{self, Userdata};
use xlrs::{Error, Result, uuid};

use super::common::{print, print_json, shown};
use super::list::ListArgs;
use super::look::{Look, Seen};
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
pub fn list(look: &Look, args: &ListArgs) -> Result<ExitCode> {
    let guests = look.guests(&args.domains)?;
    if args.long {
        let all: Result<Vec<Value>> = guests.iter().map(as_written).collect();
        return print(&format!("{}\n", userdata::libxl_text(&all?.into())));
    }
    let target = |seen: &Seen| {
        let path = format!("/local/domain/{}/memory/target", seen.dom);
        look.store().read_parsed::<u64>(None, &path).ok()
    };
    if args.json {
        let rows = guests.iter().map(|seen| {
            json!({
                "domid": seen.dom.0, "name": seen.name, "uuid": uuid::format(&seen.uuid),
                "memory_kib": target(seen),
            })
        });
        return print_json(&Value::Array(rows.collect()));
    }
    let mut text = format!("{}\n", super::list::HEADER);
    for seen in &guests {
        let mib = target(seen).map_or("-".into(), |kib| (kib / 1024).to_string());
        let name = shown(seen.name.as_deref());
        let _ = writeln!(
            text,
            "{name:<40} {:>5} {mib:>5}     -     ------        -",
            seen.dom.0
        );
    }
    print(&text)
}

/// A guest's configuration as it was written down when it was created, under the name that it has now.
fn as_written(seen: &Seen) -> Result<Value> {
    let mut config = Value::Null;
    if let Some(text) = userdata::read(seen.dom, &seen.uuid, Userdata::Libxl) {
        let path = userdata::path(seen.dom, &seen.uuid, Userdata::Libxl);
        config = serde_json::from_str(&text).map_err(|e| Error::new("read", path.display(), e))?;
        let c_info = config.get_mut("c_info").and_then(Value::as_object_mut);
        if let (Some(name), Some(c_info)) = (&seen.name, c_info) {
            c_info.insert("name".into(), name.clone().into());
        }
    }
    Ok(json!({"domid": seen.dom.0, "config": config}))
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
