//! What the scenarios do, by what they are about.

pub mod bad_input;
pub mod block;
pub mod callers;
pub mod changeover;
pub mod commands;
pub mod cycles;
pub mod debian;
pub mod device_nodes;
pub mod disks;
pub mod features;
pub mod formats;
pub mod golden;
pub mod hostile;
pub mod http;
pub mod killed;
pub mod lifecycle;
pub mod pvgrub;
pub mod script;
pub mod snapshots;
pub mod stock_tools;
pub mod store;
pub mod survival;
pub mod survive;
pub mod units;
pub mod upheaval;
pub mod vbd3;
