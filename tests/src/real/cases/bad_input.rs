//! What a user gets wrong: the answer names the thing and the remedy, and nothing is left behind.

use scenarios::{Outcome, demand};

use crate::real::driver::Driver;
use crate::real::guest::Config;
use crate::real::host::{Host, Ran};
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/hello";

/// Each kind of mistake, one after another.
pub fn in_dom0(host: &Host) -> Outcome {
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    let text = host
        .write_file("text", "This is no kernel.\n")?
        .display()
        .to_string();
    let good = || Config::new("bad", &kernel, 32);
    // What is wrong, the configuration, words that the answer must hold.
    let rows: [(&str, Config, &[&str]); 8] = [
        (
            "a wrong line",
            good().line("vcpus = = 1"),
            &["bad.cfg", "6"],
        ),
        (
            "a missing kernel",
            Config::new("bad", "/no/such/kernel", 32),
            &["/no/such/kernel"],
        ),
        (
            "a kernel that is text",
            Config::new("bad", &text, 32),
            &[&text],
        ),
        (
            "a kernel for no Xen",
            Config::new("bad", "/lab/bin/xlrs", 32),
            &["/lab/bin/xlrs"],
        ),
        (
            "a missing disk",
            good().disk("/no/such/disk.img".as_ref()),
            &["/no/such/disk.img"],
        ),
        (
            "more memory than there is",
            Config::new("bad", &kernel, 1 << 20),
            &["memory"],
        ),
        (
            "less memory than it needs",
            Config::new("bad", &kernel, 1),
            &["memory"],
        ),
        (
            "no bridge of that name",
            good().vif("nobridge"),
            &["nobridge"],
        ),
    ];
    for (what, config, words) in rows {
        leaves_nothing(host, || {
            host.step(what);
            let ran = create(host, config)?;
            refused(&ran, words)
        })?;
    }
    leaves_nothing(host, || {
        let driver = Driver::create(host, "taken", |config| config)?;
        host.step("a name in use");
        let ran = create(host, Config::new("taken", &kernel, 32))?;
        refused(&ran, &["taken"])?;
        driver.shutdown()
    })
}

fn create(host: &Host, config: Config) -> Outcome<Ran> {
    let file = config.write(host, "bad.cfg")?;
    host.run_toolstack(&["create", &file.display().to_string()])
}

fn refused(ran: &Ran, words: &[&str]) -> Outcome {
    println!("    {}", ran.stderr.trim_end().replace('\n', "\n    "));
    demand!(ran.status > 0 && ran.status < 126, "not refused: {ran}");
    for word in words {
        demand!(
            ran.stderr.contains(word),
            "the answer does not name {word:?}: {ran}"
        );
    }
    demand!(
        ran.stderr.contains("help:"),
        "the answer tells no remedy: {ran}"
    );
    demand!(!ran.stderr.contains("panicked"), "a panic: {ran}");
    Ok(())
}
