//! Cuts a configuration text into tokens with their places.

use super::Source;
use super::diag::{Diagnostic, Severity, Span};

/// Longest configuration text that is read, in bytes.
pub const MAX_TEXT: usize = 1 << 20;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A key's name.
    Word(String),
    /// A quoted string, its escapes resolved.
    Text(String),
    /// A number: its value, and how it is written.
    Number(i64, String),
    /// `=`
    Set,
    /// `+=`
    Append,
    /// `[`
    Open,
    /// `]`
    Close,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// The end of a line.
    Newline,
}

impl Token {
    /// The token as a message names it.
    pub fn describe(&self) -> String {
        match self {
            Token::Word(word) => format!("`{word}`"),
            Token::Text(_) => "a string".into(),
            Token::Number(..) => "a number".into(),
            Token::Set => "`=`".into(),
            Token::Append => "`+=`".into(),
            Token::Open => "`[`".into(),
            Token::Close => "`]`".into(),
            Token::Comma => "`,`".into(),
            Token::Semicolon => "`;`".into(),
            Token::Newline => "the end of the line".into(),
        }
    }
}

/// Cuts the text; `index` is the source's number for the places.
pub fn tokens(source: &Source, index: usize) -> Result<Vec<(Token, Span)>, Diagnostic> {
    let mut lexer = Lexer {
        chars: source.text.chars().peekable(),
        source,
        index,
        line: 1,
        column: 1,
    };
    if source.text.len() > MAX_TEXT {
        let span = lexer.here();
        return Err(lexer.error(span, "the file is longer than 1 MiB: no configuration"));
    }
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push(token);
    }
    Ok(out)
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    source: &'a Source,
    index: usize,
    line: usize,
    column: usize,
}

impl Lexer<'_> {
    fn here(&self) -> Span {
        Span {
            source: self.index,
            line: self.line,
            column: self.column,
            len: 1,
        }
    }

    fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        // Places are relative to one source here.
        let mut diagnostic = Diagnostic::at(
            Severity::Error,
            std::slice::from_ref(self.source),
            Span { source: 0, ..span },
            message,
        );
        diagnostic.span = Some(span);
        diagnostic
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn take_while(&mut self, first: char, wanted: impl Fn(char) -> bool) -> String {
        let mut word = String::from(first);
        while let Some(&c) = self.chars.peek()
            && wanted(c)
        {
            word.push(c);
            self.bump();
        }
        word
    }

    fn next(&mut self) -> Result<Option<(Token, Span)>, Diagnostic> {
        loop {
            let mut span = self.here();
            let Some(c) = self.bump() else {
                return Ok(None);
            };
            let token = match c {
                ' ' | '\t' | '\r' => continue,
                '#' => {
                    while self.chars.peek().is_some_and(|&c| c != '\n') {
                        self.bump();
                    }
                    continue;
                }
                '\n' => Token::Newline,
                ';' => Token::Semicolon,
                ',' => Token::Comma,
                '[' => Token::Open,
                ']' => Token::Close,
                '=' => Token::Set,
                '+' if self.chars.peek() == Some(&'=') => {
                    self.bump();
                    Token::Append
                }
                '\'' | '"' => self.text(c, span)?,
                'a'..='z' => Token::Word(
                    self.take_while(c, |c| matches!(c, '.' | '_' | '0'..='9' | 'a'..='z')),
                ),
                '0'..='9' => {
                    let digits =
                        self.take_while(c, |c| c.is_ascii_digit() || matches!(c, 'a'..='f' | 'x'));
                    // xl takes 09 and 9ab as texts without quotes, and complains where a number is asked for.
                    match number(&digits) {
                        Some(value) => Token::Number(value, digits),
                        None => Token::Text(digits),
                    }
                }
                other => return Err(self.unexpected(other, span)),
            };
            if self.line == span.line {
                span.len = (self.column - span.column).max(1);
            }
            return Ok(Some((token, span)));
        }
    }

    fn unexpected(&mut self, c: char, mut span: Span) -> Diagnostic {
        if c.is_ascii_uppercase() {
            let word = self.take_while(c, |c| c.is_ascii_alphanumeric() || c == '_');
            span.len = word.len();
            if let Some(number) = self.number_before(span) {
                let message = format!("`{number}{word}` is no number");
                let help = format!("a size with a unit goes in quotes: \"{number}{word}\"");
                return self.error(span, message).help(help);
            }
            let help = match word.as_str() {
                "True" | "False" => "write 1 or 0".into(),
                _ => format!(
                    "keys are lower case: `{}`; values go in quotes",
                    word.to_lowercase()
                ),
            };
            return self
                .error(span, format!("`{word}` is neither a key nor a value"))
                .help(help);
        }
        let help = match c {
            '\\' => "a line cannot be continued; a list in [ ] may span lines",
            '-' => "numbers are not negative, and words go in quotes",
            ':' => "a setting is KEY = VALUE, and strings go in quotes",
            _ => "strings go in quotes, comments begin with #",
        };
        self.error(span, format!("unexpected character {c:?}"))
            .help(help)
    }

    /// The digits right before a place, if there are any.
    fn number_before(&self, span: Span) -> Option<String> {
        let line = self.source.text.lines().nth(span.line - 1)?;
        let before: String = line.chars().take(span.column - 1).collect();
        let rest = before.trim_end_matches(|c: char| c.is_ascii_digit());
        (rest.len() < before.len()).then(|| before[rest.len()..].to_string())
    }

    fn text(&mut self, quote: char, start: Span) -> Result<Token, Diagnostic> {
        let mut text = String::new();
        loop {
            let at = self.here();
            match self.chars.peek() {
                None | Some('\n') => {
                    return Err(self
                        .error(
                            start,
                            format!("the string that begins with {quote} does not end on its line"),
                        )
                        .help(format!("close it with {quote}")));
                }
                Some(_) => {}
            }
            match self.bump() {
                Some(c) if c == quote => return Ok(Token::Text(text)),
                Some('\\') => {
                    let c = self.bump().unwrap_or('\n');
                    text.push(escape(c).ok_or_else(|| {
                        self.error(
                            Span { len: 2, ..at },
                            format!("unknown escape \\{}", c.escape_default()),
                        )
                        .help("known ones are \\\\ \\\" \\' \\a \\b \\f \\n \\r \\t \\v")
                    })?);
                }
                Some('\0') => return Err(self.error(at, "a NUL byte in a string")),
                Some(c) => text.push(c),
                None => {}
            }
        }
    }
}

fn escape(c: char) -> Option<char> {
    Some(match c {
        '"' | '\'' | '\\' => c,
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        _ => return None,
    })
}

/// A number as strtol with base 0 takes it: 0x hexadecimal, 0 octal, else decimal.
pub fn number(text: &str) -> Option<i64> {
    if let Some(hex) = text.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        i64::from_str_radix(&text[1..], 8).ok()
    } else if text.starts_with(|c: char| c.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str) -> Result<Vec<Token>, String> {
        let source = Source {
            name: "t".into(),
            text: text.into(),
        };
        tokens(&source, 0)
            .map(|list| list.into_iter().map(|(token, _)| token).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn tokens_are_cut() {
        use Token::*;
        assert_eq!(
            lex("a.b_1 += [ 'x', 0x1f,\n010 ] ; # c\r\nz=\"q\\\"\\n\"").unwrap(),
            vec![
                Word("a.b_1".into()),
                Append,
                Open,
                Text("x".into()),
                Comma,
                Number(31, "0x1f".into()),
                Comma,
                Newline,
                Number(8, "010".into()),
                Close,
                Semicolon,
                Newline,
                Word("z".into()),
                Set,
                Text("q\"\n".into()),
            ]
        );
        assert_eq!(lex("# last line").unwrap(), vec![]);
        for odd in ["09", "9ab", "99999999999999999999"] {
            assert_eq!(lex(odd).unwrap(), vec![Text(odd.into())]);
        }
    }

    #[test]
    fn wrong_characters_are_named_with_their_place() {
        for (text, part) in [
            ("x = True", "t:1:5: error: `True`"),
            ("x = 'abc", "t:1:5: error: the string"),
            ("x = 'a\\x41'", "t:1:7: error: unknown escape"),
            ("\n  $", "t:2:3: error: unexpected character '$'"),
            ("Name='x'", "lower case: `name`"),
            ("x = \\\n1", "cannot be continued"),
            ("x = 64M", "t:1:7: error: `64M` is no number"),
            ("\nx = 64M", "goes in quotes: \"64M\""),
            ("x: 64", "a setting is KEY = VALUE"),
        ] {
            let error = lex(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
