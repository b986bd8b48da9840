//! Requests: what each operation does and answers. The reply to a request is queued before the events it causes.

use std::borrow::Cow;
use std::rc::Rc;

use xen_sys::{DomId, Errno, Port};
use xs_wire::{
    ABS_PATH_MAX, Header, Op, PAYLOAD_MAX, Permission, Request, TxId, encode_permissions,
};

use super::acl::{Acl, Actor, DomLife, Entry};
use super::limits::within;
use super::ops::Change;
use super::path::{self, Checked, Special};
use super::settings::{self, limits_of};
use super::transaction::{Conflict, READ_ACL, READ_NAMES, READ_VALUE, Transaction, Update};
use super::tree::Node;
use super::turns::Waiting;
use super::watch::Watch;
use super::{ConnId, Core, Event, Host, account};

/// Most bytes of a watch's token: so that the event of the longest path still fits a message (XSA-324).
pub const TOKEN_MAX: usize = PAYLOAD_MAX - ABS_PATH_MAX - 2;

/// What a request comes to, beside its reply.
enum Outcome {
    /// `OK`, then these events.
    Done(Vec<Change>),
    /// This payload.
    Payload(Vec<u8>),
    /// `OK`, then the first event of a new watch.
    Watching(Event),
    /// `OK`, then @introduceDomain.
    Introduced(DomId),
    /// `OK`, then @releaseDomain.
    Released(DomId),
}

/// Who asks, and in which transaction.
#[derive(Clone, Copy)]
struct By {
    conn: ConnId,
    actor: Actor,
    tx: u32,
}

impl Core {
    /// Carries out a request and queues its reply, then the events it causes. Nothing happens if the connection is
    /// not attached.
    pub fn request(&mut self, host: &mut dyn Host, conn: ConnId, header: &Header, body: &[u8]) {
        let Ok(actor) = self.actor(conn) else {
            return;
        };
        let result = self.dispatch(host, conn, actor, header, body);
        let done = result.as_ref().map(drop).map_err(|errno| *errno);
        let op = Op::from_code(header.op).unwrap_or(Op::Error);
        match result {
            Err(errno) => {
                // A number without a name would not be understood.
                let name = errno.name().unwrap_or("EIO");
                let body = [name.as_bytes(), b"\0"].concat();
                host.reply(conn, Op::Error, header, &body);
            }
            Ok(None) => {}
            Ok(Some(Outcome::Payload(body))) => host.reply(conn, op, header, &body),
            Ok(Some(outcome)) => {
                host.reply(conn, op, header, b"OK\0");
                match outcome {
                    Outcome::Done(changes) => self.fire(host, &changes),
                    Outcome::Watching(event) => {
                        let most = self.conns.get(&conn).map(|c| self.most_waiting(c));
                        host.event(conn, event, most.unwrap_or(0));
                    }
                    Outcome::Introduced(dom) => self.introduced(host, dom),
                    Outcome::Released(dom) => self.released(host, &[dom]),
                    Outcome::Payload(_) => {}
                }
            }
        }
        if actor.is_privileged() {
            self.counters.count(header.op, body.len(), done);
        } else {
            if let Some(domain) = self.domains.get_mut(&actor.who.dom) {
                domain.counters.count(header.op, body.len(), done);
            }
            self.note_usage(host, &actor);
        }
        self.renew_transactions();
        if self.turns.has_free() {
            self.give_turns(host);
        }
    }

    /// `None` if the reply was queued already.
    fn dispatch(
        &mut self,
        host: &mut dyn Host,
        conn: ConnId,
        actor: Actor,
        header: &Header,
        body: &[u8],
    ) -> Result<Option<Outcome>, Errno> {
        let op = Op::from_code(header.op).ok_or(Errno::ENOSYS)?;
        let tx = header.tx_id;
        let by = By { conn, actor, tx };
        let done = |changes| Ok(Some(Outcome::Done(changes)));
        match Request::parse(op, body)? {
            Request::Read(raw) => {
                self.show(host, by, raw, READ_VALUE, |host, node| {
                    host.reply(conn, op, header, node.value());
                    Ok(())
                })?;
                Ok(None)
            }
            Request::Directory(raw) => {
                self.show(host, by, raw, READ_NAMES, |host, node| {
                    if node.names_len() > PAYLOAD_MAX {
                        return Err(Errno::E2BIG);
                    }
                    host.reply(conn, op, header, &listing(node));
                    Ok(())
                })?;
                Ok(None)
            }
            Request::DirectoryPart(raw, offset) => {
                let piece = self.show(host, by, raw, READ_NAMES, |_, node| {
                    Ok(listing_part(node, offset))
                })?;
                Ok(Some(Outcome::Payload(piece)))
            }
            Request::GetPerms(raw) => self.get_permissions(host, by, raw),
            Request::SetPerms(raw, list) => {
                let acl = self.acl(host, &actor, list)?;
                if let Checked::Special(name) = path::check(actor.who.dom, raw)? {
                    if !actor.is_privileged() {
                        return Err(Errno::EACCES);
                    }
                    let special = Special::parse(name).ok_or(Errno::EINVAL)?;
                    self.set_special_acl(host, special, acl)?;
                    return done(Vec::new());
                }
                self.update(host, conn, actor, tx, raw, |path| {
                    Update::SetPermissions(path, acl)
                })
            }
            Request::Write(raw, value) if tx == 0 => {
                let path = self.node_path(actor, raw)?;
                let beside = self.beside(host, conn, &actor, 0);
                let mut changes = Vec::with_capacity(1);
                self.ops(actor, beside, &mut changes).write(&path, value)?;
                done(changes)
            }
            Request::Write(raw, value) => self.update(host, conn, actor, tx, raw, |path| {
                Update::Write(path, value.into())
            }),
            Request::Mkdir(raw) => self.update(host, conn, actor, tx, raw, Update::Mkdir),
            Request::Rm(raw) => self.update(host, conn, actor, tx, raw, Update::Rm),
            Request::TransactionStart => self.start(host, conn, header),
            Request::TransactionEnd(commit) => self.end(host, conn, tx, commit).map(Some),
            Request::Watch(raw, token, depth) => {
                self.watch(host, conn, actor, raw, token, depth).map(Some)
            }
            Request::Unwatch(raw, token) => {
                self.unwatch(conn, actor, raw, token)?;
                done(Vec::new())
            }
            Request::ResetWatches => {
                self.reset(conn);
                done(Vec::new())
            }
            Request::GetDomainPath(dom) => {
                let path = path::home(dom) + "\0";
                Ok(Some(Outcome::Payload(path.into_bytes())))
            }
            Request::Control(_)
            | Request::Introduce(..)
            | Request::Release(_)
            | Request::Resume(_)
            | Request::SetTarget(..)
            | Request::IsDomainIntroduced(_)
            | Request::SetFeature(..)
            | Request::GetQuota(..)
            | Request::SetQuota(..)
                if !actor.is_privileged() =>
            {
                Err(Errno::EACCES)
            }
            Request::Control(words) if words.first() == Some(&&b"live-update"[..]) => {
                let text = host.live_update(conn, header, &words[1..])?;
                Ok(text.map(|text| Outcome::Payload([text.as_bytes(), b"\0"].concat())))
            }
            Request::Control(words) => self
                .control(host, &words)
                .and_then(|text| match text.len() < PAYLOAD_MAX {
                    true => Ok(text),
                    false => Err(Errno::E2BIG),
                })
                .map(|text| Some(Outcome::Payload([text.as_bytes(), b"\0"].concat()))),
            Request::Introduce(dom, frame, port) => {
                self.handle_introduce(host, dom, frame, port).map(Some)
            }
            Request::Release(dom) => {
                self.release(host, dom)?;
                Ok(Some(Outcome::Released(dom)))
            }
            Request::Resume(dom) => {
                self.resume(dom)?;
                done(Vec::new())
            }
            Request::SetTarget(dom, target) => {
                self.set_target(dom, target)?;
                done(Vec::new())
            }
            Request::GetFeature(dom) => {
                let features = self.get_feature(host, &actor, dom)?;
                Ok(Some(Outcome::Payload(format!("{features}\0").into_bytes())))
            }
            Request::SetFeature(dom, features) => {
                self.set_feature(host, dom, features)?;
                done(Vec::new())
            }
            Request::GetQuota(dom, name) => {
                let text = self.get_quota(host, dom, name)? + "\0";
                Ok(Some(Outcome::Payload(text.into_bytes())))
            }
            Request::SetQuota(dom, name, value) => {
                self.set_quota(host, dom, name, value)?;
                done(Vec::new())
            }
            Request::IsDomainIntroduced(dom) => {
                let answer = if self.is_introduced(dom) {
                    b"T\0"
                } else {
                    b"F\0"
                };
                Ok(Some(Outcome::Payload(answer.to_vec())))
            }
        }
    }

    fn handle_introduce(
        &mut self,
        host: &mut dyn Host,
        dom: DomId,
        frame: u64,
        port: Port,
    ) -> Result<Outcome, Errno> {
        // Another domain may have taken the number meanwhile.
        self.life(host, dom);
        let again = self.is_introduced(dom);
        self.introduce(host, dom, frame, port)?;
        Ok(if again {
            Outcome::Done(Vec::new())
        } else {
            Outcome::Introduced(dom)
        })
    }

    /// Shows a node, of which `part` is looked at.
    fn show<T>(
        &mut self,
        host: &mut dyn Host,
        by: By,
        raw: &[u8],
        part: u8,
        show: impl FnOnce(&mut dyn Host, &Node) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let By { conn, actor, tx } = by;
        let path = self.node_path(actor, raw)?;
        if tx == 0 {
            let mut nothing = Vec::new();
            return show(host, self.ops(actor, 0, &mut nothing).look(&path, part)?);
        }
        let beside = self.beside(host, conn, &actor, tx);
        let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
        let transaction = client.transactions.get_mut(&tx).ok_or(Errno::ENOENT)?;
        let limits = limits_of(&self.domains, &self.limits, &actor);
        show(
            host,
            transaction
                .look_at(&path, limits, &self.owned, beside)
                .look(&path, part)?,
        )
    }

    /// Makes a change, in the live tree or in a transaction.
    fn update(
        &mut self,
        host: &mut dyn Host,
        conn: ConnId,
        actor: Actor,
        tx: u32,
        raw: &[u8],
        update: impl FnOnce(Box<str>) -> Update,
    ) -> Result<Option<Outcome>, Errno> {
        let update = update(self.node_path(actor, raw)?.into());
        let mut changes = Vec::new();
        let beside = self.beside(host, conn, &actor, tx);
        if tx == 0 {
            update.apply(&mut self.ops(actor, beside, &mut changes))?;
        } else {
            let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
            let transaction = client.transactions.get_mut(&tx).ok_or(Errno::ENOENT)?;
            let limits = limits_of(&self.domains, &self.limits, &actor);
            transaction.update(update, limits, &self.owned, beside)?;
        }
        Ok(Some(Outcome::Done(changes)))
    }

    fn get_permissions(
        &mut self,
        host: &mut dyn Host,
        by: By,
        raw: &[u8],
    ) -> Result<Option<Outcome>, Errno> {
        let acl = match path::check(by.actor.who.dom, raw)? {
            Checked::Special(_) if !by.actor.is_privileged() => return Err(Errno::EACCES),
            Checked::Special(name) => {
                let special = Special::parse(name).ok_or(Errno::EINVAL)?;
                let known = |dom: DomId| dom == DomId::DOM0 || self.domains.contains_key(&dom);
                if special.dom.is_some_and(|dom| !known(dom)) {
                    return Err(Errno::ENOENT);
                }
                self.special_acl(special.name, special.dom).clone()
            }
            Checked::Node { .. } => {
                self.show(host, by, raw, READ_ACL, |_, node| Ok(node.acl().clone()))?
            }
        };
        let mut body = Vec::new();
        encode_permissions(&acl.permissions(|who| self.is_alive(who)), &mut body);
        Ok(Some(Outcome::Payload(body)))
    }

    /// The list as kept inside. ENOENT if it names a domain that does not exist, EINVAL if it is empty or owned by
    /// everybody. Who lacks the feature `DOMID_ANY` cannot give rights to all: such entries are left out.
    fn acl(
        &mut self,
        host: &mut dyn Host,
        actor: &Actor,
        list: Vec<Permission>,
    ) -> Result<Acl, Errno> {
        let knows_any = self.features(actor) & settings::DOMID_ANY != 0;
        let entries: Option<Vec<Entry>> = list
            .into_iter()
            .filter(|entry| entry.dom != DomLife::ANY.dom || knows_any)
            .map(|Permission { dom, access }| {
                let who = match dom == DomLife::ANY.dom {
                    true => DomLife::ANY,
                    false => self.life(host, dom)?,
                };
                Some(Entry { who, access })
            })
            .collect();
        Acl::new(entries.ok_or(Errno::ENOENT)?).ok_or(Errno::EINVAL)
    }

    /// Opens a transaction; the reply waits if it is the retry of one that conflicted.
    fn start(
        &mut self,
        host: &mut dyn Host,
        conn: ConnId,
        header: &Header,
    ) -> Result<Option<Outcome>, Errno> {
        if header.tx_id != 0 {
            return Err(Errno::EBUSY);
        }
        let actor = self.actor(conn)?;
        let limits = limits_of(&self.domains, &self.limits, &actor);
        let most = limits.transactions;
        let has_room = self.has_room(host, conn, &actor, account::TRANSACTION);
        let now = self.turns.now();
        let to_come = usize::from(self.turns.awaits(conn));
        let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
        let privileged = client.actor.is_privileged();
        if !privileged && !within(client.transactions.len() + to_come + 1, most) {
            return Err(Errno::ENOSPC);
        }
        if !has_room {
            return Err(Errno::ENOMEM);
        }
        let may_wait = now >= client.no_turn_until && !self.turns.involves(conn);
        let node = client.contends.take().filter(|_| may_wait);
        if let Some(node) = &node
            && self.turns.is_taken(node)
        {
            let who = Waiting {
                conn,
                header: *header,
                privileged,
            };
            self.turns.line_up(node.clone(), who);
            return Ok(None);
        }
        let id = self.open(conn)?;
        if let Some(node) = node {
            self.turns.take(node, conn, id);
        }
        let mut text = [0; NUMBER_MAX];
        let body = number(id, &mut text);
        host.reply(conn, Op::TransactionStart, header, body);
        Ok(None)
    }

    fn open(&mut self, conn: ConnId) -> Result<u32, Errno> {
        let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
        let id = loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            if self.last_transaction != 0
                && !client.transactions.contains_key(&self.last_transaction)
            {
                break self.last_transaction;
            }
        };
        let transaction = Transaction::new(client.actor, &self.tree);
        client.transactions.insert(id, transaction);
        Ok(id)
    }

    /// Opens the transactions whose turn it is.
    pub(super) fn give_turns(&mut self, host: &mut dyn Host) {
        while let Some((node, who)) = self.turns.next_turn() {
            match self.open(who.conn) {
                Ok(id) => {
                    self.turns.take(node, who.conn, id);
                    let body = format!("{id}\0");
                    host.reply(who.conn, Op::TransactionStart, &who.header, body.as_bytes());
                }
                // Who waits is attached, as its place goes with the connection; but no queue may get stuck.
                Err(_) => self.turns.pass_on(node),
            }
        }
    }

    fn end(
        &mut self,
        host: &mut dyn Host,
        conn: ConnId,
        tx: u32,
        commit: bool,
    ) -> Result<Outcome, Errno> {
        let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
        let transaction = client.transactions.remove(&tx).ok_or(Errno::ENOENT)?;
        let turn = self.turns.ended(conn, tx);
        if !commit {
            return Ok(Outcome::Done(Vec::new()));
        }
        let actor = client.actor;
        if !transaction.new_owners().all(|who| self.is_alive(who)) {
            // It gave a node to a domain that has died since: the retry will be told.
            return Err(Errno::EAGAIN);
        }
        let beside = self.beside(host, conn, &actor, 0);
        let limits = limits_of(&self.domains, &self.limits, &actor);
        let committed = transaction.commit(&mut self.tree, &mut self.owned, limits, beside);
        let client = self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)?;
        match committed {
            Ok(changes) => {
                if let Some((node, true)) = turn {
                    // It would take away from those who wait what they wait for.
                    client.contends = Some(node);
                }
                Ok(Outcome::Done(changes))
            }
            Err(Conflict(node)) => {
                client.contends = Some(node);
                Err(Errno::EAGAIN)
            }
        }
    }

    fn watch(
        &mut self,
        host: &mut dyn Host,
        conn: ConnId,
        actor: Actor,
        raw: &[u8],
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<Outcome, Errno> {
        if depth.is_some() && self.features(&actor) & settings::WATCH_DEPTH == 0 {
            return Err(Errno::EINVAL);
        }
        let (path, prefix) = self.watch_path(actor, raw)?;
        // A special name tells of single domains (depth 1) or does not; one that names a domain always does.
        let is_known = |depth| match Special::parse(&path) {
            Some(special) => depth == 1 && special.dom.is_none(),
            None => true,
        };
        if token.len() > TOKEN_MAX || depth.is_some_and(|depth| !is_known(depth)) {
            return Err(Errno::EINVAL);
        }
        let most = limits_of(&self.domains, &self.limits, &actor).watches;
        let client = self.client(conn)?;
        if !actor.is_privileged() && !within(client.watch_count as usize + 1, most) {
            return Err(Errno::ENOSPC);
        }
        let bytes = account::watch(&path, token);
        if !self.has_room(host, conn, &actor, bytes) {
            return Err(Errno::ENOMEM);
        }
        let token: Rc<[u8]> = token.into();
        let watch = Watch {
            conn,
            token: token.clone(),
            prefix,
            depth,
        };
        if !self.watches.add(&path, watch) {
            return Err(Errno::EEXIST);
        }
        let path: Rc<str> = path.into();
        let client = self.client(conn)?;
        client.watch_count += 1;
        client.watch_bytes += bytes;
        *client.watched.entry(path.clone()).or_default() += 1;
        Ok(Outcome::Watching(Event {
            path,
            skip: prefix,
            token,
        }))
    }

    fn unwatch(
        &mut self,
        conn: ConnId,
        actor: Actor,
        raw: &[u8],
        token: &[u8],
    ) -> Result<(), Errno> {
        // No watch can have a path that is none.
        let (path, _) = self.watch_path(actor, raw).map_err(|_| Errno::ENOENT)?;
        if !self.watches.remove(&path, conn, token) {
            return Err(Errno::ENOENT);
        }
        let client = self.client(conn)?;
        client.watch_count -= 1;
        client.watch_bytes -= account::watch(&path, token);
        if let Some(count) = client.watched.get_mut(&*path) {
            *count -= 1;
            if *count == 0 {
                client.watched.remove(&*path);
            }
        }
        Ok(())
    }

    /// The path of an ordinary node.
    fn node_path<'a>(&self, actor: Actor, raw: &'a [u8]) -> Result<Cow<'a, str>, Errno> {
        match self.checked_path(actor, raw)? {
            Checked::Node { path, .. } => Ok(path),
            Checked::Special(_) => Err(Errno::EINVAL),
        }
    }

    /// The path of a watch, with how many bytes at its front the client did not give.
    fn watch_path(&self, actor: Actor, raw: &[u8]) -> Result<(String, usize), Errno> {
        Ok(match self.checked_path(actor, raw)? {
            Checked::Node { path, prefix } => (path.into_owned(), prefix),
            Checked::Special(name) => (name.to_owned(), 0),
        })
    }

    fn checked_path<'a>(&self, actor: Actor, raw: &'a [u8]) -> Result<Checked<'a>, Errno> {
        let checked = path::check(actor.who.dom, raw)?;
        if let Checked::Node { path, .. } = &checked
            && !actor.is_privileged()
        {
            let most = limits_of(&self.domains, &self.limits, &actor).path_max;
            if !within(path.len(), most) {
                return Err(Errno::EINVAL);
            }
        }
        Ok(checked)
    }

    /// Whether this is the number of one of the connection's open transactions.
    pub fn has_transaction(&self, conn: ConnId, tx: TxId) -> bool {
        self.conns
            .get(&conn)
            .is_some_and(|client| client.transactions.contains_key(&tx.0.get()))
    }
}

/// Bytes of the longest number of 32 bits with a NUL.
const NUMBER_MAX: usize = 11;

/// A number in digits, with a NUL.
fn number(mut number: u32, text: &mut [u8; NUMBER_MAX]) -> &[u8] {
    let mut at = NUMBER_MAX - 1;
    text[at] = 0;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &text[at..];
        }
    }
}

/// All names, each with a NUL.
fn listing(node: &Node) -> Vec<u8> {
    let mut names = Vec::with_capacity(node.names_len());
    for child in node.children() {
        names.extend_from_slice(child.name().as_bytes());
        names.push(0);
    }
    names
}

/// A generation number, then as many whole names from `offset` on as fit a message, and an empty one at the end of
/// the list.
fn listing_part(node: &Node, offset: u64) -> Vec<u8> {
    let mut body = format!("{}\0", node.children_generation()).into_bytes();
    let mut at = 0;
    for child in node.children() {
        let len = child.name().len() + 1;
        if at >= offset {
            // The byte that is kept free is for the end mark.
            if body.len() + len + 1 > PAYLOAD_MAX {
                return body;
            }
            body.extend_from_slice(child.name().as_bytes());
            body.push(0);
        }
        at += len as u64;
    }
    body.push(0);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_digits() {
        for value in [0, 1, 9, 10, 99, 100, 4_294_967_295] {
            let expected = format!("{value}\0");
            assert_eq!(number(value, &mut [b'x'; NUMBER_MAX]), expected.as_bytes());
        }
    }
}
