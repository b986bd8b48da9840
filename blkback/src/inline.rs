//! A data path without threads: whoever owns the bus steps the rings. For tests in one process.

use std::sync::Arc;

use xen_hal::{Error, EventChannels, ForeignGrants, Result};

use crate::driver::{Datapath, RingInfo, Served};
use crate::queue::{DataMove, Progress};
use crate::request::Limits;
use crate::storage::Storage;

/// Serves rings when told to.
pub struct Inline<G, E> {
    grants: G,
    events: Box<dyn Fn() -> E>,
    data_move: DataMove,
}

impl<G, E> Inline<G, E> {
    /// A data path over `grants`; `events` makes the event channel owner of each connection.
    pub fn new(grants: G, events: impl Fn() -> E + 'static, data_move: DataMove) -> Self {
        Inline {
            grants,
            events: Box::new(events),
            data_move,
        }
    }
}

/// A ring served by hand.
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

    /// The ring and its queue.
    pub fn served(&self) -> &Served<G, E> {
        &self.served
    }
}

impl<G: ForeignGrants + Clone, E: EventChannels> Datapath for Inline<G, E> {
    type Connection = InlineConnection<G, E>;

    fn serve(
        &mut self,
        name: &str,
        ring: &RingInfo,
        storage: Arc<dyn Storage>,
        limits: Limits,
    ) -> Result<Self::Connection> {
        let name = name.to_string();
        let served = Served::new(
            ring,
            self.grants.clone(),
            (self.events)(),
            self.data_move,
            storage,
            limits,
            Arc::new(move |line| eprintln!("{name}: {line}")),
        )?;
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
