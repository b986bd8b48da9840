//! Where vCPUs run: four CPUs on two nodes in one pool. What is set is kept and nothing follows from it.

use xen_hal::{
    Affinity, CpuMap, CpuPlace, CpuPool, DomainControl, Placement, Result, Scheduler, Share,
    VcpuInfo,
};
use xen_sys::{DomId, Errno, VcpuId};

use crate::Control;

/// CPUs of the host.
pub(crate) const CPUS: u32 = 4;

/// What is kept of a domain.
pub(crate) struct Places {
    affinity: Vec<(u32, Affinity)>,
    share: Share,
}

impl Places {
    pub(crate) fn new() -> Places {
        Places {
            affinity: Vec::new(),
            share: Share::Weighted {
                weight: 256,
                cap: 0,
            },
        }
    }

    fn of(&self, vcpu: VcpuId) -> Affinity {
        let set = self.affinity.iter().find(|(number, _)| *number == vcpu.0);
        set.map_or_else(everywhere, |(_, affinity)| affinity.clone())
    }
}

fn everywhere() -> Affinity {
    Affinity {
        hard: CpuMap::first(CPUS),
        soft: CpuMap::first(CPUS),
    }
}

impl Placement for Control {
    fn vcpu_info(&self, dom: DomId, vcpu: VcpuId) -> Result<Option<VcpuInfo>> {
        let info = self.info(dom)?;
        Ok(info.filter(|i| vcpu.0 <= i.max_vcpu_id).map(|i| VcpuInfo {
            online: vcpu.0 < i.online_vcpus,
            blocked: i.flags.blocked,
            running: i.flags.running,
            cpu_time_ns: 0,
            cpu: 0,
        }))
    }

    fn affinity(&self, dom: DomId, vcpu: VcpuId) -> Result<Affinity> {
        self.with_places("XEN_DOMCTL_getvcpuaffinity", dom, |places| {
            Ok(places.of(vcpu))
        })
    }

    fn set_affinity(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        hard: Option<&CpuMap>,
        soft: Option<&CpuMap>,
        _force: bool,
    ) -> Result<()> {
        self.with_places("XEN_DOMCTL_setvcpuaffinity", dom, |places| {
            // As Xen: at least one CPU must be there.
            if hard.is_some_and(|map| map.iter().all(|cpu| cpu >= CPUS)) {
                return Err(Errno::EINVAL);
            }
            let mut affinity = places.of(vcpu);
            if let Some(hard) = hard {
                affinity.hard = hard.clone();
            }
            if let Some(soft) = soft {
                affinity.soft = soft.clone();
            }
            places.affinity.retain(|(number, _)| *number != vcpu.0);
            places.affinity.push((vcpu.0, affinity));
            Ok(())
        })
    }

    fn share(&self, dom: DomId, scheduler: Scheduler) -> Result<Share> {
        self.with_places("XEN_DOMCTL_scheduler_op", dom, |places| match scheduler {
            Scheduler::Credit2 => Ok(places.share),
            _ => Err(Errno::EINVAL),
        })
    }

    fn set_share(&self, dom: DomId, scheduler: Scheduler, share: Share) -> Result<()> {
        self.with_places("XEN_DOMCTL_scheduler_op", dom, |places| match share {
            Share::Weighted { .. } if scheduler == Scheduler::Credit2 => {
                places.share = share;
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        })
    }

    fn pools(&self) -> Result<Vec<CpuPool>> {
        let domains = self.list()?.len() as u32;
        Ok(vec![CpuPool {
            id: 0,
            scheduler: Scheduler::Credit2,
            domains,
            cpus: CpuMap::first(CPUS),
        }])
    }

    fn move_to_pool(&self, dom: DomId, pool: u32) -> Result<()> {
        self.with_places("XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN", dom, |_| match pool {
            0 => Ok(()),
            _ => Err(Errno::ENOENT),
        })
    }

    fn set_memory_map(&self, dom: DomId, _kib: u64) -> Result<()> {
        self.with_places("XENMEM_set_memory_map", dom, |_| Ok(()))
    }

    fn set_time_offset(&self, dom: DomId, _seconds: i64) -> Result<()> {
        self.with_places("XEN_DOMCTL_settimeoffset", dom, |_| Ok(()))
    }

    fn set_uuid(&self, dom: DomId, uuid: &[u8; 16]) -> Result<()> {
        self.with("XEN_DOMCTL_setdomainhandle", dom, |build, _| {
            build.set_uuid(*uuid);
            Ok(())
        })
    }

    fn topology(&self) -> Result<Vec<Option<CpuPlace>>> {
        let place = |cpu| {
            Some(CpuPlace {
                core: cpu % 2,
                socket: cpu / 2,
                node: cpu / 2,
            })
        };
        Ok((0..CPUS).map(place).collect())
    }
}

impl Control {
    fn with_places<T>(
        &self,
        op: &'static str,
        dom: DomId,
        body: impl FnOnce(&mut Places) -> Result<T, Errno>,
    ) -> Result<T> {
        self.with(op, dom, |build, _| body(&mut build.places))
    }
}
