//! A guest's life under the toolstack.

use std::time::Duration;

use scenarios::{OrStop, Outcome, demand};

use crate::real::console::Console;
use crate::real::driver::Driver;
use crate::real::guest::Config;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Ctrl-]
const LEAVE: u8 = 0x1d;
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Every way a guest is started, stopped and ends.
pub fn all(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        let mut driver = Driver::create(host, "life", |config| config)?;
        let row = driver.guest().listed()?;
        demand!(row.len() == 6, "a line of list has {row:?}");
        demand!(
            row[2] == "32" && row[3] == "1",
            "memory and vCPUs in {row:?}"
        );

        host.step("pause and unpause");
        host.toolstack(&["pause", "life"])?;
        demand!(
            driver.guest().listed()?[4].contains('p'),
            "state after pause: {:?}",
            driver.guest().listed()?
        );
        driver.guest().console.send("")?;
        host.toolstack(&["unpause", "life"])?;
        demand!(
            !driver.guest().listed()?[4].contains('p'),
            "state after unpause: {:?}",
            driver.guest().listed()?
        );
        driver.ping()?;

        host.step("console, and leaving it with Ctrl-]");
        attach(host)?;
        driver.ping()?;

        host.step("shutdown on request");
        driver.shutdown()?;
        host.step("destroy");
        Driver::create(host, "life", |config| config)?.destroy()?;
        host.step("a guest that powers off is removed");
        let mut driver = Driver::create(host, "life", |config| config)?;
        driver.tell("poweroff")?;
        driver.guest().wait_gone()?;
        drop(driver);
        host.step("a guest that crashes is removed");
        let mut driver =
            Driver::create(host, "life", |config| config.string("on_crash", "destroy"))?;
        driver.tell("crash")?;
        driver.guest().wait_gone()?;
        drop(driver);

        last_words(host)?;
        host.step("operations on a domain that is not there");
        for verb in ["pause", "unpause", "destroy", "shutdown"] {
            let ran = host.run_toolstack(&[verb, "nobody"])?;
            demand!(ran.status != 0 && ran.stderr.contains("nobody"), "{ran}");
        }
        Ok(())
    })
}

/// Guests that end within milliseconds, before anybody may have taken notice of them, have all that they said in
/// their log.
fn last_words(host: &Host) -> Outcome {
    if host.is_stock("console") {
        return Ok(());
    }
    host.step("last words of guests that end at once");
    let kernel = host.lab_file("/lab/guests/hello")?;
    for n in 1..=5 {
        let name = format!("brief{n}");
        let config = Config::new(&name, &kernel.display().to_string(), 16)
            .string("cmdline", "exit")
            .string("on_poweroff", "destroy");
        let file = config.write(host, "brief.cfg")?.display().to_string();
        host.toolstack(&["create", &file])?;
        host.wait_for("the guest is gone", CONSOLE_TIMEOUT, || {
            let ran = host.run_toolstack(&["domid", &name])?;
            Ok((ran.status != 0).then_some(()))
        })?;
        let log = format!("/var/log/xen/console/guest-{name}.log");
        host.wait_for(&format!("all it said is in {log}"), CONSOLE_TIMEOUT, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let all = said.contains("hello from a Rust guest") && said.contains("goodbye");
            Ok(all.then_some(()))
        })?;
    }
    Ok(())
}

/// Talks to the guest through the toolstack's own console command.
fn attach(host: &Host) -> Outcome {
    let (mut console, mut command) = Console::run(&[host.tool(), "console", "life"])?;
    // The command takes a moment to make the terminal raw; what is typed before is echoed, not lost.
    let answer = console
        .send("memory")
        .and_then(|()| console.wait_for("ok ", CONSOLE_TIMEOUT));
    let left = console.type_bytes(&[LEAVE]).and_then(|()| {
        host.wait_for(
            "the console command ends after Ctrl-]",
            CONSOLE_TIMEOUT,
            || command.try_wait().or_broken("wait for the console command"),
        )
    });
    if left.is_err() {
        let _ = command.kill();
        let _ = command.wait();
    }
    answer?;
    let status = left?;
    demand!(status.success(), "the console command ended with {status}");
    Ok(())
}
