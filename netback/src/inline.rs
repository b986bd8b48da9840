//! A data path without threads: whoever owns the bus steps the rings. For tests in one process.

use std::sync::Arc;

use xen_hal::{Error, EventChannels, ForeignGrants, Result};

use crate::driver::{Datapath, Plan, RingInfo};
use crate::vif::{Frames, Progress, Served};

type MakeLink<L> = Box<dyn FnMut(&Plan) -> Result<L>>;

/// Serves rings when told to.
pub struct Inline<G, E, L> {
    grants: G,
    events: Box<dyn Fn() -> E>,
    make: MakeLink<L>,
}

impl<G, E, L> Inline<G, E, L> {
    /// A data path over `grants`; `events` makes the event channel owner of each connection, `make` its
    /// network device.
    pub fn new(
        grants: G,
        events: impl Fn() -> E + 'static,
        make: impl FnMut(&Plan) -> Result<L> + 'static,
    ) -> Self {
        Inline {
            grants,
            events: Box::new(events),
            make: Box::new(make),
        }
    }
}

/// Rings served by hand.
pub struct InlineConnection<G: ForeignGrants, E: EventChannels> {
    served: Served<G, E>,
    failure: Option<Error>,
    progress: Progress,
}

impl<G: ForeignGrants, E: EventChannels> InlineConnection<G, E> {
    /// What the last step left: [`Progress::More`] before the first one.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Does what is to be done; true if there may be more.
    pub fn step(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        match self.served.work() {
            Ok(progress) => {
                self.progress = progress;
                progress == Progress::More
            }
            Err(error) => {
                self.failure = Some(error);
                false
            }
        }
    }

    /// The rings.
    pub fn served(&self) -> &Served<G, E> {
        &self.served
    }
}

impl<G, E, L> Datapath for Inline<G, E, L>
where
    G: ForeignGrants + Clone,
    E: EventChannels,
    L: Frames + 'static,
{
    type Link = L;
    type Connection = InlineConnection<G, E>;

    fn make(&mut self, plan: &Plan) -> Result<L> {
        (self.make)(plan)
    }

    fn remove(&mut self, _: &L) {}

    fn serve(&mut self, name: &str, ring: &RingInfo, link: Arc<L>) -> Result<Self::Connection> {
        let name = name.to_string();
        let log = Arc::new(move |line: &str| eprintln!("{name}: {line}"));
        let served = Served::new(ring, self.grants.clone(), (self.events)(), link, log)?;
        Ok(InlineConnection {
            served,
            failure: None,
            progress: Progress::More,
        })
    }

    fn failure(&self, connection: &Self::Connection) -> Option<Error> {
        connection.failure.clone()
    }
}
