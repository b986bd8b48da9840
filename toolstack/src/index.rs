//! Who has which name and which disk, kept in the store beside the guests themselves: a look takes the same
//! time however many guests there are. The supervisor keeps it complete, stock `xl`'s guests included; what
//! an entry says is believed only after a look at the guest itself. Without a supervisor nobody asks here.

use std::path::Path;

use xen_hal::{Store, StoreExt, TxId};
use xen_sys::DomId;
use xs_wire::StoreError;

use crate::config::DiskFormat;
use crate::nodes::{self, Nodes};
use crate::prepare::{Disk, Target};
use crate::storage::Id;
use crate::store::{children, text, texts};
use crate::supervise;

/// The folder of the index.
pub const TOP: &str = "/tool/xlrs/index";
/// The folders in it.
pub const FOLDERS: [&str; 2] = ["/tool/xlrs/index/name", "/tool/xlrs/index/disk"];
/// Longest name that stands in a path as it is.
const MAX_PLAIN: usize = 200;

/// An answer of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Nobody keeps it: look at every guest.
    Unknown,
    /// So it is.
    Known(T),
}

/// The values of nodes, each `None` if there is none.
pub type Texts = Vec<Option<String>>;

/// A disk of a running guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Whose it is.
    pub dom: String,
    /// Its number.
    pub number: String,
    /// Whether the guest writes to it.
    pub writable: bool,
}

/// Where the guest of a name stands, below [`TOP`].
fn name_entry(name: &str) -> String {
    let mut out = String::from("name/");
    if name.is_empty() {
        // No guest has this name, but it may be asked for.
        out.push('@');
    }
    if name.len() > MAX_PLAIN {
        // No two names of a host are this long and have the same sum; and if, they are compared in the end.
        out.push_str(&format!("@long{:016x}", crate::claims::sum(name)));
        return out;
    }
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => out.push(byte as char),
            _ => out.push_str(&format!("@{byte:02x}")),
        }
    }
    out
}

fn disk_folder(id: Id) -> String {
    match id {
        Id::File(device, inode) => format!("disk/f{device:x}-{inode:x}"),
        Id::Block(major, minor) => format!("disk/b{major:x}-{minor:x}"),
        Id::Script => "disk/script".into(),
    }
}

/// A node that is there only while a running guest has a disk on this storage.
pub fn disk_node(id: Id) -> String {
    format!("{TOP}/{}", disk_folder(id))
}

/// The entries of a guest, below [`TOP`], with their values.
pub fn entries(
    dom: DomId,
    name: &str,
    disks: impl IntoIterator<Item = (Id, u32, bool)>,
) -> Vec<(String, String)> {
    let mut out = vec![(name_entry(name), dom.to_string())];
    for (id, number, writable) in disks {
        let mode = if writable { "w" } else { "r" };
        out.push((format!("{}/{dom}-{number}", disk_folder(id)), mode.into()));
    }
    out
}

/// The nodes of a guest of ours: its entries, and the list of them by which they are removed.
pub fn guest(dom: DomId, name: &str, disks: &[Disk]) -> Nodes {
    let disks = disks
        .iter()
        .filter(|disk| disk.id != Id::Script)
        .map(|disk| (disk.id, disk.config.number, disk.config.writable));
    let entries = entries(dom, name, disks);
    let mut nodes = Nodes::default();
    let list: Vec<&str> = entries.iter().map(|(entry, _)| entry.as_str()).collect();
    nodes.put(list_node(dom), list.join(" "));
    for (entry, value) in &entries {
        nodes.put(format!("{TOP}/{entry}"), &**value);
    }
    nodes
}

/// The entry of a guest that is renamed, while somebody keeps the index; it removes the old one.
pub fn renamed(dom: DomId, name: &str) -> (String, String) {
    (format!("{TOP}/{}", name_entry(name)), dom.to_string())
}

/// The entry of a disk that a running guest is given, while somebody keeps the index.
pub fn attached(dom: DomId, disk: &Disk) -> Nodes {
    let of_disk = [(disk.id, disk.config.number, disk.config.writable)];
    let mut nodes = Nodes::default();
    for (entry, value) in entries(dom, "", of_disk).into_iter().skip(1) {
        nodes.put(format!("{TOP}/{entry}"), value);
    }
    nodes
}

fn list_node(dom: DomId) -> String {
    format!("{}/xlrs", nodes::libxl(dom))
}

/// Removes the entries of a guest of ours.
///
/// # Errors
/// The store's.
pub fn remove_guest(store: &impl Store, tx: TxId, dom: DomId) -> Result<(), StoreError> {
    match text(store, Some(tx), &list_node(dom))? {
        None => Ok(()),
        Some(list) => remove(store, tx, dom, list.split(' ')),
    }
}

/// Removes entries, as far as they are this guest's.
///
/// # Errors
/// The store's.
pub fn remove<'a>(
    store: &impl Store,
    tx: TxId,
    dom: DomId,
    entries: impl Iterator<Item = &'a str>,
) -> Result<(), StoreError> {
    let tx = Some(tx);
    for entry in entries {
        let path = format!("{TOP}/{entry}");
        if entry.starts_with("name/") {
            // Another guest may have been given this name meanwhile.
            if text(store, tx, &path)? == Some(dom.to_string()) {
                store.rm_if_present(tx, &path)?;
            }
        } else if let Some((folder, _)) = path.rsplit_once('/')
            && entry.starts_with("disk/")
        {
            store.rm_if_present(tx, &path)?;
            if children(store, tx, folder)?.is_empty() {
                store.rm_if_present(tx, folder)?;
            }
        }
    }
    Ok(())
}

fn lives(pid: &str) -> bool {
    let pid = pid.trim().parse::<u32>();
    pid.is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// Whether somebody keeps the index.
///
/// # Errors
/// The store's.
pub fn is_kept(store: &impl Store) -> Result<bool, StoreError> {
    let keeper = text(store, None, supervise::NODE)?;
    Ok(keeper.is_some_and(|pid| lives(&pid)))
}

/// The guest with this name.
///
/// # Errors
/// The store's.
pub fn by_name(store: &impl Store, name: &str) -> Result<Answer<Option<DomId>>, StoreError> {
    by_name_and(store, name, Vec::new()).map(|(found, _)| found)
}

/// The guest with this name, and the texts of other nodes, for which nothing more is waited for.
///
/// # Errors
/// The store's.
pub fn by_name_and(
    store: &impl Store,
    name: &str,
    mut others: Vec<String>,
) -> Result<(Answer<Option<DomId>>, Texts), StoreError> {
    others.extend([
        format!("{TOP}/{}", name_entry(name)),
        supervise::NODE.to_string(),
    ]);
    let mut values = texts(store, None, &others)?;
    let (keeper, dom) = (values.pop().flatten(), values.pop().flatten());
    if !keeper.is_some_and(|pid| lives(&pid)) {
        return Ok((Answer::Unknown, values));
    }
    let found = match dom.and_then(|dom| dom.parse().ok().map(DomId)) {
        None => None,
        Some(dom) => {
            let found = crate::store::name_of(store, dom)?;
            (found.as_deref() == Some(name)).then_some(dom)
        }
    };
    Ok((Answer::Known(found), values))
}

/// The disks of running guests on this storage.
///
/// # Errors
/// The store's.
pub fn users(store: &impl Store, id: Id) -> Result<Vec<User>, StoreError> {
    let folder = disk_node(id);
    let mut out = Vec::new();
    for entry in children(store, None, &folder)? {
        let Some((dom, number)) = entry.split_once('-') else {
            continue;
        };
        let mode = format!("/local/domain/0/backend/vbd/{dom}/{number}/mode");
        if let Some(mode) = text(store, None, &mode)? {
            out.push(User {
                dom: dom.to_string(),
                number: number.to_string(),
                writable: mode.contains('w'),
            });
        }
    }
    Ok(out)
}

/// The disks of all running guests with the storage behind each: takes the longer the more there are.
///
/// # Errors
/// The store's.
pub fn all_users(store: &impl Store) -> Result<Vec<(Id, User)>, StoreError> {
    let mut out = Vec::new();
    for dom in children(store, None, "/local/domain/0/backend/vbd")? {
        out.extend(users_of(store, &dom)?);
    }
    Ok(out)
}

/// The disks of one guest with the storage behind each.
///
/// # Errors
/// The store's.
pub fn users_of(store: &impl Store, dom: &str) -> Result<Vec<(Id, User)>, StoreError> {
    let above = format!("/local/domain/0/backend/vbd/{dom}");
    let mut out = Vec::new();
    for number in children(store, None, &above)? {
        let paths =
            ["mode", "params", "physical-device"].map(|key| format!("{above}/{number}/{key}"));
        let [mode, params, device]: [Option<String>; 3] =
            texts(store, None, &paths)?.try_into().unwrap_or_default();
        let path = params.as_deref().map(DiskFormat::without_prefix);
        let storage = path
            .filter(|path| path.starts_with('/'))
            .and_then(|path| Target::of(Path::new(path)).ok().flatten())
            .or_else(|| Target::of_numbers(&device?));
        if let Some(storage) = storage {
            let user = User {
                dom: dom.to_string(),
                number,
                writable: mode.is_some_and(|mode| mode.contains('w')),
            };
            out.push((Id::of(storage), user));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_paths() {
        for (name, entry) in [
            ("web", "name/web"),
            ("Web_1-a", "name/Web_1-a"),
            ("a.b", "name/a@2eb"),
            ("a b", "name/a@20b"),
            ("é", "name/@c3@a9"),
        ] {
            assert_eq!(name_entry(name), entry);
        }
        let long = "n".repeat(3000);
        assert!(name_entry(&long).len() < 40);
        assert_ne!(name_entry(&long), name_entry(&long[1..]));
    }

    #[test]
    fn a_guest_has_an_entry_for_each_thing() {
        let disks = [
            (Id::File(0x1f, 0x2e), 51712, true),
            (Id::Block(8, 17), 51728, false),
        ];
        assert_eq!(
            entries(DomId(5), "web", disks),
            [
                ("name/web".into(), "5".into()),
                ("disk/f1f-2e/5-51712".into(), "w".into()),
                ("disk/b8-11/5-51728".into(), "r".to_string()),
            ]
        );
    }
}
