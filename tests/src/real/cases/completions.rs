//! Completions in a shell itself: commands, names of guests, files.

use std::time::Duration;

use scenarios::{OrStop, Outcome};

use crate::real::console::Console;
use crate::real::driver::Driver;
use crate::real::host::Host;

/// A shell may read many files when it starts.
const WAIT: Duration = Duration::from_secs(60);
/// What `Tab` sends.
const TAB: char = '\t';

/// bash on a terminal, as somebody types: beginnings of words are completed; what the line then does shows what became
/// of them.
pub fn in_bash(host: &Host) -> Outcome {
    host.step("bash completes");
    let driver = Driver::create(host, "completed", |config| config)?;
    let dom = driver.dom().to_string();
    let file = host.write_file("unfinished.cfg", "name = 'web'\n")?;
    let file = file.display().to_string();
    let beginning = file.trim_end_matches("ished.cfg");
    let (mut console, mut shell) = Console::run(&["bash", "--norc", "-i"])?;
    let mut talk = || {
        console.send("source <(xlrs docs completions bash)")?;
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
    talked?;
    driver.destroy()
}
