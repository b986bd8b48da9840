//! The watch events that wait to be taken: each once, in order, in bounded memory, and none lost.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::types::WatchEvent;

/// Most watch events that wait, each once however often it came. When one more comes, the events of each
/// watch become one at the watch's own path, which says "look again at all of it".
pub const MAX_EVENTS: usize = 16384;
/// Most bytes of paths and tokens that wait; beyond it the same is done.
pub const MAX_EVENT_BYTES: usize = 2 << 20;

/// Waiting events, and the watches that they are for.
#[derive(Debug, Default)]
pub(crate) struct Events {
    order: VecDeque<Arc<WatchEvent>>,
    known: BTreeSet<Arc<WatchEvent>>,
    bytes: usize,
    /// The paths watched under each token: all that were asked for and not yet refused or removed. The
    /// owner's own doing, so its size is the owner's.
    watches: BTreeMap<String, Vec<String>>,
    /// Events and bytes that were left when each watch had one event. As much again may come before they
    /// are looked through the next time, so that it does not happen at every event.
    least: (usize, usize),
}

impl Events {
    /// Adds an event, unless an equal one waits: it would say nothing new.
    pub fn push(&mut self, event: WatchEvent) {
        self.insert(event);
        if self.order.len() > MAX_EVENTS.max(2 * self.least.0)
            || self.bytes > MAX_EVENT_BYTES.max(2 * self.least.1)
        {
            self.coalesce();
        }
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<WatchEvent> {
        let event = self.order.pop_front()?;
        Some(self.taken(event))
    }

    /// Takes the oldest of those that are wanted.
    pub fn pop_if(&mut self, wanted: impl Fn(&WatchEvent) -> bool) -> Option<WatchEvent> {
        let at = self.order.iter().position(|event| wanted(event))?;
        let event = self.order.remove(at)?;
        Some(self.taken(event))
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn has(&self, wanted: impl Fn(&WatchEvent) -> bool) -> bool {
        self.order.iter().any(|event| wanted(event))
    }

    /// The watches that are set or asked for: token and path.
    pub fn watches(&self) -> impl Iterator<Item = (&str, &str)> {
        self.watches
            .iter()
            .flat_map(|(token, paths)| paths.iter().map(move |path| (&token[..], &path[..])))
    }

    /// A watch was asked for.
    pub fn asked(&mut self, path: &str, token: &str) {
        let paths = self.watches.entry(token.into()).or_default();
        paths.push(path.into());
    }

    /// A watch was refused.
    pub fn refused(&mut self, path: &str, token: &str) {
        if let Some(paths) = self.watches.get_mut(token) {
            if let Some(at) = paths.iter().rposition(|watched| watched == path) {
                paths.remove(at);
            }
            if paths.is_empty() {
                self.watches.remove(token);
            }
        }
    }

    /// A watch was removed: its events that wait are of no use, unless another watch with the token tells
    /// of them too.
    pub fn removed(&mut self, path: &str, token: &str) {
        self.refused(path, token);
        let others = self.watches.get(token).map_or(&[][..], |paths| paths);
        let stale = |event: &WatchEvent| {
            event.token == token
                && (others.is_empty() || covers(path, &event.path))
                && !others.iter().any(|other| covers(other, &event.path))
        };
        if self.order.iter().any(|event| stale(event)) {
            let kept = self.order.iter().filter(|event| !stale(event));
            let kept = kept.map(|event| WatchEvent::clone(event)).collect();
            self.refill(kept);
        }
    }

    /// All watches were removed.
    pub fn reset(&mut self) {
        *self = Events::default();
    }

    /// Leaves one event a watch, at the watch's own path, where its first event stood. What has the token
    /// of no watch is a late event of one that was removed, or the daemon's mistake, and goes.
    fn coalesce(&mut self) {
        let whole = |event: &Arc<WatchEvent>| {
            let paths = self.watches.get(&event.token)?;
            let covering = paths.iter().find(|path| covers(path, &event.path));
            Some(WatchEvent {
                path: covering.or(paths.first())?.clone(),
                token: event.token.clone(),
            })
        };
        let whole = self.order.iter().filter_map(whole).collect();
        self.refill(whole);
        self.least = (self.order.len(), self.bytes);
    }

    fn refill(&mut self, events: Vec<WatchEvent>) {
        self.order.clear();
        self.known.clear();
        self.bytes = 0;
        for event in events {
            self.insert(event);
        }
    }

    fn insert(&mut self, event: WatchEvent) {
        let bytes = size(&event);
        let event = Arc::new(event);
        if self.known.insert(Arc::clone(&event)) {
            self.order.push_back(event);
            self.bytes += bytes;
        }
    }

    fn taken(&mut self, event: Arc<WatchEvent>) -> WatchEvent {
        self.known.remove(&event);
        self.bytes -= size(&event);
        Arc::unwrap_or_clone(event)
    }
}

fn size(event: &WatchEvent) -> usize {
    event.path.len() + event.token.len()
}

/// Whether a watch on `watched` tells of `path`.
fn covers(watched: &str, path: &str) -> bool {
    watched == "/"
        || path
            .strip_prefix(watched)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn event(path: &str, token: &str) -> WatchEvent {
        let (path, token) = (path.to_string(), token.to_string());
        WatchEvent { path, token }
    }

    fn all(events: &mut Events) -> Vec<WatchEvent> {
        core::iter::from_fn(|| events.pop()).collect()
    }

    #[test]
    fn too_many_become_one_for_each_watch() {
        let mut events = Events::default();
        for (path, token) in [("/a", "t"), ("/b/c", "t"), ("/", "root"), ("rel", "r")] {
            events.asked(path, token);
        }
        events.push(event("rel/x", "r"));
        for n in 0..MAX_EVENTS {
            events.push(event(&format!("/a/{n}"), "t"));
        }
        events.push(event("/b/c/d", "t"));
        events.push(event("/b/c/e", "t"));
        events.push(event("/z", "root"));
        let left = [
            event("rel", "r"),
            event("/a", "t"),
            event("/b/c/d", "t"),
            event("/b/c/e", "t"),
            event("/z", "root"),
        ];
        assert_eq!(all(&mut events), left);
        assert_eq!(events.bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut events = Events::default();
        events.asked("/a", "t");
        let long = "x".repeat(3000);
        for n in 0..2000 {
            events.push(event(&format!("/a/{n}{long}"), "t"));
            assert!(events.bytes <= MAX_EVENT_BYTES);
        }
        assert_eq!(events.pop(), Some(event("/a", "t")));
    }

    #[test]
    fn a_removed_watch_takes_its_events_along() {
        let mut events = Events::default();
        events.asked("/a", "t");
        events.asked("/a/b", "t");
        events.asked("/c", "t");
        for path in ["/a", "/a/b/c", "/c"] {
            events.push(event(path, "t"));
        }
        events.push(event("/a", "u"));
        events.removed("/a", "t");
        assert_eq!(
            events.pop_if(|event| event.token == "u"),
            Some(event("/a", "u"))
        );
        assert_eq!(all(&mut events), [event("/a/b/c", "t"), event("/c", "t")]);
        events.push(event("/c", "t"));
        events.removed("/a/b", "t");
        events.removed("/c", "t");
        assert!(events.is_empty() && events.watches.is_empty());
    }

    /// What is done to the queue, and what a client that looks at what it is told would know.
    #[derive(Clone, Debug)]
    enum Step {
        Push(usize, u16),
        Flood(usize),
        Pop,
        PopFor(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let watch = 0..4usize;
        prop_oneof![
            8 => (watch.clone(), 0..40u16).prop_map(|(watch, n)| Step::Push(watch, n)),
            1 => watch.clone().prop_map(Step::Flood),
            4 => Just(Step::Pop),
            2 => watch.prop_map(Step::PopFor),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost(steps in proptest::collection::vec(step(), 0..60)) {
            const WATCHES: [(&str, &str); 4] = [("/a", "0"), ("/b", "1"), ("/c", "1"), ("d", "3")];
            let mut events = Events::default();
            for (path, token) in WATCHES {
                events.asked(path, token);
            }
            // Changed since the client looked there.
            let mut stale: BTreeSet<(String, &str)> = BTreeSet::new();
            let look = |stale: &mut BTreeSet<(String, &str)>, told: Option<WatchEvent>| {
                if let Some(told) = told {
                    let whole = WATCHES.contains(&(&told.path, &told.token));
                    stale.retain(|(path, token)| {
                        *token != told.token || *path != told.path && !(whole && covers(&told.path, path))
                    });
                }
            };
            for step in steps {
                match step {
                    Step::Push(watch, n) => {
                        let (path, token) = WATCHES[watch];
                        stale.insert((format!("{path}/{n}"), token));
                        events.push(event(&format!("{path}/{n}"), token));
                    }
                    Step::Flood(watch) => {
                        let (path, token) = WATCHES[watch];
                        for n in 0..MAX_EVENTS {
                            events.push(event(&format!("{path}/flood/{n}"), token));
                        }
                        stale.insert((format!("{path}/flood/0"), token));
                    }
                    Step::Pop => look(&mut stale, events.pop()),
                    Step::PopFor(watch) => {
                        let token = WATCHES[watch].1;
                        let told = events.pop_if(|event| event.token == token);
                        prop_assert!(told.as_ref().is_none_or(|told| told.token == token));
                        look(&mut stale, told);
                    }
                }
                prop_assert!(events.order.len() <= MAX_EVENTS);
                prop_assert_eq!(events.order.len(), events.known.len());
            }
            while let Some(told) = events.pop() {
                look(&mut stale, Some(told));
            }
            prop_assert_eq!(stale, BTreeSet::new());
            prop_assert_eq!(events.bytes, 0);
            prop_assert!(events.known.is_empty());
        }
    }
}
