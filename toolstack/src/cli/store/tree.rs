//! `xlrs store ls`: the tree as xenstore-ls shows it, or as JSON.

use std::io::{self, Write};

use serde_json::{Map, Value, json};
use xen_hal::{Store, StoreLink};
use xen_sys::Errno;
use xs_wire::{Permission, Request, StoreError, parse_permissions, words};

use super::value::escaped;

/// Most children whose contents are asked for at once.
const AT_ONCE: usize = 40;
/// xenstore-ls shows permissions at this column if the line leaves room.
const PERMISSIONS_COLUMN: usize = 60;
/// The width of what is not a terminal.
const WIDTH: usize = 80;
/// What a line keeps free for ` = "` and `\..."`.
const TAG: usize = 8;

/// A node on the way through the tree.
pub struct Node {
    pub path: String,
    /// 0 for a child of where the walk began.
    pub depth: usize,
    /// `None` if it cannot be read, or not any more.
    pub value: Option<Vec<u8>>,
    /// `None` if not asked for, or not readable.
    pub permissions: Option<Vec<Permission>>,
    children: Vec<String>,
}

impl Node {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// Goes through all below `top`, parents first. What vanishes meanwhile is left out.
pub fn walk<E: From<StoreError>>(
    store: &impl StoreLink,
    top: &str,
    permissions: bool,
    mut visit: impl FnMut(&Node) -> Result<(), E>,
) -> Result<(), E> {
    let names = store.list(None, top)?;
    // Not by calls within calls: a guest decides how deep its tree is.
    let mut levels = vec![fetch(store, top, &names, permissions, 0)?.into_iter()];
    while let Some(level) = levels.last_mut() {
        let Some(node) = level.next() else {
            levels.pop();
            continue;
        };
        visit(&node)?;
        if !node.children.is_empty() {
            let below = fetch(store, &node.path, &node.children, permissions, levels.len())?;
            levels.push(below.into_iter());
        }
    }
    Ok(())
}

/// The nodes of these names, with what is in them.
fn fetch(
    store: &impl StoreLink,
    parent: &str,
    names: &[String],
    permissions: bool,
    depth: usize,
) -> Result<Vec<Node>, StoreError> {
    let parent = parent.strip_suffix('/').unwrap_or(parent);
    let paths: Vec<String> = names
        .iter()
        .map(|name| format!("{parent}/{name}"))
        .collect();
    let mut nodes = Vec::with_capacity(paths.len());
    for paths in paths.chunks(AT_ONCE) {
        let requests: Vec<_> = paths
            .iter()
            .flat_map(|path| {
                let path = path.as_bytes();
                let read = [Request::Read(path), Request::Directory(path)];
                let rights = permissions.then_some(Request::GetPerms(path));
                read.into_iter().chain(rights)
            })
            .collect();
        let mut replies = store.exchange_all(None, &requests).into_iter();
        for path in paths {
            let (value, children) = (replies.next(), replies.next());
            let rights = if permissions { replies.next() } else { None };
            nodes.push(Node {
                path: path.clone(),
                depth,
                value: value.and_then(Result::ok),
                permissions: rights
                    .and_then(Result::ok)
                    .and_then(|body| parse_permissions(&body)),
                children: match children {
                    Some(Ok(body)) => names_in(&body),
                    Some(Err(error)) if error.errno == Errno::E2BIG => store.list(None, path)?,
                    // The stock tool too passes over what is gone or hidden.
                    Some(Err(error)) if [Errno::ENOENT, Errno::EACCES].contains(&error.errno) => {
                        Vec::new()
                    }
                    Some(Err(error)) => return Err(error),
                    None => Vec::new(),
                },
            });
        }
    }
    Ok(nodes)
}

fn names_in(body: &[u8]) -> Vec<String> {
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    words(body).map_or(Vec::new(), |words| words.map(text).collect())
}

/// How lines look.
pub struct Layout {
    whole_paths: bool,
    permissions: bool,
    /// Wider lines are cut.
    width: Option<usize>,
}

impl Layout {
    /// As wide as the terminal, if standard output is one.
    pub fn new(whole_paths: bool, permissions: bool) -> Layout {
        let width = match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) => usize::from(size.ws_col).checked_sub(2),
            Err(_) => Some(WIDTH),
        };
        Layout {
            whole_paths,
            permissions,
            width: width.filter(|_| !whole_paths),
        }
    }

    /// Prints a node.
    pub fn print(&self, out: &mut impl Write, node: &Node) -> io::Result<()> {
        out.write_all(self.line(node).as_bytes())
    }

    fn line(&self, node: &Node) -> String {
        // How much of a text has room behind so many columns; all of it once there is none at all.
        let room = |used: usize| self.width.and_then(|width| width.checked_sub(TAG + used));
        let cut =
            |text: &str, used| text[..room(used).unwrap_or(text.len()).min(text.len())].to_owned();
        let mut line = if self.whole_paths {
            node.path.clone()
        } else {
            " ".repeat(node.depth) + &cut(node.name(), node.depth)
        };
        let Some(value) = &node.value else {
            return line + ":\n";
        };
        let text = escaped(value);
        if self
            .width
            .is_some_and(|width| width < line.len() + value.len() + TAG)
        {
            line += &format!(" = \"{}\\...\"", cut(&text, line.len()));
        } else {
            line += &format!(" = \"{text}\"");
            if self.permissions {
                line.push(' ');
                let column = self.width.map_or(0, |width| width.min(PERMISSIONS_COLUMN));
                while line.len() < column {
                    line.push(if line.len() % 2 == 1 { '.' } else { ' ' });
                }
            }
        }
        if self.permissions {
            let rights = node.permissions.iter().flatten();
            let rights: Vec<_> = rights.map(Permission::to_string).collect();
            line += &format!("  ({})", rights.join(","));
        }
        line + "\n"
    }
}

/// Builds an object of objects.
pub struct Tree {
    /// The nodes from the top to where we are: name and what is known of it.
    open: Vec<(String, Map<String, Value>)>,
}

impl Tree {
    /// Begins with the node that everything is below.
    pub fn new(top: &str, value: &[u8], permissions: &[Permission]) -> Tree {
        let mut map = Map::new();
        map.insert("path".into(), json!(top));
        map.append(&mut contents(Some(value), Some(permissions)));
        Tree {
            open: vec![(String::new(), map)],
        }
    }

    /// Adds a node, in the order of [`walk`].
    pub fn add(&mut self, node: &Node) {
        self.close_to(node.depth + 1);
        let map = contents(node.value.as_deref(), node.permissions.as_deref());
        self.open.push((node.name().to_owned(), map));
    }

    /// The whole.
    pub fn finish(mut self) -> Value {
        self.close_to(1);
        let top = self.open.pop().map(|(_, map)| map);
        Value::Object(top.unwrap_or_default())
    }

    fn close_to(&mut self, depth: usize) {
        while self.open.len() > depth
            && let Some((name, map)) = self.open.pop()
            && let Some((_, parent)) = self.open.last_mut()
        {
            let children = parent.entry("children").or_insert_with(|| json!({}));
            children[name] = Value::Object(map);
        }
    }
}

/// `value` if it is text, else `value_hex`; neither if it cannot be read. `permissions` as strings.
pub fn contents(value: Option<&[u8]>, permissions: Option<&[Permission]>) -> Map<String, Value> {
    let mut map = Map::new();
    match value.map(std::str::from_utf8) {
        Some(Ok(text)) => {
            map.insert("value".into(), json!(text));
        }
        Some(Err(_)) => {
            let bytes = value.unwrap_or_default().iter();
            let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
            map.insert("value_hex".into(), json!(hex));
        }
        None => {}
    }
    if let Some(list) = permissions {
        let list: Vec<_> = list.iter().map(Permission::to_string).collect();
        map.insert("permissions".into(), json!(list));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_sys::DomId;

    fn node(path: &str, depth: usize, value: &[u8]) -> Node {
        Node {
            path: path.into(),
            depth,
            value: Some(value.to_vec()),
            permissions: Some(vec![Permission::owner(DomId(0))]),
            children: Vec::new(),
        }
    }

    fn layout(width: Option<usize>, permissions: bool) -> Layout {
        Layout {
            whole_paths: false,
            permissions,
            width,
        }
    }

    /// What Debian's xenstore-ls prints.
    #[test]
    fn lines() {
        let z = |count: usize| "z".repeat(count);
        let plain = layout(Some(80), false);
        let check = |layout: &Layout, node: &Node, line: String| {
            assert_eq!(layout.line(node), line + "\n");
        };
        let k = |count| node("/p/k69", 0, z(count).as_bytes());
        check(&plain, &k(69), format!("k69 = \"{}\"", z(69)));
        check(&plain, &k(70), format!("k69 = \"{}\\...\"", z(69)));
        // The length that counts is the value's, what is cut is the text.
        let odd = |count: usize| node("/p/k69", 0, &vec![1; count]);
        check(
            &plain,
            &odd(68),
            format!("k69 = \"{}\"", r"\001".repeat(68)),
        );
        let text = r"\001".repeat(20);
        check(&plain, &odd(70), format!("k69 = \"{}\\...\"", &text[..69]));
        let name = |count: usize, value: &[u8]| node(&format!("/n/{}", z(count)), 0, value);
        check(&plain, &name(71, b"v"), format!("{} = \"v\"", z(71)));
        check(&plain, &name(72, b"v"), format!("{} = \"\\...\"", z(72)));
        check(&plain, &name(89, b""), format!("{} = \"\"", z(72)));
        let rights = layout(Some(80), true);
        let dots = |count| " .".repeat(count);
        let at = |depth, value: &str| node("/x/l1", depth, value.as_bytes());
        check(&rights, &at(0, ""), format!("l1 = \"\" {}  (n0)", dots(26)));
        check(&rights, &at(1, ""), format!(" l1 = \"\"{}  (n0)", dots(26)));
        check(
            &rights,
            &at(0, &z(51)),
            format!("l1 = \"{}\" .  (n0)", z(51)),
        );
        check(
            &rights,
            &at(0, &z(52)),
            format!("l1 = \"{}\"   (n0)", z(52)),
        );
        check(
            &rights,
            &at(0, &z(71)),
            format!("l1 = \"{}\\...\"  (n0)", z(70)),
        );
        let narrow = layout(Some(18), true);
        check(
            &narrow,
            &at(5, &z(9)),
            "     l1 = \"zzz\\...\"  (n0)".into(),
        );
        check(&narrow, &at(0, ""), format!("l1 = \"\" {}  (n0)", dots(5)));
        // Deeper than the line is wide.
        check(
            &narrow,
            &at(20, &z(9)),
            format!("{}l1 = \"{}\\...\"  (n0)", " ".repeat(20), z(9)),
        );
        let whole = Layout {
            whole_paths: true,
            ..layout(None, true)
        };
        check(
            &whole,
            &at(0, &z(200)),
            format!("/x/l1 = \"{}\"   (n0)", z(200)),
        );
        let hidden = Node {
            value: None,
            ..at(1, "")
        };
        check(&plain, &hidden, " l1:".into());
    }

    #[test]
    fn json_nests() {
        let mut tree = Tree::new("/", b"", &[]);
        for (path, depth, value) in [
            ("/a", 0, &b"1"[..]),
            ("/a/b", 1, b"\xff"),
            ("/a/b/c", 2, b""),
            ("/d", 0, b""),
        ] {
            tree.add(&node(path, depth, value));
        }
        let n0 = json!(["n0"]);
        let expected = json!({
            "path": "/", "value": "", "permissions": [],
            "children": {
                "a": {"value": "1", "permissions": n0, "children": {
                    "b": {"value_hex": "ff", "permissions": n0, "children": {
                        "c": {"value": "", "permissions": n0}}}}},
                "d": {"value": "", "permissions": n0}},
        });
        assert_eq!(tree.finish(), expected);
    }
}
