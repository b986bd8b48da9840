//! Turns: clients whose transactions conflict at one node run them one after the other, instead of all failing for
//! ever but the fastest.
//!
//! When a commit fails with EAGAIN, its client's next transaction is taken for the retry and takes turns at the node
//! that had changed: one such transaction is open at a time, and the TRANSACTION_START of the next is answered
//! when it ends. Who has just had a turn while others waited lines up again. Nobody else ever waits: neither plain
//! requests, nor transactions of clients that did not conflict, nor those that conflicted at other nodes.
//!
//! Invariant: a connection waits for or has one turn at most, so all of this is bounded by the number of connections.
//! Invariant: a turn ends with its transaction, its connection, or [`TURN`] after somebody began to wait for it;
//! dom0's clients never wait behind a guest that has not got its turn yet.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use xs_wire::Header;

use super::hash::Seeded;
use super::state::TurnState;
use super::{ConnId, ConnMap};

/// How long one may have a turn while others wait for it.
pub const TURN: Duration = Duration::from_millis(2);
/// A guest that did not end its transaction in its turn gets no other so long.
pub const PENALTY: Duration = Duration::from_millis(128);

/// A client whose TRANSACTION_START is not answered yet.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Its connection.
    pub conn: ConnId,
    /// The request.
    pub header: Header,
    /// Whether it is dom0's.
    pub privileged: bool,
}

/// Those who contend at one node.
#[derive(Debug, Default)]
struct Queue {
    holder: Option<ConnId>,
    /// When the holder's time was first looked at.
    since: Option<Duration>,
    waiting: VecDeque<Waiting>,
}

/// What a connection has to do with turns.
#[derive(Debug)]
enum Part {
    /// Its transaction of this number has the turn at a node.
    Has(Rc<str>, u32),
    /// It waits for the turn at a node.
    Waits(Rc<str>),
}

/// All turns.
#[derive(Debug, Default)]
pub struct Turns {
    queues: HashMap<Rc<str>, Queue, Seeded>,
    parts: ConnMap<Part>,
    /// Nodes whose turn is to be given to the next.
    free: Vec<Rc<str>>,
    waiting: usize,
    now: Duration,
}

impl Turns {
    /// Nobody takes turns yet, at this time.
    pub fn starting_at(now: Duration) -> Turns {
        Turns {
            now,
            ..Turns::default()
        }
    }

    /// Who has and who waits for which turn.
    pub fn export(&self) -> Vec<TurnState> {
        let state = |(node, queue): (&Rc<str>, &Queue)| {
            let tx = |conn: ConnId| match self.parts.get(&conn) {
                Some(Part::Has(_, tx)) => Some((conn, *tx)),
                _ => None,
            };
            let waiting = queue.waiting.iter().map(|who| (who.conn, who.header));
            TurnState {
                node: node.clone(),
                holder: queue.holder.and_then(tx),
                since: queue.since,
                waiting: waiting.collect(),
            }
        };
        let mut all: Vec<_> = self.queues.iter().map(state).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// When the time of the holder at a node began to run.
    pub fn set_since(&mut self, node: &str, since: Option<Duration>) {
        if let Some(queue) = self.queues.get_mut(node) {
            queue.since = since;
        }
    }

    /// Whether anybody waits: [`pass_time`](Self::pass_time) is to be called then.
    pub fn is_waited_for(&self) -> bool {
        self.waiting > 0
    }

    /// Whether a connection has a turn or waits for one.
    pub fn involves(&self, conn: ConnId) -> bool {
        self.parts.contains_key(&conn)
    }

    /// Whether a connection waits for its turn, so that a transaction of its is yet to be opened.
    pub fn awaits(&self, conn: ConnId) -> bool {
        matches!(self.parts.get(&conn), Some(Part::Waits(_)))
    }

    /// The time as last told.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Whether somebody has the turn at a node.
    pub fn is_taken(&self, node: &str) -> bool {
        self.queues.contains_key(node)
    }

    /// Gives the turn at a node that nobody has to a transaction.
    pub fn take(&mut self, node: Rc<str>, conn: ConnId, tx: u32) {
        let queue = self.queues.entry(node.clone()).or_default();
        debug_assert!(queue.holder.is_none());
        (queue.holder, queue.since) = (Some(conn), None);
        self.parts.insert(conn, Part::Has(node, tx));
    }

    /// Lines up for a turn: dom0's clients before guests.
    pub fn line_up(&mut self, node: Rc<str>, who: Waiting) {
        let queue = self.queues.entry(node.clone()).or_default();
        let guests = queue.waiting.iter().rev();
        let behind = match who.privileged {
            true => guests.take_while(|other| !other.privileged).count(),
            false => 0,
        };
        queue.waiting.insert(queue.waiting.len() - behind, who);
        self.parts.insert(who.conn, Part::Waits(node));
        self.waiting += 1;
    }

    /// A transaction has ended. The node whose turn it had, if any, and whether somebody waits for that.
    pub fn ended(&mut self, conn: ConnId, tx: u32) -> Option<(Rc<str>, bool)> {
        match self.parts.get(&conn) {
            Some(Part::Has(node, of)) if *of == tx => {
                let node = node.clone();
                self.parts.remove(&conn);
                let waited_for = self.give_up(&node);
                Some((node, waited_for))
            }
            _ => None,
        }
    }

    /// A connection's transactions are gone; if it has ended, so is its place in a queue.
    pub fn reset(&mut self, conn: ConnId, ended: bool) {
        match self.parts.get(&conn) {
            Some(Part::Has(node, _)) => {
                let node = node.clone();
                self.parts.remove(&conn);
                self.give_up(&node);
            }
            Some(Part::Waits(node)) if ended => {
                if let Some(queue) = self.queues.get_mut(node) {
                    queue.waiting.retain(|other| other.conn != conn);
                }
                self.waiting -= 1;
                self.parts.remove(&conn);
            }
            _ => {}
        }
    }

    /// Tells the time, from whatever start. Returns the connections whose turns are over by it.
    pub fn pass_time(&mut self, now: Duration) -> Vec<ConnId> {
        self.now = now;
        let mut late = Vec::new();
        for queue in self.queues.values_mut() {
            let Some(holder) = queue.holder else {
                continue;
            };
            if !queue.waiting.is_empty() && now >= *queue.since.get_or_insert(now) + TURN {
                late.push(holder);
            }
        }
        // In the order in which they came, as no map has one.
        late.sort();
        for conn in &late {
            self.reset(*conn, false);
        }
        late
    }

    /// Whether a turn may be given to somebody: [`next_turn`](Self::next_turn) is to be called then.
    #[inline]
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// The next whose turn it is; [`take`](Self::take) is to be called for it.
    pub fn next_turn(&mut self) -> Option<(Rc<str>, Waiting)> {
        while let Some(node) = self.free.pop() {
            let Some(queue) = self.queues.get_mut(&node) else {
                continue;
            };
            if queue.holder.is_some() {
                continue;
            }
            match queue.waiting.pop_front() {
                Some(who) => {
                    self.waiting -= 1;
                    self.parts.remove(&who.conn);
                    return Some((node, who));
                }
                None => {
                    self.queues.remove(&node);
                }
            }
        }
        None
    }

    /// Who was given the turn at a node does not want it: it is the next one's.
    pub fn pass_on(&mut self, node: Rc<str>) {
        self.free.push(node);
    }

    /// How many nodes, connections and requests are known of.
    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.queues.len(), self.parts.len(), self.waiting)
    }

    fn give_up(&mut self, node: &Rc<str>) -> bool {
        let Some(queue) = self.queues.get_mut(node) else {
            return false;
        };
        queue.holder = None;
        self.free.push(node.clone());
        !queue.waiting.is_empty()
    }
}
