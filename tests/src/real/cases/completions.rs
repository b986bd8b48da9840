//! Completions in the shells themselves: commands, names of guests, files.

use std::time::Duration;

use scenarios::{OrStop, Outcome, demand};

use crate::real::console::Console;
use crate::real::driver::Driver;
use crate::real::host::Host;

/// A shell may read many files when it starts.
const WAIT: Duration = Duration::from_secs(60);
/// What `Tab` sends.
const TAB: char = '\t';

/// bash and zsh on a terminal, as somebody types; fish by its own command for that.
pub fn in_shells(host: &Host) -> Outcome {
    let driver = Driver::create(host, "completed", |config| config)?;
    let file = host.write_file("unfinished.cfg", "name = 'web'\n")?;
    let file = file.display().to_string();
    let beginning = beginning_of(&file);
    let dom = driver.dom().to_string();
    host.step("bash completes");
    let bash = ["bash", "--norc", "-i"];
    typed(&bash, "source <(xlrs docs completions bash)", &dom, &file)?;
    host.step("zsh completes");
    let zsh = ["env", "TERM=vt100", "zsh", "-f", "-i"];
    let load = "autoload -Uz compinit; compinit -D -u; source <(xlrs docs completions zsh)";
    typed(&zsh, load, &dom, &file)?;
    host.step("fish completes");
    for (line, expected) in [
        ("xlrs cons".to_string(), "console\tAttach"),
        ("xlrs console ".to_string(), "completed\tguest"),
        ("xlrs list D".to_string(), "Domain-0\tguest"),
        (format!("xlrs check {beginning}"), &*file),
    ] {
        let ask = format!("xlrs docs completions fish | source; complete -C '{line}'");
        let said = host
            .run(&["fish", "--no-config", "-c", &ask])?
            .succeeded()?;
        let found = said.stdout.lines().any(|line| line.starts_with(expected));
        demand!(found, "no {expected:?} after {line:?}: {said}");
    }
    driver.destroy()
}

fn beginning_of(file: &str) -> &str {
    file.trim_end_matches("ished.cfg")
}

/// Types beginnings of words and lets the shell complete them; what the line then does shows what became of them.
fn typed(shell: &[&str], load: &str, dom: &str, file: &str) -> Outcome {
    let beginning = beginning_of(file);
    let (mut console, mut shell) = Console::run(shell)?;
    let mut talk = || {
        console.send(load)?;
        // Else what is typed meanwhile is shown twice.
        console.send("echo lo''aded")?;
        console.wait_for("loaded", WAIT)?;
        // Half a guest's name is none: only a completed line prints its number.
        console.send(&format!("xlrs domi{TAB}comp{TAB}"))?;
        console.wait_line("the number of the guest", WAIT, |line| {
            (line.trim() == dom).then_some(())
        })?;
        console.send(&format!("xlrs check {beginning}{TAB}"))?;
        console.wait_for(&format!("{file}: error: the guest has no kernel"), WAIT)
    };
    let talked = talk();
    let _ = shell.kill();
    shell.wait().or_broken("wait for the shell")?;
    talked.map(|_| ())
}
