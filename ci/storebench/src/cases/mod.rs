//! The cases: what is measured, in which rows, with which aims.

mod counter;
mod domains;
mod kept;
mod live;
mod memory;
mod ops;
mod watches;

use std::time::Duration;

use crate::daemon::{Kind, Place};
use crate::error::Result;
use crate::rows::{Aim, Better};

/// How long things last.
pub struct Settings {
    /// A load.
    pub load: Duration,
    /// Random writes before memory is looked at.
    pub churn: Duration,
}

/// Some rows that are measured together.
pub struct Case {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its rows.
    pub rows: &'static [RowSpec],
    /// How often a stock daemon is measured at most: those that take a minute, or take the same each time; none that is of our
    /// daemon alone.
    pub stock_runs: u32,
    /// Measures one daemon once; a value for each row.
    pub run: fn(&Place, Kind, &Settings) -> Result<Vec<f64>>,
}

/// One row.
#[derive(Debug)]
pub struct RowSpec {
    /// Its name.
    pub name: &'static str,
    /// The unit of its values.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// What is wanted.
    pub aim: Aim,
}

const fn more(name: &'static str, unit: &'static str, aim: Aim) -> RowSpec {
    RowSpec {
        name,
        unit,
        better: Better::Higher,
        aim,
    }
}

const fn less(name: &'static str, unit: &'static str, aim: Aim) -> RowSpec {
    RowSpec {
        name,
        unit,
        better: Better::Lower,
        aim,
    }
}

/// Longest time for what has to be prepared or finished.
const LIMIT: Duration = Duration::from_secs(300);

/// All cases. Clients are on sockets unless it says otherwise; each has one request open and nodes of its own.
pub const CASES: &[Case] = &[
    // READ of 16 bytes, 7 levels deep.
    Case {
        name: "read",
        rows: &[
            more("read-1", "/s", Aim::None),
            more("read-8", "/s", Aim::None),
            more("read-64", "/s", Aim::None),
            less("read-64-cpu", "us", Aim::Ratio(0.5)),
        ],
        stock_runs: u32::MAX,
        run: ops::read,
    },
    // WRITE of 16 bytes there.
    Case {
        name: "write",
        rows: &[
            more("write-1", "/s", Aim::None),
            more("write-8", "/s", Aim::None),
            more("write-64", "/s", Aim::None),
            less("write-64-cpu", "us", Aim::None),
        ],
        stock_runs: u32::MAX,
        run: ops::write,
    },
    // Start, READ, WRITE, commit there: disjoint.
    Case {
        name: "tx",
        rows: &[
            more("tx-1", "/s", Aim::None),
            more("tx-8", "/s", Aim::None),
            more("tx-64", "/s", Aim::None),
            less("tx-64-cpu", "us", Aim::Ratio(0.5)),
        ],
        stock_runs: u32::MAX,
        run: ops::transaction,
    },
    // Beside 100 000 nodes: 8 clients with 16 READs open each, of any of these; transactions as above.
    Case {
        name: "big",
        rows: &[
            more("read-pipelined", "/s", Aim::Ratio(3.0)),
            less("read-pipelined-cpu", "us", Aim::None),
            more("tx-64-100k", "/s", Aim::None),
            less("tx-64-100k-cpu", "us", Aim::None),
        ],
        stock_runs: u32::MAX,
        run: ops::big,
    },
    // WRITE and transactions, 64 clients: the processor time of our daemon, and by how much it is more than without a state.
    Case {
        name: "journal",
        rows: &[
            less("write-64-state-cpu", "us", Aim::None),
            less("write-state-cost", "%", Aim::Value(10.0)),
            less("tx-64-state-cpu", "us", Aim::None),
            less("tx-state-cost", "%", Aim::Value(10.0)),
        ],
        stock_runs: 0,
        run: kept::journal,
    },
    // READ, 64 clients whose sockets a keeper holds: the same, beside our daemon without a keeper.
    Case {
        name: "keeper",
        rows: &[
            less("read-64-kept-cpu", "us", Aim::None),
            less("read-kept-cost", "%", Aim::Value(10.0)),
        ],
        stock_runs: 0,
        run: kept::keeper,
    },
    // READ with 8 clients, beside 4000 that say nothing; and as a part of what it is without them.
    Case {
        name: "idle",
        rows: &[
            more("read-idle-4000", "/s", Aim::None),
            more("idle-4000-kept", "%", Aim::Value(90.0)),
        ],
        stock_runs: u32::MAX,
        run: ops::idle,
    },
    // A write and the event of it at another client, beside 20 000 watches on other paths.
    Case {
        name: "watches",
        rows: &[
            more("event-watches-20k", "/s", Aim::None),
            more("watches-20k-kept", "%", Aim::Value(95.0)),
        ],
        stock_runs: u32::MAX,
        run: watches::unrelated,
    },
    // Processor time for creating a domain: about the 10th (6 to 15), about the 1000th (991 to 1000).
    Case {
        name: "domains",
        rows: &[
            less("domain-10th", "ms", Aim::None),
            less("domain-1000th", "ms", Aim::None),
            less("domain-growth", "x", Aim::Value(1.3)),
        ],
        stock_runs: 1,
        run: domains::thousand,
    },
    // 16 toolstacks that create 25 domains each, every one in a transaction.
    Case {
        name: "toolstacks",
        rows: &[
            less("toolstacks-time", "s", Aim::None),
            less("toolstacks-retries", "retries", Aim::Value(0.0)),
        ],
        stock_runs: u32::MAX,
        run: domains::toolstacks,
    },
    // 64 clients add 1 to one node, each in transactions, again at once if it conflicts.
    Case {
        name: "counter",
        rows: &[
            more("counter-commits", "/s", Aim::Value(10_000.0)),
            more("counter-fairness", "min/m", Aim::Value(0.5)),
        ],
        stock_runs: u32::MAX,
        run: counter::counter,
    },
    // Resident memory for a node: 100 000 of 16 bytes below 1000 directories, then after random writes.
    Case {
        name: "memory",
        rows: &[
            less("rss-built", "B", Aim::None),
            less("rss-churned", "B", Aim::Value(100.0)),
        ],
        stock_runs: 1,
        run: memory::per_node,
    },
    // The longest time without an answer while the daemon becomes another of its kind, with 100 000 nodes, 66 sockets and
    // 10 guests; then everybody must find what is theirs.
    Case {
        name: "live-update",
        rows: &[less("live-update-stall", "ms", Aim::Value(50.0))],
        stock_runs: 1,
        run: live::same,
    },
    // The same from C xenstored to ours, and from there to C xenstored.
    Case {
        name: "live-update-c",
        rows: &[
            less("live-update-from-c", "ms", Aim::None),
            less("live-update-to-c", "ms", Aim::None),
        ],
        stock_runs: 1,
        run: live::with_c,
    },
];
