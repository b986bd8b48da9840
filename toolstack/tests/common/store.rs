//! A store in memory, with transactions that are kept apart until they end, and back ends that answer.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use xen_hal::{Permission, Store, StoreError, StoreOp, TxId, WatchEvent};
use xen_sys::{DomId, Errno, Mfn, Port};
use xlrs::store::StoreControl;

use super::Faults;

type Tree = BTreeMap<String, (Vec<u8>, Vec<Permission>)>;

/// The store.
#[derive(Default)]
pub struct FakeStore {
    pub faults: Faults,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    tree: Tree,
    transactions: BTreeMap<u32, Tree>,
    next: u32,
    watches: Vec<(String, String)>,
    events: VecDeque<WatchEvent>,
    introduced: Vec<DomId>,
    /// Back ends do not answer.
    deaf: bool,
    /// Why the block back end uses no other image.
    refusal: Option<String>,
}

impl FakeStore {
    pub fn new(faults: Faults) -> FakeStore {
        FakeStore {
            faults,
            inner: RefCell::default(),
        }
    }

    /// From now on no back end answers.
    pub fn make_deaf(&self) {
        self.inner.borrow_mut().deaf = true;
    }

    /// From now on the block back end uses no other image, for this reason; or any.
    pub fn refuse_images(&self, why: Option<&str>) {
        self.inner.borrow_mut().refusal = why.map(String::from);
    }

    /// The block back end looks at images that are to follow those it has.
    fn let_images_follow(&self) {
        let Inner { tree, refusal, .. } = &mut *self.inner.borrow_mut();
        let asked = tree.keys().filter(|path| path.ends_with("/next-params"));
        let backs: Vec<String> = asked
            .filter_map(|path| Some(path.strip_suffix("/next-params")?.to_string()))
            .collect();
        for back in backs {
            let value = |node: &str| tree.get(&format!("{back}/{node}")).map(|(v, _)| v.clone());
            let said = value("next-status");
            let params = value("params");
            let status = match refusal {
                Some(why) => format!("refused {why}"),
                None => "ready".to_string(),
            };
            if said == Some(b"ready".to_vec()) && params == value("next-params") {
                let place = params.unwrap_or_default();
                let place = place.strip_prefix(b"qcow2:").unwrap_or(&place).to_vec();
                put(tree, &format!("{back}/physical-device-path"), &place);
            } else if said.is_none() {
                put(tree, &format!("{back}/next-status"), status.as_bytes());
            }
        }
    }

    /// All nodes with their values.
    pub fn dump(&self) -> Vec<String> {
        let inner = self.inner.borrow();
        let line = |(path, (value, permissions)): (&String, &(Vec<u8>, Vec<Permission>))| {
            format!(
                "{path} = {:?} {permissions:?}",
                String::from_utf8_lossy(value)
            )
        };
        inner.tree.iter().map(line).collect()
    }

    /// All nodes with their values, without permissions.
    pub fn nodes(&self) -> BTreeMap<String, String> {
        let inner = self.inner.borrow();
        let pair = |(path, (value, _)): (&String, &(Vec<u8>, _))| {
            (path.clone(), String::from_utf8(value.clone()).unwrap())
        };
        inner.tree.iter().map(pair).collect()
    }

    /// A node's value.
    pub fn text(&self, path: &str) -> Option<String> {
        let inner = self.inner.borrow();
        let (value, _) = inner.tree.get(path)?;
        Some(String::from_utf8(value.clone()).unwrap())
    }

    /// What is still open: transactions and watches.
    pub fn open(&self) -> (usize, usize) {
        let inner = self.inner.borrow();
        (inner.transactions.len(), inner.watches.len())
    }

    /// The domains that were introduced.
    pub fn introduced(&self) -> Vec<DomId> {
        self.inner.borrow().introduced.clone()
    }

    fn check(&self, op: &'static str, path: &str) -> Result<(), StoreError> {
        match self.faults.hit() {
            true => Err(error(op, path, Errno::EIO)),
            false => Ok(()),
        }
    }

    fn in_tree<T>(&self, tx: Option<TxId>, act: impl FnOnce(&mut Tree) -> T) -> T {
        let inner = &mut *self.inner.borrow_mut();
        match tx {
            Some(tx) => act(inner
                .transactions
                .get_mut(&tx.0.get())
                .expect("an open transaction")),
            None => act(&mut inner.tree),
        }
    }

    /// Back ends look at what has changed: those made go to InitWait, those told to close go to Closed.
    fn let_backends_work(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.deaf {
            return;
        }
        let mut changed = Vec::new();
        for (path, (value, _)) in &mut inner.tree {
            let served = ["vbd", "vif"]
                .iter()
                .any(|kind| path.starts_with(&format!("/local/domain/0/backend/{kind}/")));
            let next = match value.as_slice() {
                b"1" => "2",
                b"5" => "6",
                _ => continue,
            };
            if served && path.ends_with("/state") {
                *value = next.into();
                changed.push(path.clone());
            }
        }
        for path in changed {
            for (watched, token) in &inner.watches {
                if path.starts_with(watched.as_str()) {
                    inner.events.push_back(WatchEvent {
                        path: path.clone(),
                        token: token.clone(),
                    });
                }
            }
        }
    }
}

fn error(op: &'static str, path: &str, errno: Errno) -> StoreError {
    StoreError {
        op,
        object: path.into(),
        errno,
    }
}

fn is_below(path: &str, base: &str) -> bool {
    path.strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn put(tree: &mut Tree, path: &str, value: &[u8]) {
    let parent = path.rsplit_once('/').map_or("", |(up, _)| up);
    if !parent.is_empty() && !tree.contains_key(parent) {
        put(tree, parent, b"");
    }
    let inherited = tree.get(parent).map(|(_, list)| list.clone());
    let inherited = inherited.unwrap_or_else(|| vec![Permission::owner(DomId::DOM0)]);
    let entry = tree.entry(path.into()).or_insert((Vec::new(), inherited));
    entry.0 = value.to_vec();
}

impl Store for FakeStore {
    fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        self.check("READ", path)?;
        self.let_images_follow();
        let value = self.in_tree(tx, |tree| tree.get(path).map(|(value, _)| value.clone()));
        value.ok_or_else(|| error("READ", path, Errno::ENOENT))
    }

    fn write(&self, tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.check("WRITE", path)?;
        self.in_tree(tx, |tree| put(tree, path, value));
        Ok(())
    }

    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        self.write(tx, path, b"")
    }

    fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        self.check("RM", path)?;
        let gone = self.in_tree(tx, |tree| {
            let before = tree.len();
            tree.retain(|node, _| !is_below(node, path));
            before > tree.len()
        });
        gone.then_some(())
            .ok_or_else(|| error("RM", path, Errno::ENOENT))
    }

    fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        self.check("DIRECTORY", path)?;
        self.in_tree(tx, |tree| {
            if !tree.contains_key(path) {
                return Err(error("DIRECTORY", path, Errno::ENOENT));
            }
            let child = |node: &String| {
                let rest = node.strip_prefix(path)?.strip_prefix('/')?;
                (!rest.contains('/')).then(|| rest.to_string())
            };
            Ok(tree.keys().filter_map(child).collect())
        })
    }

    fn permissions(&self, tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        let list = self.in_tree(tx, |tree| tree.get(path).map(|(_, list)| list.clone()));
        list.ok_or_else(|| error("GET_PERMS", path, Errno::ENOENT))
    }

    fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        self.check("SET_PERMS", path)?;
        self.in_tree(tx, |tree| match tree.get_mut(path) {
            Some(node) => {
                node.1 = list.to_vec();
                Ok(())
            }
            None => Err(error("SET_PERMS", path, Errno::ENOENT)),
        })
    }

    fn start(&self) -> Result<TxId, StoreError> {
        self.check("TRANSACTION_START", "")?;
        let mut inner = self.inner.borrow_mut();
        inner.next += 1;
        let (id, copy) = (inner.next, inner.tree.clone());
        inner.transactions.insert(id, copy);
        Ok(TxId(NonZeroU32::new(id).unwrap()))
    }

    fn end(&self, tx: TxId, commit: bool) -> Result<(), StoreError> {
        let failed = self.check("TRANSACTION_END", "");
        let mut inner = self.inner.borrow_mut();
        let tree = inner
            .transactions
            .remove(&tx.0.get())
            .expect("an open transaction");
        failed?;
        if commit {
            inner.tree = tree;
        }
        Ok(())
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.check("WATCH", path)?;
        let mut inner = self.inner.borrow_mut();
        inner.watches.push((path.into(), token.into()));
        inner.events.push_back(WatchEvent {
            path: path.into(),
            token: token.into(),
        });
        Ok(())
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        let mut inner = self.inner.borrow_mut();
        inner
            .watches
            .retain(|(p, t)| (p.as_str(), t.as_str()) != (path, token));
        Ok(())
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        Ok(self.inner.borrow_mut().events.pop_front())
    }
}

impl StoreControl for FakeStore {
    fn batch_and_introduce(
        &self,
        ops: &[StoreOp<'_>],
        dom: DomId,
        _: Mfn,
        _: Port,
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let mut results = self.batch(None, ops);
        results.push(self.check("INTRODUCE", "").map(|()| {
            self.inner.borrow_mut().introduced.push(dom);
            Vec::new()
        }));
        results
    }

    fn wait_event(&self, _: Duration) -> Result<Option<WatchEvent>, StoreError> {
        self.check("WATCH_EVENT", "")?;
        if let Some(event) = self.next_event()? {
            return Ok(Some(event));
        }
        self.let_backends_work();
        // Nothing more will ever come: as if the time had passed.
        self.next_event()
    }
}
