//! What a command line that is being typed may go on with: commands, options, values, guests and cpupools as they are
//! called now. The shells' scripts in `toolstack/completions` ask it at each key.
//!
//! Invariant: whatever is not there, such as a store, only makes the answer shorter.

use std::any::TypeId;
use std::path::PathBuf;

use clap::{Arg, Command};
use xlrs::store::{children, name_of, text};
use xs_client::Connection;

/// What may follow.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These words, each with what it means.
    Words(Vec<(String, String)>),
    /// The name of a file, which the shell knows best.
    File,
}

/// What people have given names to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Guests; and dom0, if what is to be done can be done with it.
    Guests {
        /// dom0, too.
        dom0: bool,
    },
    /// Cpupools.
    Pools,
}

/// Commands that dom0 is not offered to.
const NOT_FOR_DOM0: &[&str] = &[
    "config-update",
    "console",
    "destroy",
    "dump-core",
    "pause",
    "reboot",
    "rename",
    "shutdown",
    "sysrq",
    "trigger",
    "unpause",
];

/// What the last of the words, which may be empty, may become. The first one is what follows the program's name.
pub fn complete(command: &Command, words: &[String], names: &dyn Fn(Named) -> Vec<String>) -> Next {
    let (words, split) = join(words);
    let Some((current, before)) = words.split_last() else {
        return Next::Words(Vec::new());
    };
    let mut here = command;
    let mut positional = 0;
    let mut pending: Option<&Arg> = None;
    let mut options_ended = false;
    for word in before {
        if pending.take().is_some() {
            continue;
        }
        if word == "--" {
            options_ended = true;
        } else if !options_ended && word.len() > 1 && word.starts_with('-') {
            pending = option(here, word).filter(|arg| takes_value(arg) && !word.contains('='));
        } else if here.has_subcommands() {
            match subcommand(here, word) {
                Some(below) => here = below,
                None => return Next::Words(Vec::new()),
            }
        } else {
            positional += 1;
        }
    }
    let value = |arg: &Arg, given: &str, before: &str| match values(here, arg, names) {
        Next::Words(words) => Next::Words(beginning(words, given, before)),
        Next::File => Next::File,
    };
    if let Some(arg) = pending {
        return value(arg, current, "");
    }
    if !options_ended && current.starts_with('-') {
        if let Some((name, given)) = current.split_once('=') {
            let before = if split { "" } else { &current[..=name.len()] };
            let arg = option(here, name).filter(|arg| takes_value(arg));
            return arg.map_or(Next::Words(Vec::new()), |arg| value(arg, given, before));
        }
        return Next::Words(beginning(options(here), current, ""));
    }
    if here.has_subcommands() {
        let shown = here.get_subcommands().filter(|below| !below.is_hide_set());
        let shown = shown.map(|below| (below.get_name().to_string(), about(below.get_about())));
        return Next::Words(beginning(shown.collect(), current, ""));
    }
    let last = here.get_positionals().last();
    let last = last.filter(|arg| arg.get_num_args().is_some_and(|n| n.max_values() > 1));
    match here.get_positionals().nth(positional).or(last) {
        Some(arg) => value(arg, current, ""),
        None => Next::Words(Vec::new()),
    }
}

/// bash takes a word apart at each `=`: what belongs to an option is put together again. Whether the last word was so.
fn join(words: &[String]) -> (Vec<String>, bool) {
    let mut out: Vec<String> = Vec::new();
    let mut open = false;
    for word in words {
        match out.last_mut() {
            Some(last) if word == "=" && last.starts_with("--") => {
                last.push('=');
                open = true;
            }
            Some(last) if open => {
                last.push_str(word);
                open = false;
            }
            _ => out.push(word.clone()),
        }
    }
    let split = words.len() > 1 && words[..words.len() - 1].last().is_some_and(|w| w == "=")
        || words.last().is_some_and(|w| w == "=");
    (out, split)
}

fn subcommand<'c>(command: &'c Command, word: &str) -> Option<&'c Command> {
    if let Some(found) = command.find_subcommand(word) {
        return Some(found);
    }
    let mut found = command
        .get_subcommands()
        .filter(|below| below.get_name().starts_with(word));
    match (found.next(), found.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

fn option<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let mut all = command.get_arguments();
    match word.strip_prefix("--") {
        Some(long) => {
            let long = long.split('=').next().unwrap_or(long);
            all.find(|arg| {
                let names = arg.get_long().into_iter();
                let mut names = names.chain(arg.get_all_aliases().unwrap_or_default());
                names.any(|name| name == long)
            })
        }
        // Of `-ab` the last decides whether a value follows.
        None => all.find(|arg| arg.get_short() == word.chars().last()),
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

fn options(command: &Command) -> Vec<(String, String)> {
    let shown = command
        .get_arguments()
        .filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    let names = shown.map(|arg| {
        let name = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => String::new(),
        };
        (name, about(arg.get_help()))
    });
    names.collect()
}

/// What may stand for an argument.
fn values(command: &Command, arg: &Arg, names: &dyn Fn(Named) -> Vec<String>) -> Next {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let words = possible.iter().filter(|value| !value.is_hide_set());
        let words = words.map(|value| (value.get_name().to_string(), about(value.get_help())));
        return Next::Words(words.collect());
    }
    let dom0 = !NOT_FOR_DOM0.contains(&command.get_name());
    let named = |kind, what: &str| {
        let words = names(kind).into_iter().map(|name| (name, what.to_string()));
        Next::Words(words.collect())
    };
    let renaming = command.get_name() == "cpupool-rename";
    match arg.get_id().as_str() {
        "domain" | "domains" => named(Named::Guests { dom0 }, "guest"),
        "name" if command.get_name() == "domid" => named(Named::Guests { dom0 }, "guest"),
        "cpupool" => named(Named::Pools, "cpupool"),
        "name" if renaming => Next::Words(Vec::new()),
        // A file, and then settings that only their author knows.
        "words" => Next::File,
        _ if arg.get_value_parser().type_id() == TypeId::of::<PathBuf>() => Next::File,
        _ => Next::Words(Vec::new()),
    }
}

fn beginning(words: Vec<(String, String)>, given: &str, before: &str) -> Vec<(String, String)> {
    let fitting = words
        .into_iter()
        .filter(|(word, _)| !word.is_empty() && word.starts_with(given));
    fitting
        .map(|(word, about)| (format!("{before}{word}"), about))
        .collect()
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_string()
}

/// What things are called now, as the store knows.
pub fn names(kind: Named) -> Vec<String> {
    let Ok(store) = Connection::from_env() else {
        return Vec::new();
    };
    let list = |path: &str| children(&store, None, path).unwrap_or_default();
    let found: Vec<Option<String>> = match kind {
        Named::Guests { dom0 } => list("/local/domain")
            .iter()
            .filter_map(|child| child.parse().map(xen_sys::DomId).ok())
            .filter(|dom| dom0 || *dom != xen_sys::DomId::DOM0)
            .map(|dom| name_of(&store, dom).ok().flatten())
            .collect(),
        Named::Pools => list("/local/pool")
            .iter()
            .map(|child| text(&store, None, &format!("/local/pool/{child}/name")))
            .map(|name| name.ok().flatten())
            .collect(),
    };
    let mut names: Vec<String> = found.into_iter().flatten().collect();
    // One line is one word.
    names.retain(|name| !name.contains(char::is_control));
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Vec<String>> {
        let mut command = crate::cli::description();
        command.build();
        let typed: Vec<String> = line.split(' ').map(String::from).collect();
        let names = |kind: Named| {
            let names: &[&str] = match kind {
                Named::Guests { dom0: true } => &["Domain-0", "db", "web"],
                Named::Guests { dom0: false } => &["db", "web"],
                Named::Pools => &["Pool-0", "fast"],
            };
            names.iter().map(ToString::to_string).collect()
        };
        match complete(&command, &typed, &names) {
            Next::File => None,
            Next::Words(words) => Some(words.into_iter().map(|(word, _)| word).collect()),
        }
    }

    #[test]
    fn each_place_has_its_words() {
        // A line as it is typed, and what may follow.
        for (line, expected) in [
            ("cre", "create"),
            (
                "cpupool-c",
                "cpupool-create cpupool-cpu-add cpupool-cpu-remove",
            ),
            ("frobnicate ", ""),
            ("console ", "db web"),
            ("console w", "web"),
            ("cons w", "web"),
            // They stand for several commands.
            ("con w", ""),
            ("console web ", ""),
            ("list ", "Domain-0 db web"),
            ("list web ", "Domain-0 db web"),
            ("ls w", "web"),
            ("-N vcpu-pin w", "web"),
            ("vcpu-pin web ", ""),
            ("shutdown --w", "--wait"),
            ("shutdown -w d", "db"),
            ("destroy D", ""),
            ("mem-set D", "Domain-0"),
            ("domid d", "db"),
            ("domname ", ""),
            ("rename ", "db web"),
            ("rename web ", ""),
            ("cpupool-migrate web ", "Pool-0 fast"),
            ("cpupool-rename f", "fast"),
            ("sched-credit2 -d w", "web"),
            ("sched-credit2 --domain w", "web"),
            ("sched-credit2 --domain=w", "--domain=web"),
            // As bash has it.
            ("sched-credit2 --domain = w", "web"),
            ("sched-credit2 --domain =", "Domain-0 db web"),
            ("sched-credit2 -w ", ""),
            ("sched-credit2 -p ", "Pool-0 fast"),
            ("host st", "start stop status"),
            ("host start --q", "--quiet"),
            ("docs completions ", "bash zsh fish"),
            ("docs comp", "completions"),
            ("store re", "read"),
            ("trigger web n", "nmi"),
            ("console -- ", "db web"),
        ] {
            let expected: Vec<String> = expected.split_whitespace().map(String::from).collect();
            assert_eq!(words(line), Some(expected), "{line:?}");
        }
        assert!(words("").unwrap().len() > 40);
        let options = words("create -").unwrap();
        assert!(options.contains(&"--dry-run".to_string()), "{options:?}");
    }

    #[test]
    fn files_are_left_to_the_shell() {
        for line in [
            "create ",
            "create -q w",
            "create -f ",
            "check ",
            "run ",
            "run /bin/true --disk ",
            "config-update web ",
            "dump-core web ",
            "docs man ",
            "cpupool-create ",
        ] {
            assert_eq!(words(line), None, "{line:?}");
        }
    }
}
