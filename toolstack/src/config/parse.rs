//! Puts tokens together: `key = value`, `key += value`, lists.

use super::Source;
use super::diag::{Diagnostic, Severity, Span};
use super::lex::{Token, tokens};

/// Deepest nesting of lists.
const MAX_DEPTH: usize = 8;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub span: Span,
    /// Whether it was `+=`.
    pub append: bool,
    /// The value.
    pub value: Value,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value itself.
    pub kind: ValueKind,
    /// Where it stands; for a list, where it begins.
    pub span: Span,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A quoted string.
    Text(String),
    /// A number: its value, and how it is written.
    Number(i64, String),
    /// A list.
    List(Vec<Value>),
}

impl ValueKind {
    /// What kind of value it is, as messages name it.
    pub fn describe(&self) -> &'static str {
        match self {
            ValueKind::Text(_) => "a string",
            ValueKind::Number(..) => "a number",
            ValueKind::List(_) => "a list",
        }
    }
}

/// Reads one text; `index` is its number for the places.
///
/// # Errors
/// The first thing that cannot be understood.
pub fn parse(source: &Source, index: usize) -> Result<Vec<Entry>, Diagnostic> {
    let mut parser = Parser {
        tokens: tokens(source, index)?,
        at: 0,
        source,
        index,
    };
    let mut entries = Vec::new();
    while let Some((token, span)) = parser.next() {
        match token {
            Token::Newline | Token::Semicolon => {}
            Token::Word(key) => entries.push(parser.entry(key, span)?),
            other => {
                let message = format!("expected a key, found {}", other.describe());
                return Err(parser
                    .error(span, message)
                    .help("a line is `key = value`, such as memory = 64 or name = \"web\""));
            }
        }
    }
    Ok(entries)
}

struct Parser<'a> {
    tokens: Vec<(Token, Span)>,
    at: usize,
    source: &'a Source,
    index: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<(Token, Span)> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn skip_newlines(&mut self) {
        while matches!(self.tokens.get(self.at), Some((Token::Newline, _))) {
            self.at += 1;
        }
    }

    fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        let local = Span { source: 0, ..span };
        let sources = std::slice::from_ref(self.source);
        let mut diagnostic = Diagnostic::at(Severity::Error, sources, local, message);
        diagnostic.span = Some(span);
        diagnostic
    }

    /// The place behind the last token.
    fn end(&self) -> Span {
        let last = self.tokens.iter().rev().find(|(t, _)| *t != Token::Newline);
        last.map_or(
            Span {
                source: self.index,
                line: 1,
                column: 1,
                len: 1,
            },
            |(_, span)| Span {
                column: span.column + span.len,
                len: 1,
                ..*span
            },
        )
    }

    fn entry(&mut self, key: String, span: Span) -> Result<Entry, Diagnostic> {
        let append = match self.next() {
            Some((Token::Set, _)) => false,
            Some((Token::Append, _)) => true,
            other => {
                let (found, at) = self.found(other);
                let message = format!("expected `=` after `{key}`, found {found}");
                return Err(self.error(at, message));
            }
        };
        let value = self.value(0)?;
        match self.next() {
            None | Some((Token::Newline | Token::Semicolon, _)) => {}
            Some((token, at)) => {
                let message = format!("unexpected {} behind the value", token.describe());
                let help = match (&value.kind, &token) {
                    (ValueKind::Number(_, number), Token::Word(unit)) => {
                        format!("a size with a unit goes in quotes: \"{number}{unit}\"")
                    }
                    _ => "a statement ends at the end of its line or at `;`".into(),
                };
                return Err(self.error(at, message).help(help));
            }
        }
        Ok(Entry {
            key,
            span,
            append,
            value,
        })
    }

    fn found(&self, token: Option<(Token, Span)>) -> (String, Span) {
        match token {
            Some((Token::Newline, span)) => ("the end of the line".into(), span),
            Some((token, span)) => (token.describe(), span),
            None => ("the end of the file".into(), self.end()),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        let next = self.next();
        let (kind, span) = match next {
            Some((Token::Text(text), span)) => (ValueKind::Text(text), span),
            Some((Token::Number(value, written), span)) => {
                (ValueKind::Number(value, written), span)
            }
            Some((Token::Open, span)) if depth < MAX_DEPTH => {
                (ValueKind::List(self.list(span, depth + 1)?), span)
            }
            Some((Token::Open, span)) => {
                return Err(self.error(span, "lists are nested too deeply"));
            }
            other => {
                let (found, at) = self.found(other.clone());
                let diagnostic =
                    self.error(at, format!("expected a value after `=`, found {found}"));
                return Err(match other {
                    Some((Token::Word(word), _)) => {
                        diagnostic.help(format!("strings go in quotes: \"{word}\""))
                    }
                    _ => diagnostic.help("a value is a number, a \"string\" or a [ list ]"),
                });
            }
        };
        Ok(Value { kind, span })
    }

    fn list(&mut self, open: Span, depth: usize) -> Result<Vec<Value>, Diagnostic> {
        let mut items = Vec::new();
        loop {
            self.skip_newlines();
            if let Some((Token::Close, _)) = self.tokens.get(self.at) {
                self.at += 1;
                return Ok(items);
            }
            if self.at >= self.tokens.len() {
                return Err(self
                    .error(open, "the list that begins here does not end")
                    .help("close it with ]"));
            }
            items.push(self.value(depth)?);
            self.skip_newlines();
            match self.next() {
                Some((Token::Comma, _)) => {}
                Some((Token::Close, _)) => return Ok(items),
                None => {
                    return Err(self
                        .error(open, "the list that begins here does not end")
                        .help("close it with ]"));
                }
                Some((token, at)) => {
                    let message =
                        format!("expected `,` or `]` in a list, found {}", token.describe());
                    return Err(self.error(at, message));
                }
            }
        }
    }
}

/// Adds entries: the last one of a key wins, `+=` joins strings and lists.
pub(crate) fn merge(
    all: &mut Vec<Entry>,
    new: Vec<Entry>,
    sources: &[Source],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for entry in new {
        let Some(old) = all.iter_mut().find(|old| old.key == entry.key) else {
            all.push(entry);
            continue;
        };
        if !entry.append {
            *old = entry;
            continue;
        }
        match (&mut old.value.kind, entry.value.kind) {
            (ValueKind::Text(text), ValueKind::Text(more)) => text.push_str(&more),
            (ValueKind::List(list), ValueKind::List(more)) => list.extend(more),
            (ValueKind::Text(text), ValueKind::Number(_, more)) => text.push_str(&more),
            (kind @ ValueKind::Number(..), ValueKind::Text(more)) => {
                if let ValueKind::Number(_, text) = kind {
                    *kind = ValueKind::Text(format!("{text}{more}"));
                }
            }
            (was, is) => diagnostics.push(
                Diagnostic::at(
                    Severity::Error,
                    sources,
                    entry.value.span,
                    format!(
                        "`{}` is {}, so {} cannot be appended to it",
                        entry.key,
                        was.describe(),
                        is.describe()
                    ),
                )
                .help("`+=` joins a string to a string or a list to a list"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_text(text: &str) -> Result<Vec<Entry>, String> {
        let source = Source {
            name: "t".into(),
            text: text.into(),
        };
        parse(&source, 0).map_err(|error| error.to_string())
    }

    #[test]
    fn statements_are_read() {
        let entries =
            parse_text("a=1;b = 'x'\n\nc = [ 'p',\n # note\n ['q', 2,], ]\nc += []").unwrap();
        let keys: Vec<_> = entries.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c", "c"]);
        let ValueKind::List(list) = &entries[2].value.kind else {
            panic!()
        };
        assert_eq!(list.len(), 2);
        assert!(entries[3].append);
        assert_eq!((entries[2].span.line, entries[2].span.column), (3, 1));
    }

    #[test]
    fn errors_name_the_place() {
        for (text, part) in [
            (
                "a",
                "t:1:2: error: expected `=` after `a`, found the end of the file",
            ),
            (
                "a\n= 1",
                "t:1:2: error: expected `=` after `a`, found the end of the line",
            ),
            ("a = ", "t:1:4: error: expected a value"),
            ("a = word", "strings go in quotes: \"word\""),
            (
                "a = 1 2",
                "t:1:7: error: unexpected a number behind the value",
            ),
            ("a = 64m", "goes in quotes: \"64m\""),
            ("= 1", "t:1:1: error: expected a key, found `=`"),
            (
                "a = [ 1, 2",
                "t:1:5: error: the list that begins here does not end",
            ),
            ("a = [ 1 2 ]", "t:1:9: error: expected `,` or `]`"),
            ("a=[[[[[[[[[[1]]]]]]]]]]", "nested too deeply"),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "\\PC*") {
            let _ = parse_text(&text);
        }

        #[test]
        fn near_config_never_panics(text in "([a-c]{1,2}|=|\\+=|\\[|\\]|,|;|\n|'|\"|\\\\|0x|9|#| ){0,40}") {
            let _ = parse_text(&text);
        }
    }
}
