//! The grammar of configuration texts against libxlutil's.

use xlrs::config::{Entry, Source, ValueKind, entries};

use crate::generate::Maker;
use crate::tally::{Difference, Outcome, Tally};
use crate::witness::{Answer, Witness};

/// What a text says of the keys asked for.
type Values = Vec<Option<Shape>>;

/// A value without types, as libxlutil has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Text(String),
    List(Vec<Shape>),
}

const KEYS: [&str; 4] = ["a", "b", "c.d", "e_1"];

#[test]
fn texts_mean_what_libxlutil_says() {
    let Some(mut witness) = Witness::start("texts_mean_what_libxlutil_says") else {
        return;
    };
    let mut maker = Maker::new(1);
    let mut tally = Tally::new("configuration texts", maker.seed, KNOWN);
    for _ in 0..Maker::count(45_000) {
        let text = document(&mut maker);
        let source = Source {
            name: "t".into(),
            text: text.clone(),
        };
        let ours = entries(&[source]).map_err(|e| e.to_string());
        let mut keys: Vec<&str> = KEYS.to_vec();
        keys.extend(ours.iter().flatten().map(|entry| entry.key.as_str()));
        keys.truncate(16);
        let ours = ours.as_ref().map(|list| values(list, &keys));
        let question: Vec<&str> = std::iter::once(text.as_str()).chain(keys).collect();
        let theirs = read(&witness.ask(b'c', &question), question.len() - 1);
        tally.compare(&text, &ours.map_err(String::clone), &theirs);
    }
    tally.finish(20_000);
}

fn values(list: &[Entry], keys: &[&str]) -> Values {
    let find = |key: &&str| list.iter().find(|entry| entry.key == **key);
    keys.iter()
        .map(|key| find(key).map(|entry| shape(&entry.value.kind)))
        .collect()
}

fn shape(kind: &ValueKind) -> Shape {
    match kind {
        ValueKind::Text(text) => Shape::Text(text.clone()),
        ValueKind::Number(value, written) => {
            let strtol = xlrs_number(written);
            assert_eq!(strtol, Some(*value), "{written}");
            Shape::Text(written.clone())
        }
        ValueKind::List(list) => Shape::List(list.iter().map(|value| shape(&value.kind)).collect()),
    }
}

/// A number as strtol takes it, once more.
fn xlrs_number(text: &str) -> Option<i64> {
    match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(hex), _) => i64::from_str_radix(hex, 16).ok(),
        (None, Some(octal)) if !octal.is_empty() => i64::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// Takes an answer apart.
fn read(answer: &Answer, keys: usize) -> Outcome<Values> {
    if answer.status != 0 {
        return Err(format!("errno {}", answer.status));
    }
    let mut rest = answer.text.as_str();
    let values = (0..keys).map(|_| value(&mut rest)).collect();
    assert_eq!(rest, "", "{answer:?}");
    Ok(values)
}

fn value(rest: &mut &str) -> Option<Shape> {
    let (kind, tail) = rest.split_at(1);
    *rest = tail;
    if kind == "-" {
        return None;
    }
    let (count, tail) = rest.split_once(':').expect("a count");
    let count: usize = count.parse().expect("a count");
    *rest = tail;
    if kind == "L" {
        return Some(Shape::List(
            (0..count).filter_map(|_| value(rest)).collect(),
        ));
    }
    let (text, tail) = rest.split_at(count);
    let (_number, tail) = tail.split_once(';').expect("the end of a text");
    *rest = tail;
    Some(Shape::Text(text.to_string()))
}

/// A few statements.
fn document(maker: &mut Maker) -> String {
    let mut text = String::new();
    let count = 1 + maker.below(5);
    for index in 0..count {
        text += maker.some(&[" ", "\t", "\n", "# note\n"], 1).as_str();
        text += maker.one(&KEYS);
        text += maker.one(&["=", " = ", "= ", "\t=", " = ", "=", "+=", " += "]);
        text += &value_text(maker, 0);
        text += maker.one(&["\n", "\n", "\n", "\n", "\n", ";", " ; ", " # x\n", ";\n"]);
        if index + 1 == count && maker.percent(4) {
            text.pop();
        }
    }
    if maker.percent(2) {
        text = text.replace('\n', "\r\n");
    }
    maker.spoil(text, 20)
}

fn value_text(maker: &mut Maker, depth: usize) -> String {
    match maker.below(if depth > 3 { 6 } else { 10 }) {
        0..4 => quoted(maker),
        4 => maker.number(),
        5 => maker
            .one(&[
                "0x1f",
                "010",
                "09",
                "9ab",
                "1f",
                "0x",
                "99999999999999999999",
                "0",
            ])
            .into(),
        _ => {
            let gap = [" ", "\n", "", "", "# c\n", "\t"];
            let mut list = String::from("[");
            let count = maker.below(4);
            for index in 0..count {
                list += maker.one(&gap);
                list += &value_text(maker, depth + 1);
                list += maker.one(&gap);
                if index + 1 < count || maker.percent(20) {
                    list.push(',');
                }
            }
            list + maker.one(&gap) + "]"
        }
    }
}

fn quoted(maker: &mut Maker) -> String {
    const PIECES: &[&str] = &[
        "a",
        "web",
        "/dev/vg/x",
        " ",
        "=",
        ",",
        "#",
        ";",
        "[",
        "]",
        "5",
        "\\\\",
        "\\n",
        "\\t",
        "\\a",
        "\\b",
        "\\f",
        "\\r",
        "\\v",
        "\\'",
        "\\\"",
        "ü",
        ".",
        "-",
        ":",
    ];
    let quote = maker.one(&["'", "\""]);
    let mut text = maker.some(PIECES, 4);
    if maker.percent(3) {
        text += maker.one(&["\\q", "\\x41", "\\101", "\n", "\\", "'", "\""]);
    }
    format!("{quote}{text}{quote}")
}

const KNOWN: &[Difference<Values>] = &[
    Difference {
        name: "carriage return",
        why: "xl calls CR LF a lexical error; files from other systems are not at fault",
        is: |text, ours, theirs| text.contains('\r') && ours.is_ok() && theirs.is_err(),
    },
    Difference {
        name: "last line",
        why: "xl wants a newline behind a comment that ends the file",
        is: |text, ours, theirs| {
            let last = text.rsplit('\n').next().unwrap_or("");
            last.contains('#') && ours.is_ok() && theirs.is_err()
        },
    },
    Difference {
        name: "sum",
        why: "memory=64 and memory+=64 make 6464 in xl; here two numbers are not joined",
        is: |text, ours, theirs| {
            let why = "is a number, so a number cannot be appended";
            text.contains("+=") && ours.as_ref().is_err_and(|e| e.contains(why)) && theirs.is_ok()
        },
    },
    Difference {
        name: "no newline",
        why: "xl does not look at a last line that has no newline and only a wrong character",
        is: |text, ours, theirs| !text.ends_with('\n') && ours.is_err() && theirs.is_ok(),
    },
    Difference {
        name: "octal escape",
        why: "xl takes \\101 and makes nothing of it, where its grammar promises a character",
        is: |text, ours, theirs| {
            let digit = |pair: &[u8]| pair[0] == b'\\' && pair[1].is_ascii_digit();
            text.as_bytes().windows(2).any(digit) && ours.is_err() && theirs.is_ok()
        },
    },
];
