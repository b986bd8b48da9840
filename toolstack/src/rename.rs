//! Gives a running guest another name.

use xen_hal::{Store, StoreExt};
use xen_sys::DomId;

use crate::claims::Claims;
use crate::config::name_fault;
use crate::error::{Error, Kind, Result};
use crate::index::{self, Answer};
use crate::nodes;
use crate::store::find_among_all;

/// Renames a guest; that it has the name already is good.
///
/// # Errors
/// The name makes no sense or is another guest's, or the store refuses.
pub fn rename(store: &impl Store, dom: DomId, uuid: &[u8; 16], name: &str) -> Result<()> {
    let step = "rename domain";
    let refused = |cause: String| {
        let error = Error::new(step, dom, cause).kind(Kind::Invalid);
        Err(error.hint("choose another name"))
    };
    if let Some(why) = name_fault(name) {
        return refused(format!("the name {name:?} {why}"));
    }
    // A guest that is created meanwhile must not take the name.
    let claims = Claims::begin()?;
    claims.add(&format!("name {name}"), true, &format!("the name {name}"))?;
    let failed = || Error::store("look for the name", name);
    let (indexed, taken) = match index::by_name(store, name).map_err(failed())? {
        Answer::Known(dom) => (true, dom),
        Answer::Unknown => (false, find_among_all(store, name).map_err(failed())?),
    };
    if let Some(other) = taken.filter(|other| *other != dom) {
        return refused(format!("domain {other} is called {name:?}"));
    }
    let own = |path: String| (format!("{path}/name"), name.to_string());
    let mut nodes = vec![own(nodes::home(dom)), own(nodes::vm(uuid))];
    if indexed {
        nodes.push(index::renamed(dom, name));
    }
    store.transaction::<(), Error>(|store, tx| {
        for (path, value) in &nodes {
            store.write(Some(tx), path, value.as_bytes())?;
        }
        Ok(())
    })
}
