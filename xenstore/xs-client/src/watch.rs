//! A watch as an iterator over its events.

use std::time::Duration;

use xs_wire::{StoreError, WatchEvent, call};

use crate::connection::Connection;

/// What the tokens of these watches begin with, and no other's should.
const PREFIX: &str = "xs-client/";

/// Whether an event is of a watch that was set with a token of its owner's.
pub(crate) fn is_foreign(event: &WatchEvent) -> bool {
    !event.token.starts_with(PREFIX)
}

/// The token of a connection's watch of this number.
pub(crate) fn token(number: u64) -> String {
    format!("{PREFIX}{number}")
}

/// A watch on a path and all below it. It is an iterator that waits for good; after an error it ends. An
/// event says "look again": one may stand for many, and one at the watch's own path for changes anywhere
/// below. Dropping it removes the watch.
#[derive(Debug)]
pub struct Watch<'c> {
    connection: &'c Connection,
    path: String,
    token: String,
    ended: bool,
}

impl<'c> Watch<'c> {
    pub(crate) fn set(
        connection: &'c Connection,
        path: &str,
        number: u64,
    ) -> Result<Watch<'c>, StoreError> {
        let token = token(number);
        call::watch(connection, path, &token)?;
        Ok(Watch {
            connection,
            path: path.to_owned(),
            token,
            ended: false,
        })
    }

    /// The watched path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Waits for the next event, at most so long; `None` if none came.
    pub fn next_timeout(&self, timeout: Duration) -> Result<Option<WatchEvent>, StoreError> {
        let timeout = Some(timeout);
        self.connection
            .wait_event_if(timeout, |event| event.token == self.token)
    }

    /// The next event that has come already.
    pub fn try_next(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.connection
            .take_event_if(|event| event.token == self.token)
    }
}

impl Iterator for Watch<'_> {
    type Item = Result<WatchEvent, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self
            .connection
            .wait_event_if(None, |event| event.token == self.token);
        self.ended = event.is_err();
        event.transpose()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // On a lost connection there is no watch left to remove.
        let _ = call::unwatch(self.connection, &self.path, &self.token);
    }
}
