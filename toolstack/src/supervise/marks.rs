//! What is kept about a guest of ours while it runs, so that any later process can act on its end.

use serde::{Deserialize, Serialize};

use super::Fate;
use crate::config::{Action, DomainConfig, Events};
use crate::prepare::Guest;
use xen_hal::ShutdownReason;

/// A guest's marks: that it is ours, and how it was to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Its configuration, with everything filled in that was left open.
    pub config: DomainConfig,
    /// The configuration was replaced while the guest ran: its devices are those of the configuration,
    /// not those that it has.
    #[serde(default)]
    pub updated: bool,
    /// How guests like it have fared.
    #[serde(default)]
    pub fate: Fate,
}

impl Marks {
    /// Those of a guest.
    pub fn of(guest: &Guest) -> Marks {
        let mut config = guest.config.clone();
        config.uuid = Some(guest.uuid);
        for (nic, named) in config.nics.iter_mut().zip(&guest.nics) {
            nic.mac = Some(named.mac);
            nic.devid = Some(named.devid);
        }
        Marks {
            config,
            updated: false,
            fate: Fate::default(),
        }
    }

    /// As text.
    pub fn encode(&self) -> String {
        // Plain structures of numbers and UTF-8 text; a path that is none has been refused long ago.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// From text.
    pub fn decode(text: &str) -> Option<Marks> {
        serde_json::from_str(text).ok()
    }
}

/// What the configuration wants done after a guest has ended in this way.
pub fn action(events: &Events, reason: ShutdownReason) -> Action {
    match reason {
        ShutdownReason::Poweroff => events.on_poweroff,
        ShutdownReason::Reboot => events.on_reboot,
        ShutdownReason::Watchdog => events.on_watchdog,
        ShutdownReason::SoftReset => events.on_soft_reset,
        // Whoever saves the guest looks after it.
        ShutdownReason::Suspend => Action::Preserve,
        ShutdownReason::Crash | ShutdownReason::Other(_) => events.on_crash,
    }
}
