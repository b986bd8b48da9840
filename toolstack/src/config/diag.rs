//! Complaints about a configuration: file, line, column, the line itself with a caret, a remedy.

use std::fmt;

use super::Source;

/// A place in a configuration text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which of the sources.
    pub source: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Length in characters, at least 1.
    pub len: usize,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The guest can be created all the same.
    Warning,
    /// It cannot.
    Error,
}

/// One complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The source's name.
    pub file: String,
    /// Where, if a place can be named.
    pub span: Option<Span>,
    /// The line's text, empty if no place can be named.
    pub line_text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Diagnostic {
    /// A complaint about a place.
    pub fn at(
        severity: Severity,
        sources: &[Source],
        span: Span,
        message: impl Into<String>,
    ) -> Self {
        let source = sources.get(span.source);
        let line_text = source
            .and_then(|source| source.text.lines().nth(span.line - 1))
            .unwrap_or("");
        Diagnostic {
            severity,
            file: source.map_or_else(String::new, |source| source.name.clone()),
            span: Some(span),
            line_text: line_text.trim_end_matches('\r').to_string(),
            message: message.into(),
            remedy: None,
        }
    }

    /// A complaint about the whole.
    pub fn whole(severity: Severity, sources: &[Source], message: impl Into<String>) -> Self {
        Diagnostic {
            severity,
            file: sources
                .first()
                .map_or_else(|| "configuration".into(), |source| source.name.clone()),
            span: None,
            line_text: String::new(),
            message: message.into(),
            remedy: None,
        }
    }

    /// The same with a remedy.
    pub fn help(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Whether the guest cannot be created because of this.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Most columns of a line that are shown, so that one long line does not fill the screen.
const SHOWN_COLUMNS: usize = 160;

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match self.span {
            None => writeln!(f, "{}: {kind}: {}", self.file, self.message)?,
            Some(Span {
                line, column, len, ..
            }) => {
                writeln!(f, "{}:{line}:{column}: {kind}: {}", self.file, self.message)?;
                if column <= SHOWN_COLUMNS {
                    let text: String = self
                        .line_text
                        .chars()
                        .take(SHOWN_COLUMNS)
                        .map(|c| if c.is_control() { ' ' } else { c })
                        .collect();
                    let gutter = line.to_string();
                    let carets = "^".repeat(len.clamp(1, SHOWN_COLUMNS + 1 - column));
                    writeln!(f, " {gutter} | {text}")?;
                    let (pad, indent) = (gutter.len(), column - 1);
                    writeln!(f, " {:pad$} | {:indent$}{carets}", "", "")?;
                }
            }
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "  help: {remedy}")?;
        }
        Ok(())
    }
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .min()
        .filter(|&(distance, candidate)| distance <= 2.max(candidate.len() / 3).min(3))
        .filter(|&(distance, _)| distance < word.chars().count())
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace) from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let sources = [Source {
            name: "web.cfg".into(),
            text: "name = 'x'\nmemory = oops\n".into(),
        }];
        let span = Span {
            source: 0,
            line: 2,
            column: 10,
            len: 4,
        };
        let text = Diagnostic::at(Severity::Error, &sources, span, "no bare words")
            .help("quote it")
            .to_string();
        assert_eq!(
            text,
            "web.cfg:2:10: error: no bare words\n 2 | memory = oops\n   |          ^^^^\n  help: quote it\n"
        );
    }

    #[test]
    fn near_words_are_found() {
        let keys = ["memory", "maxmem", "vcpus", "vif", "disk"];
        for (word, wanted) in [
            ("memroy", Some("memory")),
            ("vcpu", Some("vcpus")),
            ("disks", Some("disk")),
            ("vfi", Some("vif")),
            ("something", None),
            ("a", None),
        ] {
            assert_eq!(nearest(word, keys), wanted, "{word}");
        }
    }
}
