//! A disk that is in use is refused, under whatever name it is asked for, whoever uses it.

use std::path::Path;

use scenarios::{Outcome, demand};

use crate::real::guest::Config;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/hello";

/// The same storage for two guests, one of ours or of a stock xl; and for a guest and dom0.
pub fn in_use(host: &Host) -> Outcome {
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    let image = host.zero_file("disk.img", 8)?;
    let text = image.display().to_string();
    leaves_nothing(host, || {
        let link = host.scratch("link.img");
        let _ = std::fs::remove_file(&link);
        let hard = host.scratch("hard.img");
        let _ = std::fs::remove_file(&hard);
        run(host, &["ln", "-s", &text, &link.display().to_string()])?;
        run(host, &["ln", &text, &hard.display().to_string()])?;
        let looped = run(host, &["losetup", "-f", "--show", &text])?;
        let looped = looped.trim().to_string();
        let names = [image.as_path(), &link, &hard, Path::new(&looped)];
        for tool in ["xlrs", "xl"] {
            for first in [image.as_path(), Path::new(&looped)] {
                host.step(format!("{tool} has a guest on {}", first.display()));
                let file = config(&kernel, "first", first, "w").write(host, "first.cfg")?;
                run(host, &[tool, "create", &file.display().to_string()])?;
                // The supervisor takes notice of xl's guest.
                std::thread::sleep(std::time::Duration::from_millis(300));
                for name in names {
                    refused(
                        host,
                        config(&kernel, "second", name, "w"),
                        "which writes to it",
                    )?;
                    refused(
                        host,
                        config(&kernel, "second", name, "r"),
                        "which writes to it",
                    )?;
                }
                run(host, &["xlrs", "destroy", "first"])?;
            }
        }
        host.step("dom0 has it mounted");
        run(host, &["mke2fs", "-q", "-F", &looped])?;
        let point = host.scratch("mnt").display().to_string();
        run(host, &["mkdir", "-p", &point])?;
        run(host, &["mount", &looped, &point])?;
        for name in names {
            refused(
                host,
                config(&kernel, "second", name, "w"),
                "dom0 has it mounted",
            )?;
            refused(
                host,
                config(&kernel, "second", name, "r"),
                "dom0 has it mounted",
            )?;
        }
        run(host, &["umount", &point])?;
        host.step("read-only it may be shared");
        for name in ["first", "second"] {
            let file = config(&kernel, name, &image, "r").write(host, "shared.cfg")?;
            run(host, &["xlrs", "create", &file.display().to_string()])?;
        }
        refused(host, config(&kernel, "third", &image, "w"), "reads it")?;
        for name in ["first", "second"] {
            run(host, &["xlrs", "destroy", name])?;
        }
        run(host, &["losetup", "-d", &looped])?;
        Ok(())
    })
}

fn config(kernel: &str, name: &str, disk: &Path, access: &str) -> Config {
    Config::new(name, kernel, 16).line(&format!(
        "disk = ['format=raw,vdev=xvda,access={access},target={}']",
        disk.display()
    ))
}

fn refused(host: &Host, config: Config, why: &str) -> Outcome {
    let file = config.write(host, "second.cfg")?;
    let ran = host.run(&["xlrs", "create", "-q", &file.display().to_string()])?;
    println!("    {}", ran.stderr.trim_end().replace('\n', "\n    "));
    demand!(ran.status == 3, "not refused: {ran}");
    demand!(ran.stderr.contains(why), "not for {why:?}: {ran}");
    demand!(ran.stderr.contains("help:"), "no remedy: {ran}");
    Ok(())
}

fn run(host: &Host, words: &[&str]) -> Outcome<String> {
    Ok(host.run(words)?.succeeded()?.stdout)
}
