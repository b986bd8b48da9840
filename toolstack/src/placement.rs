//! Puts a new guest where its configuration wants it: cpupool, affinity, share of the CPUs, clock.

use xen_hal::{CpuPool, Placement, Share, Store, Timed};
use xen_sys::{DomId, VcpuId};

use crate::config::{CpuSet, DomainConfig};
use crate::error::{Error, Kind, Result};
use crate::os;
use crate::store::{children, text};

/// The name of the pool that Xen starts with, as long as nobody has given it another.
pub const FIRST_POOL: &str = "Pool-0";

/// The pool of a name or number.
///
/// # Errors
/// There is none, or Xen or the store cannot be asked.
pub fn find_pool<C: Placement>(control: &C, store: &impl Store, word: &str) -> Result<CpuPool> {
    let step = "find the cpupool";
    let pools = control.pools().map_err(Error::hal(step, word))?;
    let mut number = word.parse().ok();
    let failed = || Error::store(step, word);
    let top = "/local/pool";
    let mut named = false;
    for child in children(store, None, top).map_err(failed())? {
        let name = text(store, None, &format!("{top}/{child}/name")).map_err(failed())?;
        named |= child == "0" && name.is_some();
        if name.as_deref() == Some(word) {
            number = child.parse().ok();
        }
    }
    if word == FIRST_POOL && !named && number.is_none() {
        number = Some(0);
    }
    let found = pools.into_iter().find(|pool| Some(pool.id) == number);
    found.ok_or_else(|| {
        Error::new(step, word, "there is none of this name")
            .kind(Kind::Invalid)
            .hint("`xlrs cpupool-list` shows those that exist")
    })
}

/// Moves a new domain, which has no vCPUs yet, into its pool.
///
/// # Errors
/// There is no such pool, or it has no CPU.
pub fn into_pool<C: Placement>(
    control: &C,
    store: &impl Store,
    dom: DomId,
    config: &DomainConfig,
) -> Result<()> {
    let Some(word) = &config.placement.pool else {
        return Ok(());
    };
    let pool = find_pool(control, store, word)?;
    if pool.id == 0 {
        return Ok(());
    }
    let object = format!("{} to the cpupool {word}", config.name);
    control
        .move_to_pool(dom, pool.id)
        .map_err(|error| Error::hal("move", object)(error).hint("the pool needs a CPU"))
}

/// Sets where the vCPUs of a domain run, what they may have, and its clock.
///
/// # Errors
/// Xen refuses, for example because none of the CPUs is there.
pub fn apply<C: Placement>(control: &C, dom: DomId, config: &DomainConfig) -> Result<()> {
    let object = format!("{} (domain {dom})", config.name);
    let failed = |step: &'static str| Error::hal(step, &object);
    let placement = &config.placement;
    if !placement.hard.is_empty() || !placement.soft.is_empty() {
        let topology = control
            .topology()
            .map_err(failed("ask Xen where the CPUs are, for"))?;
        let map = |list: &[CpuSet], vcpu: u32| {
            let set = list.get(vcpu as usize)?;
            Some(set.resolve(&topology))
        };
        for vcpu in 0..config.max_vcpus {
            let (hard, soft) = (map(&placement.hard, vcpu), map(&placement.soft, vcpu));
            if hard.is_none() && soft.is_none() {
                continue;
            }
            control
                .set_affinity(dom, VcpuId(vcpu), hard.as_ref(), soft.as_ref(), false)
                .map_err(|error| {
                    let error = failed("pin the vCPUs of")(error);
                    let hint = "cpus= must name a CPU of its cpupool: see `xlrs cpupool-list -c`";
                    error.kind(Kind::Invalid).hint(hint)
                })?;
        }
    }
    let timed = placement.period_us.or(placement.budget_us).is_some();
    let weighted = placement.weight.or(placement.cap).is_some();
    if weighted || timed || placement.extra_time.is_some() {
        share(control, dom, config)?;
    }
    if config.tsc_mode != 0 {
        control
            .set_tsc_mode(dom, config.tsc_mode)
            .map_err(failed("set the time-stamp counter of"))?;
    }
    let local = if config.local_time {
        os::ahead_of_utc_s()
    } else {
        0
    };
    let ahead = config.time_offset_s + local;
    if ahead != 0 {
        control
            .set_time_offset(dom, ahead)
            .map_err(failed("set the clock of"))?;
    }
    if config.max_memory_kib > config.memory_kib {
        control
            .set_memory_map(dom, config.max_memory_kib)
            .map_err(failed("tell the memory map of"))?;
    }
    Ok(())
}

fn share<C: Placement>(control: &C, dom: DomId, config: &DomainConfig) -> Result<()> {
    let step = "set the share of";
    let failed = || Error::hal(step, &config.name);
    let info = control.info(dom).map_err(failed())?;
    let pool = info.map(|info| info.cpupool);
    let pools = control.pools().map_err(failed())?;
    let scheduler = pools.iter().find(|known| Some(known.id) == pool);
    let scheduler = scheduler.map(|pool| pool.scheduler).ok_or_else(|| {
        Error::new(step, &config.name, "its cpupool is gone").hint("create it again")
    })?;
    let placement = &config.placement;
    let wanted = match control.share(dom, scheduler).map_err(failed())? {
        Share::Weighted { weight, cap } => Share::Weighted {
            weight: placement.weight.unwrap_or(weight),
            cap: placement.cap.unwrap_or(cap),
        },
        Share::Timed(now) if placement.weight.is_none() && placement.cap.is_none() => {
            Share::Timed(Timed {
                period_us: placement.period_us.unwrap_or(now.period_us),
                budget_us: placement.budget_us.unwrap_or(now.budget_us),
                extra_time: placement.extra_time.unwrap_or(now.extra_time),
            })
        }
        Share::Timed(_) => {
            let cause = format!("{scheduler} knows neither cpu_weight nor cap");
            return Err(Error::new(step, &config.name, cause)
                .kind(Kind::Invalid)
                .hint("leave them out, or name another pool="));
        }
    };
    control.set_share(dom, scheduler, wanted).map_err(failed())
}
