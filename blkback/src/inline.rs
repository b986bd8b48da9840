//! A data path without threads: whoever owns the bus steps the rings. For tests in one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use xen_backend::account::file_name;
use xen_hal::{Error, EventChannels, ForeignGrants, Result};

use crate::driver::Datapath;
use crate::engine::{Direct, Order, Woken};
use crate::memory::{Buffer, Memory};
use crate::queue::{DataMove, Progress};
use crate::served::{Connect, Link, Served};
use crate::storage::Storage;

/// Journals by their queues' names, as /run has them for the daemon: they outlive a backend that is killed.
/// Every clone is the same.
#[derive(Clone, Default)]
pub struct Journals(Arc<Mutex<HashMap<String, Memory>>>);

impl Journals {
    fn get(&self, name: String, size: usize) -> Memory {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = all
            .entry(name)
            .or_insert_with(|| Arc::new(Buffer::new(size)));
        if memory.len() < size {
            *memory = Arc::new(Buffer::new(size));
        }
        memory.clone()
    }
}

/// Serves rings when told to.
pub struct Inline<G, E> {
    grants: G,
    events: Box<dyn Fn() -> E>,
    data_move: DataMove,
    journals: Journals,
    order: Box<dyn FnMut() -> Order>,
}

impl<G, E> Inline<G, E> {
    /// A data path over `grants`; `events` makes the event channel owner of each connection. Jobs end in
    /// the order in which they began.
    pub fn new(grants: G, events: impl Fn() -> E + 'static, data_move: DataMove) -> Self {
        Inline {
            grants,
            events: Box::new(events),
            data_move,
            journals: Journals::default(),
            order: Box::new(|| Box::new(|_| 0)),
        }
    }

    /// The same, with journals that were there before, and jobs that end in an order of the test's.
    pub fn with(self, journals: Journals, order: impl FnMut() -> Order + 'static) -> Self {
        Inline {
            journals,
            order: Box::new(order),
            ..self
        }
    }
}

/// Rings served by hand.
pub struct InlineConnection<G: ForeignGrants, E: EventChannels> {
    queues: Vec<InlineQueue<G, E>>,
    failure: Option<Error>,
}

/// One of them.
pub struct InlineQueue<G: ForeignGrants, E: EventChannels> {
    served: Served<G, E>,
    progress: Progress,
}

impl<G, E> InlineQueue<G, E>
where
    G: ForeignGrants + Clone,
    G::Mapping: Send + Sync + 'static,
    E: EventChannels,
{
    /// What the last step left: [`Progress::More`] before the first one, and while jobs run.
    pub fn progress(&self) -> Progress {
        match self.served.queue().in_flight() {
            0 => self.progress,
            _ => Progress::More,
        }
    }

    /// The ring and its queue.
    pub fn served(&self) -> &Served<G, E> {
        &self.served
    }

    fn step(&mut self) -> Result<bool> {
        self.progress = self.served.work(Woken {
            event: true,
            taken: false,
        })?;
        Ok(self.progress() == Progress::More)
    }
}

impl<G, E> InlineConnection<G, E>
where
    G: ForeignGrants + Clone,
    G::Mapping: Send + Sync + 'static,
    E: EventChannels,
{
    /// Does what is to be done; true if there may be more.
    pub fn step(&mut self) -> bool {
        self.step_if(|_| true)
    }

    /// The same for those queues that `wanted` picks.
    pub fn step_if(&mut self, wanted: impl Fn(&InlineQueue<G, E>) -> bool) -> bool {
        let mut more = false;
        for queue in &mut self.queues {
            if self.failure.is_some() {
                return false;
            }
            if !wanted(queue) {
                continue;
            }
            match queue.step() {
                Ok(again) => more |= again,
                Err(error) => self.failure = Some(error),
            }
        }
        more && self.failure.is_none()
    }

    /// The queues.
    pub fn queues(&self) -> &[InlineQueue<G, E>] {
        &self.queues
    }
}

impl<G, E> Datapath for Inline<G, E>
where
    G: ForeignGrants + Clone,
    G::Mapping: Send + Sync + 'static,
    E: EventChannels,
{
    type Connection = InlineConnection<G, E>;

    fn serve(&mut self, connect: &Connect, storage: Arc<dyn Storage>) -> Result<Self::Connection> {
        let mut queues = Vec::new();
        for queue in 0..connect.rings.len() {
            let link = Link::new(connect, queue, self.grants.clone(), (self.events)())?;
            let name = file_name(connect.id, queue);
            let journal = self.journals.get(name.clone(), link.journal_size());
            let engine = Direct::new(storage.clone(), (self.order)());
            let served = link.serve(
                journal,
                Box::new(engine),
                self.data_move,
                storage.clone(),
                Arc::new(move |line| eprintln!("{name}: {line}")),
            )?;
            queues.push(InlineQueue {
                served,
                progress: Progress::More,
            });
        }
        Ok(InlineConnection {
            queues,
            failure: None,
        })
    }

    fn failure(&self, connection: &Self::Connection) -> Option<Error> {
        connection.failure.clone()
    }
}
