//! A running guest's configuration as it is now, in libxl's JSON: what was written when it was created,
//! with what has changed since. The store counts more than the file.

use serde_json::{Map, Value, json};
use xen_hal::{DomainInfo, Placement, Share, Store};
use xen_sys::DomId;

use crate::error::{Error, Result};
use crate::nodes;
use crate::store::{children, name_of, text, texts};
use crate::userdata::{self, Userdata};
use crate::uuid;

/// What stands before these members of `b_info` in libxl's order.
const BEFORE: [(&str, &[&str]); 4] = [
    ("avail_vcpus", &["max_vcpus"]),
    ("max_memkb", MEMORY_AFTER),
    (
        "target_memkb",
        &[
            "max_vcpus",
            "avail_vcpus",
            "vcpu_soft_affinity",
            "max_memkb",
        ],
    ),
    ("sched_params", &["target_memkb"]),
];
const MEMORY_AFTER: &[&str] = &[
    "max_vcpus",
    "avail_vcpus",
    "vcpu_hard_affinity",
    "vcpu_soft_affinity",
    "numa_placement",
];

/// The configuration; `None` if nothing is written about the guest, which no toolstack has made then.
///
/// # Errors
/// Xen or the store cannot be asked, or what is written makes no sense.
pub fn libxl_config<C: Placement>(
    control: &C,
    store: &impl Store,
    info: &DomainInfo,
) -> Result<Option<Value>> {
    let dom = info.dom;
    let file = userdata::read(dom, &info.uuid, Userdata::Libxl);
    let Some(file) = file.or_else(|| (dom == DomId::DOM0).then(dom0_file)) else {
        return Ok(None);
    };
    let path = userdata::path(dom, &info.uuid, Userdata::Libxl);
    let strange = |why: &str| Error::new("read", path.display(), why);
    let mut config: Map<String, Value> =
        serde_json::from_str(&file).map_err(|e| strange(&e.to_string()))?;
    let part = |config: &mut Map<String, Value>, name: &str| match config.remove(name) {
        Some(Value::Object(part)) => Ok(part),
        _ => Err(strange(&format!("it has no {name}"))),
    };
    let mut c_info = part(&mut config, "c_info")?;
    let mut b_info = part(&mut config, "b_info")?;

    let failed = || Error::store("read the configuration of domain", dom);
    if let Some(name) = name_of(store, dom).map_err(failed())? {
        c_info.insert("name".into(), name.into());
    }
    if info.uuid != [0; 16] {
        c_info.insert("uuid".into(), uuid::format(&info.uuid).into());
    }
    let max_vcpus = b_info.get("max_vcpus").and_then(Value::as_u64);
    let online = online_vcpus(store, dom, max_vcpus.unwrap_or(0)).map_err(failed())?;
    put(&mut b_info, "avail_vcpus", json!(online), online.is_empty());
    let memory = |key: &str| text(store, None, &format!("{}/memory/{key}", nodes::home(dom)));
    let kib = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let max = kib(memory("static-max").map_err(failed())?).unwrap_or(info.max_pages * 4);
    let target = kib(memory("target").map_err(failed())?).unwrap_or(info.total_pages * 4);
    put(&mut b_info, "max_memkb", max.into(), false);
    // libxl adds what it takes for video memory, which is "-1" for a PV guest that it has not looked at.
    let video = b_info.get("video_memkb").and_then(Value::as_u64);
    let target = match video {
        Some(video) => target + video,
        None => target.saturating_sub(1),
    };
    put(&mut b_info, "target_memkb", target.into(), false);
    let share = sched_params(control, info)?;
    put(&mut b_info, "sched_params", share, false);

    let mut out = Map::new();
    out.insert("c_info".into(), c_info.into());
    out.insert("b_info".into(), b_info.into());
    for (key, value) in config {
        let value = match (key.as_str(), value) {
            ("disks", Value::Array(list)) => present(store, dom, "vbd", list),
            ("nics", Value::Array(list)) => present(store, dom, "vif", list),
            (_, value) => Ok(Some(value)),
        };
        if let Some(value) = value.map_err(failed())? {
            out.insert(key, value);
        }
    }
    Ok(Some(out.into()))
}

/// What libxl takes for dom0's configuration.
fn dom0_file() -> String {
    json!({
        "c_info": {"type": "pv"},
        "b_info": {"sched_params": {}, "type.pv": {}, "arch_arm": {}, "arch_x86": {}},
    })
    .to_string()
}

/// Sets a member where libxl has it, or takes it out.
fn put(map: &mut Map<String, Value>, key: &str, value: Value, absent: bool) {
    if absent {
        map.shift_remove(key);
        return;
    }
    if let Some(old) = map.get_mut(key) {
        *old = value;
        return;
    }
    let before = BEFORE.iter().find(|(name, _)| *name == key);
    let before = before.map_or(&[][..], |(_, before)| before);
    let keys: Vec<String> = map.keys().cloned().collect();
    let last = keys.iter().rposition(|key| before.contains(&key.as_str()));
    map.shift_insert(last.map_or(0, |at| at + 1), key.into(), value);
}

fn online_vcpus(
    store: &impl Store,
    dom: DomId,
    count: u64,
) -> std::result::Result<Vec<u64>, xs_wire::StoreError> {
    /// More than any guest may have.
    const MAX: u64 = 8192;
    let count = count.min(MAX);
    let path = |cpu| format!("{}/cpu/{cpu}/availability", nodes::home(dom));
    let paths: Vec<_> = (0..count).map(path).collect();
    let states = texts(store, None, &paths)?;
    let online = |(_, state): &(u64, Option<String>)| state.as_deref() == Some("online");
    Ok((0..)
        .zip(states)
        .filter(online)
        .map(|(cpu, _)| cpu)
        .collect())
}

fn sched_params<C: Placement>(control: &C, info: &DomainInfo) -> Result<Value> {
    let failed = || Error::hal("ask for the share of domain", info.dom);
    let pools = control.pools().map_err(failed())?;
    let pool = pools.iter().find(|pool| pool.id == info.cpupool);
    let Some(scheduler) = pool.map(|pool| pool.scheduler) else {
        return Ok(json!({}));
    };
    let share = match control.share(info.dom, scheduler) {
        Ok(share) => share,
        // Schedulers without shares.
        Err(_) => return Ok(json!({"sched": scheduler.name()})),
    };
    Ok(match share {
        Share::Weighted { weight, cap } => {
            json!({"sched": scheduler.name(), "weight": weight, "cap": cap})
        }
        Share::Timed(timed) => json!({
            "sched": scheduler.name(), "period": timed.period_us,
            "budget": timed.budget_us, "extratime": u32::from(timed.extra_time),
        }),
    })
}

/// Those devices of a list that the guest has.
fn present(
    store: &impl Store,
    dom: DomId,
    kind: &str,
    list: Vec<Value>,
) -> std::result::Result<Option<Value>, xs_wire::StoreError> {
    let there = children(store, None, &format!("{}/device/{kind}", nodes::libxl(dom)))?;
    let known = |device: &Value| {
        let number = userdata::device_number(kind, device);
        number.is_some_and(|number| there.contains(&number))
    };
    let list: Vec<Value> = list.into_iter().filter(known).collect();
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_go_where_libxl_has_them() {
        let mut map: Map<String, Value> = serde_json::from_str(
            r#"{"max_vcpus": 2, "avail_vcpus": [0], "max_memkb": 5, "kernel": "/k"}"#,
        )
        .unwrap();
        put(&mut map, "target_memkb", 4.into(), false);
        put(&mut map, "sched_params", json!({}), false);
        put(&mut map, "avail_vcpus", json!([]), true);
        let keys: Vec<_> = map.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "max_vcpus",
                "max_memkb",
                "target_memkb",
                "sched_params",
                "kernel"
            ]
        );
    }
}
