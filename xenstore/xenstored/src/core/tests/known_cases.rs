//! What the unit tests of the live oxenstored are about, re-stated as rows: 25 short stories, told in lines, with the outcome
//! that the protocol text and C xenstored ask for where oxenstored's is another.

use super::*;

/// One line is `WHO[/TRANSACTION] WHAT ARGUMENTS = OUTCOME`. WHO is a domain, 0 or one that [`Store::guest`] makes when it is
/// first named; OUTCOME is `ok`, an error's name, or text in brackets. The world's own lines begin with `stops`, `dies` or
/// `quota`; `WHO sees` takes the events that have come.
struct Story {
    store: Store,
    conns: BTreeMap<u16, ConnId>,
    transactions: BTreeMap<String, u32>,
}

impl Story {
    fn conn(&mut self, dom: u16) -> ConnId {
        if dom == 0 {
            return D0;
        }
        let before = self.conns.get(&dom).copied();
        before.unwrap_or_else(|| {
            let conn = self.store.guest(dom);
            self.conns.insert(dom, conn);
            conn
        })
    }

    /// Does what a line says; what came of it.
    fn tell(&mut self, words: &[&str]) -> Result<String, Errno> {
        let (who, rest) = words.split_first().unwrap();
        let doms = |words: &[&str]| -> Vec<u16> {
            words.iter().map(|word| word.parse().unwrap()).collect()
        };
        match *who {
            "stops" | "dies" => {
                for dom in doms(rest) {
                    match *who {
                        "dies" => self.store.world.domains.remove(&dom),
                        _ => self.store.world.domains.insert(dom, DomainState::Shutdown),
                    };
                }
                self.store.core.domains_changed(&mut self.store.world);
                return Ok(String::new());
            }
            "quota" => {
                let value = rest[1].parse().unwrap();
                let request = Request::SetQuota(None, rest[0].as_bytes(), value);
                return self.store.ask(D0, 0, request).map(|_| String::new());
            }
            _ => {}
        }
        let (who, tx) = who.split_once('/').unwrap_or((who, ""));
        let dom = who.parse().unwrap();
        let conn = self.conn(dom);
        let id = self.transactions.get(tx).copied().unwrap_or(0);
        let s = &mut self.store;
        let done = |result: Result<Vec<u8>, Errno>| result.map(|_| String::new());
        match *rest {
            ["read", path] => s.read(conn, id, path),
            ["ls", path] => s.list(conn, id, path),
            ["perms", path] => s.perms(conn, path),
            ["write", path, ref value @ ..] => s
                .write(conn, id, path, value.first().unwrap_or(&""))
                .map(|()| String::new()),
            ["mkdir", path] => done(s.ask(conn, id, Request::Mkdir(path.as_bytes()))),
            ["rm", path] => s.rm(conn, id, path).map(|()| String::new()),
            ["chmod", path, ref list @ ..] => s
                .set_perms(conn, id, path, &list.join(" "))
                .map(|()| String::new()),
            ["watch", path, ref rest @ ..] => {
                let body = [&[path], rest].concat().join("\0") + "\0";
                match s.raw(conn, Op::Watch.code(), 0, body.as_bytes()) {
                    (Op::Error, body) => Err(xs_wire::parse_error(&body)),
                    _ => Ok(String::new()),
                }
            }
            ["start"] => {
                let id = s.start(conn);
                self.transactions.insert(tx.to_owned(), id);
                Ok(String::new())
            }
            ["commit"] => s.commit(conn, id).map(|()| String::new()),
            ["abort"] => done(s.ask(conn, id, Request::TransactionEnd(false))),
            ["introduce", of] => {
                let of = doms(&[of])[0];
                s.world.domains.insert(of, DomainState::Running);
                done(s.ask(conn, 0, Request::Introduce(DomId(of), 7, Port(5))))
            }
            ["release", of] => done(s.ask(conn, 0, Request::Release(DomId(doms(&[of])[0])))),
            ["target", a, b] => {
                let [a, b] = doms(&[a, b])[..] else { panic!() };
                done(s.ask(conn, 0, Request::SetTarget(DomId(a), DomId(b))))
            }
            ["sees"] => Ok(s.events(conn).join(", ")),
            ["owns"] => {
                let usage = s.core.usage(&s.world, DomId(dom)).unwrap();
                Ok(usage.get("nodes").to_string())
            }
            _ => panic!("{words:?}"),
        }
    }
}

fn check(stories: &[(&str, &str)]) {
    for (name, lines) in stories {
        let mut story = Story {
            store: Store::new(),
            conns: BTreeMap::new(),
            transactions: BTreeMap::new(),
        };
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (what, outcome) = line.split_once(" = ").unwrap_or((line, "ok"));
            let words: Vec<&str> = what.split_whitespace().collect();
            let got = match story.tell(&words) {
                Ok(text) if !outcome.starts_with('[') => {
                    assert_eq!(text, "", "{name}: {line}");
                    "ok".to_owned()
                }
                Ok(text) => format!("[{text}]"),
                Err(errno) => errno.name().unwrap().to_owned(),
            };
            assert_eq!(got, outcome, "{name}: {line}");
        }
        story.store.check();
    }
}

#[test]
fn nodes_and_permissions() {
    check(&[
        (
            "what is above a new node is made, and hidden as it is",
            "0 read /top = ENOENT
             3 read /top = EACCES
             0 write /top/leaf text
             3 read /top/leaf = EACCES
             3 read /top = EACCES
             0 read /top = []
             0 ls /top = [leaf]",
        ),
        (
            "permissions come back as they were set",
            "2 ls .. = EINVAL
             4 sees = []
             6 sees = []
             0 write /p
             0 chmod /p w4 r2 b6
             0 perms /p = [w4 r2 b6]
             0 chmod /p w4 r99 = ENOENT",
        ),
        (
            "only dom0 gives a node to another",
            "4 sees = []
             2 sees = []
             0 write /p
             0 chmod /p r4 b2
             2 chmod /p r2 b4 = EACCES
             4 chmod /p r2 b4 = EPERM
             4 chmod /p r4 w2
             0 chmod /p r2 b4
             2 perms /p = [r2 b4]",
        ),
        (
            "a directory made in a transaction is one",
            "2 sees = []
             0/t start
             0/t mkdir /made/deep/down
             0/t chmod /made/deep/down r2 w0
             0/t read /made/deep/down = []
             0 read /made = ENOENT
             0/t commit
             0 ls /made/deep = [down]
             2 read /made/deep/down = []",
        ),
        (
            "an empty value is a value",
            "0 write /empty
             0 read /empty = []
             0 write /empty x
             0 write /empty
             0 read /empty = []",
        ),
        (
            "to remove what is absent",
            "0 rm /none
             0 rm /none/below = ENOENT
             0 write /none value
             0 rm /none/below
             0 rm /none
             0 read /none = ENOENT",
        ),
        (
            "a target's rights are given by dom0",
            "7 sees = []
             5 sees = []
             0 write /of5 old
             0 chmod /of5 n5
             7 write /of5 new = EACCES
             7 target 7 5 = EACCES
             0 target 7 5
             7 write /of5 new
             0 read /of5 = [new]
             0 target 7 99 = ENOENT",
        ),
    ]);
}

#[test]
fn transactions() {
    check(&[
        (
            "nobody sees what is not committed",
            "0/t start
             0/t write /in/t 1
             0 read /in/t = ENOENT
             0/t read /in/t = [1]
             0/t commit
             0 read /in/t = [1]",
        ),
        (
            "changes of different nodes merge",
            "0 mkdir /left/leaf
             0 mkdir /right/leaf
             0/a start
             0/b start
             0/a write /left/leaf 1
             0/b write /right/leaf 2
             0/a commit
             0/b commit
             0 read /left/leaf = [1]
             0 read /right/leaf = [2]",
        ),
        (
            "two devices made at once, in one back end's directory",
            "0 mkdir /local/domain/0/backend/vif
             0/a start
             0/b start
             0/a write /local/domain/0/backend/vif/8/0 a
             0/a write /local/domain/8/device/vif/0 a
             0/b write /local/domain/0/backend/vif/9/0 b
             0/b write /local/domain/9/device/vif/0 b
             0/a commit
             0/b commit
             0 ls /local/domain/0/backend/vif = [8 9]
             0 read /local/domain/8/device/vif/0 = [a]
             0 read /local/domain/9/device/vif/0 = [b]",
        ),
        (
            "what was listed has changed: a real conflict",
            "0 mkdir /dir
             0/t start
             0/t ls /dir = []
             0 write /dir/new first
             0/t write /dir/new second
             0/t commit = EAGAIN
             0 read /dir/new = [first]",
        ),
    ]);
}

#[test]
fn watches() {
    check(&[
        (
            "writes are told, reads are not",
            "0 mkdir /open
             0 chmod /open b0
             0 sees = []
             0 watch /open t
             0 sees = [/open t]
             0 write /open 1
             0 sees = [/open t]
             4 write /open 2
             0 sees = [/open t]
             4 read /open = [2]
             4 read /open/none = ENOENT
             0 ls /open = []
             0 sees = []",
        ),
        (
            "a relative watch is told relative paths, whoever writes",
            "0 write /local/domain/0/vm x
             0 watch vm t
             0 sees = [vm t]
             0 write /local/domain/0/vm/uuid y
             0 sees = [vm/uuid t]
             0 write vm y
             0 sees = [vm t]",
        ),
        (
            "who may not read is not told",
            "4 watch /hidden t
             4 sees = [/hidden t]
             0 write /hidden/leaf 1
             2 sees = []
             4 read /hidden/leaf = EACCES
             4 sees = []
             0 chmod /hidden/leaf n0 w2
             4 sees = []
             0 chmod /hidden/leaf r0
             4 sees = [/hidden/leaf t]",
        ),
        (
            "a transaction tells when it commits, or not at all",
            "0 watch /w t
             0 sees = [/w t]
             0/a start
             0/a write /w 1
             0 sees = []
             0/a abort
             0 sees = []
             0/b start
             0/b write /w 2
             0/b write /w 3
             0/b commit
             0 sees = [/w t]",
        ),
        (
            "introducing and releasing are told",
            "0 watch @introduceDomain i
             0 watch @releaseDomain r
             0 sees = [@introduceDomain i, @releaseDomain r]
             0 introduce 5
             0 sees = [@introduceDomain i]
             0 introduce 5
             0 sees = []
             0 release 5
             0 sees = [@releaseDomain r]
             0 release 5 = ENOENT",
        ),
        (
            "deaths are told once for all, and one by one to who wants to know",
            "1 sees = []
             2 sees = []
             3 sees = []
             4 sees = []
             5 sees = []
             0 watch @releaseDomain r
             0 sees = [@releaseDomain r]
             stops 1
             0 sees = [@releaseDomain r]
             dies 2 3
             0 sees = [@releaseDomain r]
             0 watch @releaseDomain each 1
             0 sees = [@releaseDomain each]
             dies 1 4 5
             0 sees = [@releaseDomain r, @releaseDomain/1 each, @releaseDomain/4 each, @releaseDomain/5 each]",
        ),
        (
            "a removal is told to watches below, on their own paths",
            "0 mkdir /a/b/c/d
             0 write /a/x/y z
             0 watch /a/b/c one
             0 watch /a/x/y two
             0 watch /a/none three
             0 sees = [/a/b/c one, /a/x/y two, /a/none three]
             0 rm /a
             0 sees = [/a/b/c one, /a/x/y two]",
        ),
        (
            "what failed is not told",
            "0 mkdir /own
             0 watch /own t
             0 sees = [/own t]
             4 write /own/x/y 1 = EACCES
             0 sees = []
             0 chmod /own n4
             0 sees = [/own t]
             4 write /own/x/y 1
             0 sees = [/own/x/y t]",
        ),
        (
            "a watch of a depth",
            "0 mkdir /d
             0 chmod /d b0
             0 watch /d one 1
             0 watch /d one 3 = EEXIST
             0 watch /e neg -1 = EINVAL
             0 watch /d two 2
             0 watch /d none 0
             0 sees = [/d one, /d two, /d none]
             0 write /d 1
             0 sees = [/d one, /d two, /d none]
             4 write /d/x 1
             0 sees = [/d/x one, /d/x two]
             0 write /d/x/y 1
             0 sees = [/d/x/y two]
             0 write /d/x/y/z 1
             0 sees = []
             0 rm /d/x
             0 sees = [/d/x one, /d/x two]
             0 read /d = [1]
             0 sees = []",
        ),
        (
            "special watches know no depth but one",
            "0 watch @introduceDomain t -1 = EINVAL
             0 watch @releaseDomain t 0 = EINVAL
             0 watch @releaseDomain t 2 = EINVAL
             0 watch @releaseDomain/5 t 1 = EINVAL
             0 watch @introduceDomain i 1
             0 watch @releaseDomain r 1
             0 watch @releaseDomain/5 five
             0 sees = [@introduceDomain i, @releaseDomain r, @releaseDomain/5 five]
             0 introduce 5
             0 sees = [@introduceDomain/5 i]
             0 introduce 6
             0 sees = [@introduceDomain/6 i]
             0 release 5
             0 sees = [@releaseDomain/5 five, @releaseDomain/5 r]
             0 release 6
             0 sees = [@releaseDomain/6 r]",
        ),
    ]);
}

#[test]
fn quotas() {
    check(&[
        (
            "nodes are counted when they come and go",
            "4 owns = [1]
             4 write a 1
             4 owns = [2]
             4 write a/b/c 1
             4 owns = [4]
             4 rm a/b/c
             4 owns = [3]
             4 rm a
             4 owns = [1]
             4 rm a
             4 owns = [1]",
        ),
        (
            "those of a transaction when it commits",
            "4 write data/test 1
             5 write data/test 1
             4 owns = [3]
             4/a start
             5/b start
             4/a rm data/test
             5/b write data/test/more 1
             4 owns = [3]
             5 owns = [3]
             4/a commit
             5/b commit
             4 owns = [2]
             5 owns = [4]",
        ),
        (
            // 24 bytes for the node, 8 for its one permission and one for the end are C's.
            "a value may be so long",
            "4 write v 1
             quota node-size 39
             4 write v 123456
             4 write v 1234567 = ENOSPC
             4 read v = [123456]
             quota node-size 40
             4 write v 1234567
             0 write /of-dom0 longer-than-any-guest-may",
        ),
        (
            "so many nodes a guest may own",
            "4 owns = [1]
             quota nodes 3
             4 write first 1
             4 write second 1
             4 write third 1 = ENOSPC
             4 write a/b 1 = ENOSPC
             quota nodes 4
             4 write third 1
             4 write third 2
             4 write fourth 1 = ENOSPC
             4 rm first
             4 write fourth 1
             4 owns = [4]",
        ),
    ]);
}
