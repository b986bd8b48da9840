//! Configuration files: text with positions, then keys and values, then a checked [`DomainConfig`].
//!
//! The grammar is xl.cfg(5)'s as xl's own parser takes it, with these differences: CR LF line ends and a
//! comment on a last line without newline are accepted, and an unknown key is a warning.

// A complaint carries its line along; it is made once a file and never in a loop.
#![allow(clippy::result_large_err)]

mod cpus;
mod diag;
mod disk;
mod domain;
mod getter;
mod keys;
mod lex;
mod parse;
mod vdev;
mod vif;

pub use cpus::CpuSet;
pub use diag::{Diagnostic, Severity, Span};
pub use disk::{DiskConfig, DiskFormat};
pub use domain::{Action, DomainConfig, Events, Placement};
pub use getter::{memory_kib, name_fault, unsupported};
pub use parse::{Entry, Value, ValueKind, parse};
pub use vdev::{VdevError, vdev_number};
pub use vif::{NicConfig, RateLimit, parse_mac};

use std::fmt;

/// One piece of configuration text and where it came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name, or what else stands for it in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Every complaint about a configuration; at least one of them is an error.
#[derive(Clone, Debug)]
pub struct ConfigErrors(pub Vec<Diagnostic>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.0 {
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads configuration texts, later ones after earlier ones, into keys and values that nothing is known of.
///
/// # Errors
/// All errors that were found.
pub fn entries(sources: &[Source]) -> Result<Vec<Entry>, ConfigErrors> {
    let mut entries = Vec::new();
    let mut diagnostics = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        match parse(source, index) {
            Ok(parsed) => parse::merge(&mut entries, parsed, sources, &mut diagnostics),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    match diagnostics.is_empty() {
        true => Ok(entries),
        false => Err(ConfigErrors(diagnostics)),
    }
}

/// Reads configuration texts, later ones after earlier ones, into a checked configuration and warnings.
///
/// # Errors
/// All errors that were found, with the warnings among them.
pub fn load(sources: &[Source]) -> Result<(DomainConfig, Vec<Diagnostic>), ConfigErrors> {
    let entries = entries(sources)?;
    let mut context = domain::Context {
        sources,
        diagnostics: Vec::new(),
    };
    let config = domain::check(&entries, &mut context);
    match config {
        Some(config) if !context.diagnostics.iter().any(Diagnostic::is_error) => {
            Ok((config, context.diagnostics))
        }
        _ => Err(ConfigErrors(context.diagnostics)),
    }
}
