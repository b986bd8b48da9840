//! temp
use std::time::{Duration, Instant};
use xen_sys::{DomId, Errno, Port};
use xenstored::core::limits::Limits;
use xenstored::core::*;
use xs_wire::{Header, Op};
struct H {
    last: Vec<u8>,
}
impl Host for H {
    fn domain_identity(&mut self, _: DomId) -> Option<Identity> {
        None
    }
    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        None
    }
    fn connect(&mut self, _: DomId, _: u64, _: Port, _: u32) -> Result<ConnId, Errno> {
        Err(Errno::EINVAL)
    }
    fn rebind(&mut self, _: ConnId, _: DomId, _: Port) -> Result<(), Errno> {
        Ok(())
    }
    fn disconnect(&mut self, _: ConnId) {}
    fn reply(&mut self, _: ConnId, _: Op, _: &Header, body: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(body)
    }
    fn event(&mut self, _: ConnId, _: Event) {}
    fn log(&mut self, _: &str) {}
}
fn main() {
    let mut core = Core::new(Limits::default());
    let mut h = H { last: Vec::new() };
    let n = 64u64;
    let conns: Vec<ConnId> = (1..=n).map(ConnId).collect();
    for c in &conns {
        core.attach_dom0(*c);
    }
    let req = |core: &mut Core, h: &mut H, c: ConnId, op: Op, tx: u32, body: &[u8]| {
        let header = Header {
            op: op.code(),
            req_id: 1,
            tx_id: tx,
            len: body.len() as u32,
        };
        core.request(h, c, &header, body);
    };
    let path = |c: u64, k: u64| format!("/local/domain/{}/device/vif/{}/state\0", c, k);
    for c in 1..=n {
        for k in 0..16 {
            let b = path(c, k) + "0123456789abcdef";
            req(&mut core, &mut h, conns[0], Op::Write, 0, b.as_bytes());
        }
    }
    let paths: Vec<Vec<Vec<u8>>> = (1..=n)
        .map(|c| (0..16).map(|k| path(c, k).into_bytes()).collect())
        .collect();
    let wr: Vec<Vec<Vec<u8>>> = (1..=n)
        .map(|c| {
            (0..16)
                .map(|k| (path(c, k) + "fedcba9876543210").into_bytes())
                .collect()
        })
        .collect();
    let mut best = [Duration::MAX; 3];
    for round in 0..40 {
        let t = Instant::now();
        for i in 0..200 {
            for c in 0..n as usize {
                req(
                    &mut core,
                    &mut h,
                    conns[c],
                    Op::Read,
                    0,
                    &paths[c][(i + c) % 16],
                );
            }
        }
        let d = t.elapsed() / (200 * n as u32);
        best[0] = best[0].min(d);
        let t = Instant::now();
        for i in 0..200 {
            for c in 0..n as usize {
                req(
                    &mut core,
                    &mut h,
                    conns[c],
                    Op::Write,
                    0,
                    &wr[c][(i + c) % 16],
                );
            }
        }
        let d = t.elapsed() / (200 * n as u32);
        best[1] = best[1].min(d);
        let t = Instant::now();
        let mut txs = vec![0u32; n as usize];
        for i in 0..50 {
            for c in 0..n as usize {
                req(&mut core, &mut h, conns[c], Op::TransactionStart, 0, b"\0");
                let s = std::str::from_utf8(&h.last).unwrap().trim_end_matches('\0');
                txs[c] = s.parse().unwrap();
            }
            for c in 0..n as usize {
                req(
                    &mut core,
                    &mut h,
                    conns[c],
                    Op::Read,
                    txs[c],
                    &paths[c][(i + c) % 16],
                );
            }
            for c in 0..n as usize {
                req(
                    &mut core,
                    &mut h,
                    conns[c],
                    Op::Write,
                    txs[c],
                    &wr[c][(i + c) % 16],
                );
            }
            for c in 0..n as usize {
                req(
                    &mut core,
                    &mut h,
                    conns[c],
                    Op::TransactionEnd,
                    txs[c],
                    b"T\0",
                );
                assert_eq!(h.last, b"OK\0");
            }
        }
        let d = t.elapsed() / (50 * n as u32);
        best[2] = best[2].min(d);
        let _ = round;
    }
    println!("read {:?} write {:?} tx {:?}", best[0], best[1], best[2]);
}
