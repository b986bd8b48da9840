//! A watch as a stream of its events.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use xs_wire::{Request, StoreError, WatchEvent};

use super::AsyncConnection;
use super::reactor::{Polled, Transport};
use super::shared::Parting;
use crate::watch::token;

/// A watch on a path and all below it. After an error the stream ends. An event says "look again": one may
/// stand for many, and one at the watch's own path for changes anywhere below. Dropping it removes the
/// watch.
#[derive(Debug)]
pub struct WatchStream<T: Transport = Polled> {
    connection: AsyncConnection<T>,
    path: String,
    token: String,
    key: u64,
    ended: bool,
}

impl<T: Transport> WatchStream<T> {
    pub(super) async fn set(
        connection: &AsyncConnection<T>,
        path: &str,
    ) -> Result<WatchStream<T>, StoreError> {
        let key = connection.shared.number();
        // Made before it is set: it is removed even if the reply is not waited for.
        let stream = WatchStream {
            connection: connection.clone(),
            path: path.to_owned(),
            token: token(key),
            key,
            ended: false,
        };
        let request = Request::Watch(path.as_bytes(), stream.token.as_bytes(), None);
        connection.exchange(None, &request).await?;
        Ok(stream)
    }

    /// The watched path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The next event; `None` once the stream has ended with an error.
    pub async fn next_event(&mut self) -> Option<Result<WatchEvent, StoreError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<T: Transport> Stream for WatchStream<T> {
    type Item = Result<WatchEvent, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.connection.shared.poll_event(cx, self.key, &self.token);
        polled.map(|event| {
            self.ended = event.is_err();
            Some(event.map_err(|errno| StoreError {
                op: "WATCH_EVENT",
                object: self.path.clone(),
                errno,
            }))
        })
    }
}

impl<T: Transport> Drop for WatchStream<T> {
    fn drop(&mut self) {
        let shared = &self.connection.shared;
        shared.leave(self.key);
        let (path, token) = (self.path.clone(), self.token.clone());
        shared.part(Parting::Unwatch(path, token));
    }
}
