//! Who may do what with a node. A domain is told by its number and its life, so that a later domain with
//! the same number inherits nothing (XSA-322, XSA-417).

use std::rc::Rc;

use xen_sys::DomId;
use xs_wire::{Access, Permission};

/// One of the domains that had or have a number; numbers of lives are not used twice. dom0's is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomLife {
    /// The domain's number.
    pub dom: DomId,
    /// Which domain of that number.
    pub life: u32,
}

impl DomLife {
    /// dom0.
    pub const DOM0: DomLife = DomLife {
        dom: DomId::DOM0,
        life: 0,
    };
    /// Every domain, in an entry other than the owner's (`DOMID_ANY`, xen.h).
    pub const ANY: DomLife = DomLife {
        dom: DomId(0x7ff5),
        life: 0,
    };
}

/// A node's permission list, never empty; the first entry is the owner and everyone else's right. Shared by
/// all nodes that inherited it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Rc<Vec<Entry>>);

/// One entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom it concerns.
    pub who: DomLife,
    /// What they may do.
    pub access: Access,
}

/// Who makes a request, or whom an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The domain.
    pub who: DomLife,
    /// Whose rights it has as well (SET_TARGET).
    pub target: Option<DomLife>,
}

/// A right asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To change the permissions.
    Own,
}

impl Actor {
    /// dom0, whom everything is allowed.
    pub const DOM0: Actor = Actor {
        who: DomLife::DOM0,
        target: None,
    };

    /// Whether everything is allowed and no quota holds.
    pub fn is_privileged(&self) -> bool {
        self.who == DomLife::DOM0
    }

    fn is(&self, who: DomLife) -> bool {
        self.who == who || self.target == Some(who) || who == DomLife::ANY
    }
}

impl Acl {
    /// dom0's own, with this right for everyone else.
    pub fn dom0(others: Access) -> Acl {
        Acl(Rc::new(vec![Entry {
            who: DomLife::DOM0,
            access: others,
        }]))
    }

    /// The list, unless it is empty or everybody's.
    pub fn new(entries: Vec<Entry>) -> Option<Acl> {
        let owner = entries.first()?.who;
        (owner != DomLife::ANY).then(|| Acl(Rc::new(entries)))
    }

    /// The owner.
    pub fn owner(&self) -> DomLife {
        self.0[0].who
    }

    /// How many entries.
    pub fn entries(&self) -> usize {
        self.0.len()
    }

    /// The list.
    pub fn list(&self) -> &[Entry] {
        &self.0
    }

    /// Where the list lies, which is the same for all that share it.
    pub fn address(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    /// Whether this is the same list in memory, which says that it is equal.
    pub fn same(&self, other: &Acl) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Whether `actor` has the right: owners and dom0 have every one, then the first entry that names the
    /// actor decides, then the owner's entry.
    pub fn allows(&self, actor: &Actor, right: Right) -> bool {
        if actor.is_privileged() || actor.is(self.owner()) {
            return true;
        }
        let entry = self.0[1..].iter().find(|entry| actor.is(entry.who));
        let access = entry.unwrap_or(&self.0[0]).access;
        match right {
            Right::Read => access.reads(),
            Right::Write => access.writes(),
            Right::Own => false,
        }
    }

    /// What a node gets that `actor` makes below one with this list: the same, but a guest owns what it makes.
    pub fn inherited_by(&self, actor: &Actor) -> Acl {
        if actor.is_privileged() || self.owner() == actor.who {
            return self.clone();
        }
        let mut entries = Vec::clone(&self.0);
        entries[0].who = actor.who;
        Acl(Rc::new(entries))
    }

    /// The same list, but owned by dom0.
    pub fn owned_by_dom0(&self) -> Acl {
        let mut entries = Vec::clone(&self.0);
        entries[0].who = DomLife::DOM0;
        Acl(Rc::new(entries))
    }

    /// The list as clients see it: entries of domains that are gone are left out, and what they owned is dom0's.
    pub fn permissions(&self, alive: impl Fn(DomLife) -> bool) -> Vec<Permission> {
        let entry = |entry: &Entry| Permission::new(entry.who.dom, entry.access);
        let mut first = entry(&self.0[0]);
        if !alive(self.owner()) {
            first.dom = DomId::DOM0;
        }
        let others = self.0[1..].iter().filter(|entry| alive(entry.who));
        core::iter::once(first).chain(others.map(entry)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(dom: u16) -> DomLife {
        DomLife {
            dom: DomId(dom),
            life: dom.into(),
        }
    }

    fn actor(dom: u16) -> Actor {
        Actor {
            who: guest(dom),
            target: None,
        }
    }

    fn acl(entries: &[(u16, Access)]) -> Acl {
        let entry = |(dom, access): &(u16, Access)| Entry {
            who: guest(*dom),
            access: *access,
        };
        Acl::new(entries.iter().map(entry).collect()).unwrap()
    }

    #[test]
    fn rights() {
        use Access::*;
        use Right::{Own, Read as R, Write as W};
        let every = Acl::new(vec![
            Entry {
                who: guest(1),
                access: None,
            },
            Entry {
                who: DomLife::ANY,
                access: Read,
            },
            Entry {
                who: guest(2),
                access: Both,
            },
        ])
        .unwrap();
        let none = acl(&[(1, None), (2, Read), (3, Write), (4, Both), (2, Both)]);
        let open = acl(&[(1, Both), (2, None)]);
        for (list, dom, right, allowed) in [
            (&none, 1, R, true),
            (&none, 1, W, true),
            (&none, 1, Own, true),
            (&none, 2, R, true),
            (&none, 2, W, false), // the first entry for a domain decides
            (&none, 3, R, false),
            (&none, 3, W, true),
            (&none, 4, W, true),
            (&none, 4, Own, false),
            (&none, 5, R, false),
            (&open, 5, R, true),
            (&open, 5, W, true),
            (&open, 5, Own, false),
            (&open, 2, R, false),
            (&every, 7, R, true),
            (&every, 7, W, false),
            (&every, 2, W, false), // DOMID_ANY stands before it
            (&every, 1, W, true),
        ] {
            assert_eq!(
                list.allows(&actor(dom), right),
                allowed,
                "{list:?} {dom} {right:?}"
            );
        }
        let everybody_s = vec![Entry {
            who: DomLife::ANY,
            access: None,
        }];
        assert_eq!(Acl::new(everybody_s), Option::None);
        assert!(none.allows(&Actor::DOM0, Own));
        let stub = Actor {
            target: Some(guest(1)),
            ..actor(9)
        };
        assert!(none.allows(&stub, Own));
        let reborn = Actor {
            who: DomLife {
                dom: DomId(1),
                life: 77,
            },
            target: Option::None,
        };
        assert!(!none.allows(&reborn, R), "a new domain of the same number");
    }

    #[test]
    fn inheritance_and_the_dead() {
        let parent = acl(&[(1, Access::Read), (2, Access::Both)]);
        assert!(parent.inherited_by(&Actor::DOM0).same(&parent));
        assert!(parent.inherited_by(&actor(1)).same(&parent));
        assert_eq!(parent.inherited_by(&actor(2)).owner(), guest(2));
        let text = |list: Vec<Permission>| format!("{list:?}");
        assert_eq!(text(parent.permissions(|_| true)), "[r1, b2]");
        assert_eq!(text(parent.permissions(|who| who != guest(1))), "[r0, b2]");
        assert_eq!(text(parent.permissions(|who| who != guest(2))), "[r1]");
    }
}
