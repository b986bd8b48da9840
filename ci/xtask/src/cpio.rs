//! Builds a root file system in memory and writes it as an uncompressed cpio archive ("newc"),
//! the form that Linux unpacks at boot.

use std::collections::BTreeMap;

/// What lies at one path.
enum Node {
    Dir,
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
    CharDev { major: u32, minor: u32 },
}

/// Files by path, without a leading slash.
#[derive(Default)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// An empty tree.
    pub fn new() -> Tree {
        Tree::default()
    }

    /// Whether something lies at `path`.
    pub fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// A folder, with those above it.
    pub fn dir(&mut self, path: &str) {
        self.parents(path);
        self.0.entry(path.into()).or_insert(Node::Dir);
    }

    /// A file.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.parents(path);
        let bytes = bytes.into();
        self.0.insert(path.into(), Node::File { mode, bytes });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.insert(path.into(), Node::Link(target.into()));
    }

    /// A character device.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.0.insert(path.into(), Node::CharDev { major, minor });
    }

    /// Takes over what another tree has, under other paths.
    pub fn graft(&mut self, other: Tree, path: impl Fn(&str) -> String) {
        for (old, node) in other.0 {
            let new = path(&old);
            self.parents(&new);
            self.0.insert(new, node);
        }
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].into()).or_insert(Node::Dir);
        }
    }

    /// The archive. The same tree gives the same bytes.
    pub fn to_cpio(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, node)) in (1u32..).zip(&self.0) {
            let (mode, links, device, bytes): (u32, u32, _, &[u8]) = match node {
                Node::Dir => (0o040_755, 2, (0, 0), &[]),
                Node::File { mode, bytes } => (0o100_000 | mode, 1, (0, 0), bytes),
                Node::Link(target) => (0o120_777, 1, (0, 0), target.as_bytes()),
                Node::CharDev { major, minor } => (0o020_600, 1, (*major, *minor), &[]),
            };
            entry(&mut out, path, inode, mode, links, device, bytes);
        }
        entry(&mut out, "TRAILER!!!", 0, 0, 1, (0, 0), &[]);
        // Archives may follow each other; each begins at a multiple of four (here of 512) bytes.
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn entry(
    out: &mut Vec<u8>,
    path: &str,
    inode: u32,
    mode: u32,
    links: u32,
    (major, minor): (u32, u32),
    bytes: &[u8],
) {
    let fields = [
        inode,
        mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        bytes.len() as u32,
        0, // device of the file: major
        0, // and minor
        major,
        minor,
        path.len() as u32 + 1,
        0, // check: none in this form
    ];
    out.extend_from_slice(b"070701");
    for f in fields {
        out.extend_from_slice(format!("{f:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut tree = Tree::new();
        tree.file("a/b/file", 0o755, b"12345".to_vec());
        tree.link("a/l", "b/file");
        let bytes = tree.to_cpio();
        assert_eq!(bytes.len() % 512, 0);
        let find = |s: &[u8]| bytes.windows(s.len()).position(|w| w == s).unwrap();
        assert!(find(b"a\0") < find(b"a/b\0"));
        assert!(find(b"a/b\0") < find(b"a/b/file\0"));
        assert_eq!((find(b"12345")) % 4, 0);
    }

    /// busybox or GNU cpio as second witness, where the host has one.
    #[test]
    fn another_cpio_reads_it() {
        let mut tree = Tree::new();
        tree.file("dir/x", 0o644, b"hello".to_vec());
        let Ok(mut child) = Command::new("cpio")
            .arg("-it")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            eprintln!("no cpio on this machine: nothing compared");
            return;
        };
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&tree.to_cpio()).unwrap();
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "dir\ndir/x\n");
    }
}
