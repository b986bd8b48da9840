//! Asks guests to shut down or reboot, and waits for it.

use std::time::{Duration, Instant};

use xen_hal::{DomainControl, StoreExt};
use xen_sys::DomId;

use crate::error::{Error, Kind, Result};
use crate::store::{StoreControl, text};
use crate::{destroy, nodes, supervise};

/// How long a guest may take to take notice.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to shut down.
const DOWN_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a guest is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To power off.
    Poweroff,
    /// To reboot.
    Reboot,
}

impl Request {
    const fn word(self) -> &'static str {
        match self {
            Request::Poweroff => "poweroff",
            Request::Reboot => "reboot",
        }
    }
}

/// Until what is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It has shut down, or is gone.
    ShutDown,
    /// It is gone.
    Gone,
}

/// Asks a guest, and waits until it has taken notice.
///
/// # Errors
/// There is no such guest, or it does not answer within a minute.
pub fn ask<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    dom: DomId,
    request: Request,
) -> Result<()> {
    const TOKEN: &str = "xlrs-ack";
    let step = "ask to shut down domain";
    if dom == DomId::DOM0 {
        let cause = "it is dom0: the whole host would go down, and all guests with it";
        return Err(Error::new(step, dom, cause)
            .kind(Kind::Invalid)
            .hint("use the host's own `shutdown` or `reboot`"));
    }
    let info = control
        .info(dom)
        .map_err(Error::hal("ask Xen about domain", dom))?
        .ok_or_else(|| {
            Error::new(step, dom, "there is no such domain")
                .kind(Kind::NoSuchDomain)
                .hint("`xlrs list` shows those that exist")
        })?;
    if supervise::is_waiting(&info) {
        // It runs no more, and is created again unless it is removed.
        return match request {
            Request::Poweroff => destroy::destroy(control, store, dom),
            Request::Reboot => Ok(()),
        };
    }
    let node = format!("{}/control/shutdown", nodes::home(dom));
    let run = || {
        store.transaction(|store, tx| {
            store.read(Some(tx), &nodes::home(dom))?;
            store.write(Some(tx), &node, request.word().as_bytes())
        })?;
        store.watch(&node, TOKEN)?;
        let deadline = Instant::now() + ACK_TIMEOUT;
        loop {
            match text(store, None, &node)? {
                Some(value) if value == request.word() => {}
                // The guest empties the node; one that is gone answers, too.
                _ => return Ok(true),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A guest that writes its node again and again must not hold us up.
            if left.is_zero() || store.wait_event(left)?.is_none() {
                return Ok(false);
            }
        }
    };
    let answered = run();
    // Nothing hangs on it: the connection ends soon.
    let _ = store.unwatch(&node, TOKEN);
    match answered.map_err(Error::store(step, dom))? {
        true => Ok(()),
        false => {
            // A wish nobody has taken notice of must not come true much later.
            let _ = store.write(None, &node, b"");
            Err(Error::new(step, dom, "it has not taken notice for 60 s")
                .kind(Kind::GuestTimedOut)
                .hint("`xlrs destroy` removes it without asking"))
        }
    }
}

/// Waits until all of these have come to that.
///
/// # Errors
/// An hour has passed, or Xen or the store cannot be asked.
pub fn wait<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    doms: &[DomId],
    until: Until,
) -> Result<()> {
    const TOKEN: &str = "xlrs-down";
    let step = "wait for the end of domain";
    store
        .watch("@releaseDomain", TOKEN)
        .map_err(Error::store("watch", "@releaseDomain"))?;
    let deadline = Instant::now() + DOWN_TIMEOUT;
    for &dom in doms {
        loop {
            let info = control.info(dom).map_err(Error::hal(step, dom))?;
            let done = match &info {
                None => true,
                // The store tells of a domain's last moments, not when the last page is free.
                Some(info) => info.flags.dying || until == Until::ShutDown && info.flags.shutdown,
            };
            if done {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let event = store.wait_event(left).map_err(Error::store(step, dom))?;
            if event.is_none() {
                return Err(Error::new(step, dom, "an hour has passed").kind(Kind::GuestTimedOut));
            }
        }
    }
    Ok(())
}
