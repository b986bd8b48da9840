//! Samples, their medians, and how they are shown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::cases::{Case, RowSpec};
use crate::daemon::Kind;
use crate::error::{Context, Result};

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is.
    Higher,
    /// Less is.
    Lower,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing in particular.
    None,
    /// This ratio to the peer, or better.
    Ratio(f64),
    /// This value, or better.
    Value(f64),
}

/// One figure of ours beside the better one of the stock daemons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    case: &'static str,
    subject: &'static str,
    /// None if the row is of our daemon alone.
    peer: Option<&'static str>,
    subject_value: f64,
    peer_value: Option<f64>,
    unit: &'static str,
    better: Better,
    /// subject / peer; none if there is no peer, or its value is 0.
    ratio: Option<f64>,
}

/// All samples, by row and daemon.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(&'static str, Kind), Vec<f64>>);

impl Samples {
    /// Adds a run's values, in the order of the case's rows.
    pub fn add(&mut self, case: &'static Case, kind: Kind, values: &[f64]) {
        for (row, value) in case.rows.iter().zip(values) {
            self.0.entry((row.name, kind)).or_default().push(*value);
        }
    }

    fn median(&self, row: &RowSpec, kind: Kind) -> Option<f64> {
        let mut sorted = self.0.get(&(row.name, kind))?.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }

    fn row(&self, spec: &'static RowSpec) -> Option<Row> {
        let subject_value = self.median(spec, Kind::Xlrs)?;
        let peers = [Kind::C, Kind::Oxenstored];
        let peers = peers
            .into_iter()
            .filter_map(|kind| Some((kind, self.median(spec, kind)?)));
        let peer = peers.reduce(|a, b| {
            let b_is_better = match spec.better {
                Better::Higher => b.1 > a.1,
                Better::Lower => b.1 < a.1,
            };
            if b_is_better { b } else { a }
        });
        Some(Row {
            case: spec.name,
            subject: Kind::Xlrs.name(),
            peer: peer.map(|(kind, _)| kind.name()),
            subject_value,
            peer_value: peer.map(|(_, value)| value),
            unit: spec.unit,
            better: spec.better,
            ratio: peer
                .filter(|(_, value)| *value != 0.0)
                .map(|(_, value)| subject_value / value),
        })
    }

    /// Rows for programs.
    pub fn json(&self, cases: &[&'static Case]) -> Result<String> {
        let specs = cases.iter().flat_map(|case| case.rows);
        let rows: Vec<Row> = specs.filter_map(|spec| self.row(spec)).collect();
        serde_json::to_string_pretty(&rows).context(|| "writing JSON".into())
    }

    /// Which aims are met, in a line.
    pub fn aims(&self, cases: &[&'static Case]) -> String {
        let (mut met, mut missed) = (0, Vec::new());
        for spec in cases.iter().flat_map(|case| case.rows) {
            match self.aim(spec).1 {
                "met" => met += 1,
                "missed" => missed.push(spec.name),
                _ => {}
            }
        }
        let names = match missed[..] {
            [] => String::new(),
            _ => format!(": {}", missed.join(", ")),
        };
        format!("aims: {met} met, {} missed{names}", missed.len())
    }

    /// The aim in words, and whether it is met.
    fn aim(&self, spec: &'static RowSpec) -> (String, &'static str) {
        let sign = match spec.better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        let (words, wanted, have) = match spec.aim {
            Aim::None => return (String::new(), ""),
            Aim::Ratio(ratio) => (
                format!("{sign} {ratio} x"),
                ratio,
                self.row(spec).and_then(|row| row.ratio),
            ),
            Aim::Value(value) => (
                format!("{sign} {}", figure(value)),
                value,
                self.median(spec, Kind::Xlrs),
            ),
        };
        let met = have.map(|have| match spec.better {
            Better::Higher => have >= wanted,
            Better::Lower => have <= wanted,
        });
        let word = match met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        (words, word)
    }

    /// A table for people: medians of each daemon, and the ratio to the better stock one.
    pub fn table(&self, cases: &[&'static Case], kinds: &[Kind]) -> String {
        let mut out = format!("{:<22}", "case");
        for kind in kinds {
            let _ = write!(out, " {:>12}", kind.name());
        }
        let _ = writeln!(
            out,
            "  {:<5} {:<6} {:>8} {:>7} {:>9}",
            "unit", "better", "ratio", "runs", "aim"
        );
        for spec in cases.iter().flat_map(|case| case.rows) {
            let _ = write!(out, "{:<22}", spec.name);
            for kind in kinds {
                match self.median(spec, *kind) {
                    Some(value) => _ = write!(out, " {:>12}", figure(value)),
                    None => _ = write!(out, " {:>12}", "-"),
                }
            }
            let row = self.row(spec);
            let ratio = match row.as_ref().and_then(|row| row.ratio) {
                Some(ratio) => format!("{ratio:.3}"),
                None => "-".into(),
            };
            let better = match spec.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            };
            let (aim, met) = self.aim(spec);
            let runs = |kind| {
                self.0
                    .get(&(spec.name, kind))
                    .map(|all| all.len().to_string())
            };
            let runs: Vec<String> = kinds.iter().filter_map(|kind| runs(*kind)).collect();
            let runs = runs.join("/");
            let _ = writeln!(
                out,
                "  {:<5} {better:<6} {ratio:>8} {runs:>7} {aim:>9} {met}",
                spec.unit
            );
        }
        out
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 || value == value.trunc() => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    #[test]
    fn the_peer_is_the_better_one() {
        let case = CASES.iter().find(|case| case.name == "read").unwrap();
        let mut samples = Samples::default();
        // Rates, where more is better, then processor time.
        for (kind, values) in [
            (Kind::Xlrs, [1.0, 2.0, 6.0, 2.0]),
            (Kind::C, [4.0, 4.0, 3.0, 8.0]),
            (Kind::Oxenstored, [2.0, 5.0, 1.0, 4.0]),
        ] {
            for factor in [0.5, 1.0, 7.0] {
                samples.add(case, kind, &values.map(|value| value * factor));
            }
        }
        let rows: Vec<Row> = case.rows.iter().map(|s| samples.row(s).unwrap()).collect();
        let ratios: Vec<_> = rows.iter().map(|row| (row.peer, row.ratio)).collect();
        assert_eq!(
            ratios,
            [
                (Some("c-xenstored"), Some(0.25)),
                (Some("oxenstored"), Some(0.4)),
                (Some("c-xenstored"), Some(2.0)),
                (Some("oxenstored"), Some(0.5)),
            ]
        );
        let json: serde_json::Value =
            serde_json::from_str(&samples.json(&[case]).unwrap()).unwrap();
        assert_eq!(
            json[3],
            serde_json::json!({"case": "read-64-cpu", "subject": "xlrs", "peer": "oxenstored",
                "subject_value": 2.0, "peer_value": 4.0, "unit": "us", "better": "lower", "ratio": 0.5})
        );
        let table = samples.table(&[case], &Kind::ALL);
        assert!(table.contains("<= 0.5 x met"), "{table}");
    }

    #[test]
    fn rows_of_our_daemon_alone_have_no_peer() {
        let case = CASES.iter().find(|case| case.name == "keeper").unwrap();
        let mut samples = Samples::default();
        samples.add(case, Kind::Xlrs, &[2.0, 7.5]);
        let rows: Vec<Row> = case.rows.iter().map(|s| samples.row(s).unwrap()).collect();
        assert!(
            rows.iter()
                .all(|row| row.peer.is_none() && row.ratio.is_none())
        );
        let table = samples.table(&[case], &Kind::ALL);
        assert!(table.contains("<= 10.0 met"), "{table}");
        samples.add(case, Kind::Xlrs, &[2.0, 20.0]);
        assert_eq!(
            samples.aims(&[case]),
            "aims: 0 met, 1 missed: read-kept-cost"
        );
    }

    #[test]
    fn names_of_rows_are_unique() {
        let mut names: Vec<_> = CASES
            .iter()
            .flat_map(|case| case.rows)
            .map(|row| row.name)
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
