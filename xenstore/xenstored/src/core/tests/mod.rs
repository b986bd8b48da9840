//! The core against rows of requests: a world in which domains are numbers, and a short way to ask.

mod accounting;
mod control;
mod domains;
mod histories;
mod hostile;
mod known_cases;
mod model;
mod old_trees;
mod permissions;
mod protocol;
mod settings;
mod state;
mod transactions;
mod turns;
mod watches;

use std::collections::BTreeMap;

use xen_sys::{DomId, Errno, Port};
use xs_wire::{Header, Op, Permission, Request};

use super::limits::Limits;
use super::*;

/// dom0's connection in every test.
pub const D0: ConnId = ConnId(1);
/// Another of dom0's.
pub const D0B: ConnId = ConnId(2);

#[derive(Clone, Default)]
pub struct World {
    pub domains: BTreeMap<u16, DomainState>,
    /// Those that are told apart.
    pub identities: BTreeMap<u16, u64>,
    pub sent: Vec<(ConnId, Sent)>,
    pub refuse_connect: bool,
    pub connected: BTreeMap<u64, (u16, u32)>,
    pub features: BTreeMap<u64, u32>,
    pub buffered: BTreeMap<u64, Buffered>,
    pub logged: Vec<String>,
    last: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Reply(Op, Vec<u8>),
    Event(String, String),
}

impl Host for World {
    fn domain_identity(&mut self, dom: DomId) -> Option<Identity> {
        let identity = self.identities.get(&dom.0).copied().unwrap_or(0);
        self.domains.get(&dom.0).map(|_| Identity(identity))
    }

    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        let report = |(dom, state): (&u16, &DomainState)| DomainReport {
            dom: DomId(*dom),
            identity: Identity(self.identities.get(dom).copied().unwrap_or(0)),
            state: *state,
        };
        Some(self.domains.iter().map(report).collect())
    }

    fn connect(&mut self, dom: DomId, _: u64, port: Port, features: u32) -> Result<ConnId, Errno> {
        if self.refuse_connect {
            return Err(Errno::EINVAL);
        }
        self.last += 1;
        let id = 100 + self.last;
        self.connected.insert(id, (dom.0, port.0));
        self.features.insert(id, features);
        Ok(ConnId(id))
    }

    fn rebind(&mut self, conn: ConnId, _: DomId, port: Port) -> Result<(), Errno> {
        self.connected.get_mut(&conn.0).unwrap().1 = port.0;
        Ok(())
    }

    fn disconnect(&mut self, conn: ConnId) {
        assert!(self.connected.remove(&conn.0).is_some());
    }

    fn reply(&mut self, conn: ConnId, op: Op, _: &Header, body: &[u8]) {
        self.sent.push((conn, Sent::Reply(op, body.to_vec())));
    }

    fn event(&mut self, conn: ConnId, event: Event, _: usize) {
        let token = String::from_utf8_lossy(&event.token).into_owned();
        let event = Sent::Event(event.shown_path().to_owned(), token);
        self.sent.push((conn, event));
    }

    fn waiting_bytes(&mut self, conn: ConnId) -> usize {
        self.buffered(conn).bytes
    }

    fn buffered(&self, conn: ConnId) -> Buffered {
        self.buffered.get(&conn.0).copied().unwrap_or_default()
    }

    fn trace(&mut self, _: TraceCommand<'_>) -> Result<String, Errno> {
        Ok("OK".to_owned())
    }

    fn log(&mut self, line: &str) {
        self.logged.push(line.to_owned());
    }
}

pub struct Store {
    pub core: Core,
    pub world: World,
}

impl Store {
    pub fn new() -> Store {
        Store::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Store {
        let mut core = Core::new(limits);
        core.attach_dom0(D0);
        core.attach_dom0(D0B);
        let world = World::default();
        Store { core, world }
    }

    /// A domain that exists and is introduced; its home is its own. Events are forgotten.
    pub fn guest(&mut self, dom: u16) -> ConnId {
        self.world.domains.insert(dom, DomainState::Running);
        let home = format!("/local/domain/{dom}");
        self.ok(D0, 0, Request::Mkdir(home.as_bytes()));
        self.set_perms(D0, 0, &home, &format!("n{dom}")).unwrap();
        self.ok(D0, 0, Request::Introduce(DomId(dom), 7, Port(dom.into())));
        self.world.sent.clear();
        let known = self.world.connected.iter().find(|(_, (d, _))| *d == dom);
        ConnId(*known.unwrap().0)
    }

    /// Sends any bytes; the reply's kind and payload.
    pub fn raw(&mut self, conn: ConnId, op: u32, tx: u32, body: &[u8]) -> (Op, Vec<u8>) {
        let header = Header {
            op,
            req_id: 0,
            tx_id: tx,
            len: body.len() as u32,
        };
        let before = self.world.sent.len();
        self.core.request(&mut self.world, conn, &header, body);
        let at = (before..self.world.sent.len())
            .find(|at| matches!(&self.world.sent[*at], (to, Sent::Reply(..)) if *to == conn))
            .expect("every request is answered");
        match self.world.sent.remove(at).1 {
            Sent::Reply(op, body) => (op, body),
            Sent::Event(..) => unreachable!(),
        }
    }

    pub fn ask(&mut self, conn: ConnId, tx: u32, request: Request<'_>) -> Result<Vec<u8>, Errno> {
        let mut body = Vec::new();
        request.encode(&mut body).unwrap();
        match self.raw(conn, request.op().code(), tx, &body) {
            (Op::Error, body) => Err(xs_wire::parse_error(&body)),
            (op, body) => {
                assert_eq!(op, request.op());
                Ok(body)
            }
        }
    }

    /// What must work.
    pub fn ok(&mut self, conn: ConnId, tx: u32, request: Request<'_>) -> Vec<u8> {
        let shown = format!("{request:?}");
        self.ask(conn, tx, request)
            .unwrap_or_else(|errno| panic!("{shown}: {errno}"))
    }

    pub fn write(&mut self, conn: ConnId, tx: u32, path: &str, value: &str) -> Result<(), Errno> {
        self.ask(conn, tx, Request::Write(path.as_bytes(), value.as_bytes()))
            .map(|body| assert_eq!(body, b"OK\0"))
    }

    pub fn read(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, Errno> {
        self.ask(conn, tx, Request::Read(path.as_bytes()))
            .map(|body| String::from_utf8(body).unwrap())
    }

    pub fn rm(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), Errno> {
        self.ask(conn, tx, Request::Rm(path.as_bytes())).map(drop)
    }

    pub fn list(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, Errno> {
        let body = self.ask(conn, tx, Request::Directory(path.as_bytes()))?;
        let names = xs_wire::words(&body).unwrap();
        let names: Vec<_> = names
            .map(|name| std::str::from_utf8(name).unwrap())
            .collect();
        Ok(names.join(" "))
    }

    /// `list` is such as "n0 r7".
    pub fn set_perms(
        &mut self,
        conn: ConnId,
        tx: u32,
        path: &str,
        list: &str,
    ) -> Result<(), Errno> {
        let list = list
            .split(' ')
            .map(|word| Permission::parse(word.as_bytes()).unwrap());
        self.ask(conn, tx, Request::SetPerms(path.as_bytes(), list.collect()))
            .map(drop)
    }

    pub fn perms(&mut self, conn: ConnId, path: &str) -> Result<String, Errno> {
        let body = self.ask(conn, 0, Request::GetPerms(path.as_bytes()))?;
        let list = xs_wire::parse_permissions(&body).unwrap();
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        Ok(list.join(" "))
    }

    /// Makes a node with a value and permissions, as dom0.
    pub fn put(&mut self, path: &str, value: &str, perms: &str) {
        self.write(D0, 0, path, value).unwrap();
        self.set_perms(D0, 0, path, perms).unwrap();
        self.world.sent.clear();
    }

    pub fn watch(&mut self, conn: ConnId, path: &str, token: &str) -> Result<(), Errno> {
        self.ask(
            conn,
            0,
            Request::Watch(path.as_bytes(), token.as_bytes(), None),
        )
        .map(drop)
    }

    pub fn start(&mut self, conn: ConnId) -> u32 {
        let body = self.ok(conn, 0, Request::TransactionStart);
        xs_wire::call::parse_tx(&body).unwrap().0.get()
    }

    pub fn commit(&mut self, conn: ConnId, tx: u32) -> Result<(), Errno> {
        self.ask(conn, tx, Request::TransactionEnd(true)).map(drop)
    }

    /// The events that have come to a connection, as "path token"; they are taken.
    pub fn events(&mut self, conn: ConnId) -> Vec<String> {
        let mut events = Vec::new();
        self.world.sent.retain(|(to, sent)| match sent {
            Sent::Event(path, token) if *to == conn => {
                events.push(format!("{path} {token}"));
                false
            }
            _ => true,
        });
        events
    }

    /// As [`check`](Self::check), whichever connections there are.
    pub fn check_counts(&mut self) {
        self.core.attach_dom0(ConnId(9999));
        let request = Request::Control(vec![b"check"]);
        assert_eq!(self.ok(ConnId(9999), 0, request), b"OK\0");
    }

    /// What is counted must be what is there.
    pub fn check(&mut self) {
        let request = Request::Control(vec![b"check"]);
        assert_eq!(self.ok(D0, 0, request), b"OK\0");
    }
}
