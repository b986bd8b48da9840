//! Changes how much memory a running guest may have, and shall have.

use xen_hal::{DomainControl, DomainInfo, Store, StoreExt};
use xen_sys::DomId;

use crate::build::MEMORY_SLACK_KIB;
use crate::error::{Error, Kind, Result};
use crate::nodes;
use crate::store::text;
use crate::uuid;

/// Less than this would end dom0 (libxl's own limit).
const MIN_DOM0_KIB: u64 = 128 << 10;

/// A guest's memory in the store.
struct Memory {
    target_kib: u64,
    max_kib: u64,
    video_kib: u64,
}

/// Tells a guest how much memory it shall have; its balloon does the rest.
///
/// # Errors
/// More than it may have, or Xen or the store refuse.
pub fn set_target<C: DomainControl>(
    control: &C,
    store: &impl Store,
    info: &DomainInfo,
    kib: u64,
) -> Result<()> {
    let step = "set the memory of domain";
    let dom = info.dom;
    let memory = read(store, info, step)?;
    let target = kib.saturating_sub(memory.video_kib);
    let refused = |cause: String, hint: &str| {
        let error = Error::new(step, dom, cause).kind(Kind::Invalid);
        Err(error.hint(hint))
    };
    if target > memory.max_kib {
        let max = memory.max_kib / 1024;
        return refused(
            format!(
                "{} MiB are more than the {max} MiB that it may have",
                kib / 1024
            ),
            "`xlrs mem-max` raises the limit for guests whose kernel goes along; maxmem= sets it from the start",
        );
    }
    if dom == DomId::DOM0 && target < MIN_DOM0_KIB {
        return refused(
            format!("{} MiB are too little for dom0", target / 1024),
            "leave it 128 MiB or more",
        );
    }
    // The limit first: a guest that is told to grow must not be refused.
    control
        .set_max_mem(dom, kib + MEMORY_SLACK_KIB)
        .map_err(Error::hal("limit the memory of domain", dom))?;
    let home = nodes::home(dom);
    let vm = format!("/vm/{}/memory", uuid::format(&info.uuid));
    store.transaction::<(), Error>(|store, tx| {
        store.write_display(Some(tx), &format!("{home}/memory/target"), &target)?;
        store.write_display(Some(tx), &vm, &(target / 1024))?;
        Ok(())
    })
}

/// Sets how much memory a guest may have at most.
///
/// # Errors
/// Less than it shall have now, or Xen or the store refuse.
pub fn set_max<C: DomainControl>(
    control: &C,
    store: &impl Store,
    info: &DomainInfo,
    kib: u64,
) -> Result<()> {
    let step = "limit the memory of domain";
    let memory = read(store, info, step)?;
    if kib < memory.target_kib {
        let target = memory.target_kib / 1024;
        let cause = format!(
            "{} MiB are less than the {target} MiB that it shall have",
            kib / 1024
        );
        return Err(Error::new(step, info.dom, cause)
            .kind(Kind::Invalid)
            .hint("make it smaller first: `xlrs mem-set`"));
    }
    control
        .set_max_mem(info.dom, kib + MEMORY_SLACK_KIB)
        .map_err(Error::hal(step, info.dom))?;
    let path = format!("{}/memory/static-max", nodes::home(info.dom));
    store
        .write_display(None, &path, &kib)
        .map_err(Error::store(step, info.dom))
}

fn read(store: &impl Store, info: &DomainInfo, step: &'static str) -> Result<Memory> {
    let dom = info.dom;
    let get = |key: &str| {
        let value = text(store, None, &format!("{}/memory/{key}", nodes::home(dom)));
        let value = value.map_err(Error::store("read the memory of domain", dom))?;
        match value.map(|value| (value.trim().parse::<u64>(), value)) {
            None => Ok(None),
            Some((Ok(kib), _)) => Ok(Some(kib)),
            Some((Err(_), value)) => {
                let cause = format!("memory/{key} is {value:?} in the store, which is no number");
                Err(Error::new(step, dom, cause))
            }
        }
    };
    let known = |value: Option<u64>, pages: u64, key: &str| match value {
        Some(kib) => Ok(kib),
        // Nobody has written dom0's down: what it has counts.
        None if dom == DomId::DOM0 => Ok(pages * 4),
        None => {
            let cause = format!("it has no memory/{key} in the store: no toolstack has made it");
            Err(Error::new(step, dom, cause))
        }
    };
    Ok(Memory {
        target_kib: known(get("target")?, info.total_pages, "target")?,
        max_kib: known(get("static-max")?, info.max_pages, "static-max")?,
        video_kib: get("videoram")?.unwrap_or(0),
    })
}
