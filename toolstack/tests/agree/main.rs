//! Generated configuration texts, disks, cards, rates and lists of CPUs: what we make of them against what stock xl
//! and its libxlutil do. What differs is in a table, with the reason.
//!
//! `AGREE_SEED` replays a run, `AGREE_COUNT` multiplies the number of cases.

mod config;
mod devices;
mod generate;
mod guests;
mod tally;
mod witness;
