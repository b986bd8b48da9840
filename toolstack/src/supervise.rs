//! Looks after guests that have ended: removes those that powered off, keeps those that shall be kept.

use serde::{Deserialize, Serialize};

use crate::config::{Action, DomainConfig};

/// What the supervisor must know of a guest: that it is ours, and what to do when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Its name.
    pub name: String,
    /// What to do when it has powered off, and so on: the words of xl.cfg(5).
    pub on_poweroff: String,
    /// See above.
    pub on_reboot: String,
    /// See above.
    pub on_watchdog: String,
    /// See above.
    pub on_crash: String,
}

impl Marks {
    /// Those of a configuration.
    pub fn of(config: &DomainConfig) -> Marks {
        let word = |action: Action| action.name().to_string();
        Marks {
            name: config.name.clone(),
            on_poweroff: word(config.events.on_poweroff),
            on_reboot: word(config.events.on_reboot),
            on_watchdog: word(config.events.on_watchdog),
            on_crash: word(config.events.on_crash),
        }
    }

    /// As text.
    pub fn encode(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// From text.
    pub fn decode(text: &str) -> Option<Marks> {
        serde_json::from_str(text).ok()
    }
}
