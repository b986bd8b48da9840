//! `xlrs store` beside the stock xenstore-* tools: the same commands, each on a tree of its own in one
//! store, must print the same bytes, end with the same status and leave the same nodes.

use crate::{Outcome, demand};

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// Its standard output.
    pub stdout: String,
    /// Its exit status.
    pub status: i32,
}

/// Where the stock tools work, and where ours: of one length, for the width of lines.
const TREES: [&str; 2] = ["/xlrs-tools/a", "/xlrs-tools/b"];

/// Commands; `@` is the tree, `#` a string of 70 letters, `\B` each byte in escapes. Not here: what the
/// stock tools refuse only because a word is missing, which is our command line's matter.
const ROWS: &[&[&str]] = &[
    &["write", "@/a", "1", "@/b/c", "two words", "@/b/d", ""],
    &["write", "@/bytes", r"\B", "@/quote", "a\"b'c"],
    &["write", "@/escapes", r"\x41\x4\101\18\400\qx\xg"],
    &["write", "-R", "@/raw", r"a\nb"],
    &["write", "@/odd", r"\0\t\n\r\\\177\377"],
    &["write", "@/long", "#####", "@/longer", "#"],
    &["write", "@/##", "v", "@/n##", "", "@/z/y/x/w/v/u/t", "#"],
    &["write", "@/ok", "1", "@//bad", "1"],
    &["ls", "@"],
    &["ls", "-f", "@"],
    &["ls", "-p", "@"],
    &["ls", "-fp", "@"],
    &["ls", "@/a"],
    &["ls", "@/nope"],
    &["ls", "@/b/"],
    &["ls", "bad//path"],
    &["read", "@/a"],
    &["read", "@/bytes", "@/quote", "@/escapes", "@/raw"],
    &["read", "-p", "@/a", "@/b", "@/odd"],
    &["read", "-R", "@/a", "@/odd"],
    &["read", "@/a", "@/nope", "@/b"],
    &["read", "@/nope", "@/a"],
    &["read", "no-relative-path"],
    &["list", "@"],
    &["list", "-p", "@", "@/b"],
    &["list", "@/a"],
    &["list", "@", "@/nope"],
    &["exists", "@/a"],
    &["exists", "@/a", "@/b/c"],
    &["exists", "@/a", "@/nope"],
    &["exists", "@//a"],
    &["chmod", "@/b/c", "r0"],
    &["chmod", "@/b", "n0", "r0", "b0"],
    &["ls", "-p", "@/b"],
    &["chmod", "-r", "@/b", "w0"],
    &["chmod", "-u", "@/z/y/x", "n0", "w0"],
    &["ls", "-fp", "@"],
    &["chmod", "@/nope", "n0"],
    &["chmod", "-r", "@/nope", "n0"],
    &["chmod", "@/a", "x0"],
    &["chmod", "@//a", "n0"],
    &["watch", "-n", "1", "@/a"],
    &["watch", "-n", "2", "@/a", "@/b"],
    &["watch", "-n", "1", "@/not/there"],
    &["watch", "-n", "1", "@//a"],
    &["rm", "@/nope"],
    &["rm", "@/nope/x"],
    &["rm", "@/a", "@/nope/x"],
    &["exists", "@/a"],
    &["rm", "@/a", "@/b/c"],
    &["rm", "-t", "@/z/y/x/w/v/u/t"],
    &["ls", "-f", "@"],
    &["rm", "-t", "@/b/d", "@/quote"],
    &["ls", "-fp", "@"],
    &["rm", "@"],
    &["ls", "@"],
];

/// Children that do not fit one message.
const CHILDREN: usize = 700;

/// Runs all commands both ways. `run` is given a tool (`ls`), its words and whether it is ours.
pub fn same(mut run: impl FnMut(bool, &str, &[String]) -> Outcome<Said>) -> Outcome {
    for row in ROWS {
        both(&mut run, row)?;
    }
    let paths = (0..CHILDREN).map(|n| format!("@/a-name-that-takes-some-room-{n}"));
    let pairs: Vec<String> = paths.flat_map(|path| [path, "1".into()]).collect();
    let mut write = vec!["write"];
    write.extend(pairs.iter().map(String::as_str));
    for row in [&write[..], &["list", "@"], &["ls", "@"], &["rm", "@"]] {
        both(&mut run, row)?;
    }
    run(true, "rm", &["/xlrs-tools".to_owned()]).map(drop)
}

fn both(run: &mut impl FnMut(bool, &str, &[String]) -> Outcome<Said>, row: &[&str]) -> Outcome {
    let mut said = Vec::new();
    for (tree, ours) in TREES.into_iter().zip([false, true]) {
        let words: Vec<_> = row[1..].iter().map(|word| filled(word, tree)).collect();
        let Said { stdout, status } = run(ours, row[0], &words)?;
        let stdout = stdout.replace(tree, "@");
        said.push(Said { stdout, status });
    }
    let told = row.iter().take(8).copied().collect::<Vec<_>>().join(" ");
    demand!(
        said[0] == said[1],
        "xenstore-{told}\n  theirs: {:?}\n  ours:   {:?}",
        said[0],
        said[1]
    );
    Ok(())
}

fn filled(word: &str, tree: &str) -> String {
    let all: String = (0..=255).map(|byte| format!("\\x{byte:02x}")).collect();
    word.replace('@', tree)
        .replace('#', &"z".repeat(70))
        .replace(r"\B", &all)
}
