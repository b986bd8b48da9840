//! Stock programs on our store.

use scenarios::store_tools::{self, Said};
use scenarios::{Outcome, demand};
use xen_hal::Store;

use crate::real::driver::Driver;
use crate::real::guest::read_node;
use crate::real::host::{Host, Ran};
use crate::real::snapshot::leaves_nothing;

/// `xl list`, `xenstore-ls` and friends, and an `xl create` with a disk.
pub fn all(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 16)?;
    leaves_nothing(host, || {
        host.step("xenstore-write, -read, -ls, -rm");
        run(
            host,
            &[
                "xenstore-write",
                "/xlrs-test/a",
                "1",
                "/xlrs-test/b",
                "two words",
            ],
        )?;
        let read = run(host, &["xenstore-read", "/xlrs-test/b"])?;
        demand!(
            read.trim_end() == "two words",
            "xenstore-read gives {read:?}"
        );
        let listed = run(host, &["xenstore-ls", "-f", "/xlrs-test"])?;
        for line in ["/xlrs-test/a = \"1\"", "/xlrs-test/b = \"two words\""] {
            demand!(listed.contains(line), "xenstore-ls shows {listed:?}");
        }
        run(host, &["xenstore-chmod", "/xlrs-test/a", "n0", "r0"])?;
        run(host, &["xenstore-rm", "/xlrs-test"])?;
        let whole = run(host, &["xenstore-ls"])?;
        demand!(
            whole.contains("domain = \"\""),
            "xenstore-ls shows {whole:?}"
        );
        host.step("xl list");
        let list = run(host, &["xl", "list"])?;
        demand!(list.contains("Domain-0"), "xl list shows {list:?}");
        host.step("xl create with a disk");
        let driver = Driver::create(host, "stock-xl", |config| config.disk(&image))?;
        let name = read_node(
            &host.store()?,
            &format!("/local/domain/{}/name", driver.dom()),
        )?;
        demand!(
            name == "stock-xl",
            "the domain is called {name:?} in the store"
        );
        driver.fill_and_check(3, 0, 2048)?;
        let backends = host.store()?.list(
            None,
            &format!("/local/domain/0/backend/vbd/{}", driver.dom()),
        );
        demand!(
            backends.is_ok(),
            "no backend of the disk is in the store: {backends:?}"
        );
        driver.shutdown()
    })
}

/// `xlrs store` prints, returns and does what the stock tools do, through the socket and through the kernel.
pub fn ours_beside_theirs(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        for path in [&[][..], &["--socket", "/dev/xen/xenbus"]] {
            host.step(format!("xlrs store {}", path.join(" ")));
            store_tools::same(|ours, tool, arguments| {
                let program = format!("xenstore-{tool}");
                let mut words = match ours {
                    true => [&["xlrs", "store"], path, &[tool]].concat(),
                    false => vec![program.as_str()],
                };
                words.extend(arguments.iter().map(String::as_str));
                let Ran { stdout, status, .. } = host.run(&words)?;
                Ok(Said { stdout, status })
            })?;
        }
        let checked = run(host, &["xlrs", "store", "control", "check"])?;
        demand!(
            checked == "OK\n",
            "the store daemon's check says {checked:?}"
        );
        Ok(())
    })
}

fn run(host: &Host, words: &[&str]) -> Outcome<String> {
    Ok(host.run(words)?.succeeded()?.stdout)
}
