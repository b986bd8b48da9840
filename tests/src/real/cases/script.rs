//! A disk's custom script= is called as a stock xl calls it.

use std::os::unix::fs::PermissionsExt;

use scenarios::{OrStop, Outcome, demand};

use crate::real::guest::Config;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/hello";

/// Tells how it was called, then does what block scripts do.
const SCRIPT: &str = r#"#!/bin/sh
echo "$* script=$script type=$XENBUS_TYPE path=$XENBUS_PATH base=$XENBUS_BASE_PATH in=$(pwd)" >> LOG
params=$(xenstore-read $XENBUS_PATH/params) || exit 1
[ "$params" = "fail" ] && { xenstore-write $XENBUS_PATH/hotplug-error "no such share"; exit 3; }
case $1 in
add) loop=$(losetup -f --show FOLDER/$params) || exit 1
    minor=$(printf %x ${loop#/dev/loop})
    xenstore-write $XENBUS_PATH/node $loop $XENBUS_PATH/physical-device 7:$minor $XENBUS_PATH/hotplug-status connected ;;
remove) losetup -d $(xenstore-read $XENBUS_PATH/node) ;;
esac
"#;

/// The same disk with both toolstacks; a script that fails.
pub fn called_as_by_xl(host: &Host) -> Outcome {
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    let image = host.zero_file("share1", 4)?;
    let (log, script) = (host.scratch("log"), host.scratch("block-test"));
    let folder = image.parent().or_broken("a folder")?.display().to_string();
    let text = SCRIPT
        .replace("LOG", &log.display().to_string())
        .replace("FOLDER", &folder);
    std::fs::write(&script, text).or_broken("write the script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
        .or_broken("make the script executable")?;
    let config = |target: &str| {
        Config::new("scripted", &kernel, 16).line(&format!(
            "disk = ['format=raw,vdev=xvda,access=rw,script={},target={target}']",
            script.display()
        ))
    };
    let file = config("share1").write(host, "scripted.cfg")?;
    let file = file.display().to_string();
    let mut logs = Vec::new();
    for tool in ["xl", "xlrs"] {
        leaves_nothing(host, || {
            host.step(format!("{tool} create and destroy"));
            let _ = std::fs::remove_file(&log);
            host.run(&[tool, "create", &file])?.succeeded()?;
            let dom = host
                .run(&["xlrs", "domid", "scripted"])?
                .succeeded()?
                .stdout;
            host.run(&[tool, "destroy", "scripted"])?.succeeded()?;
            let said = std::fs::read_to_string(&log).or_broken("read what the script said")?;
            logs.push(said.replace(&format!("/vbd/{}/", dom.trim()), "/vbd/D/"));
            Ok(())
        })?;
    }
    println!("    {}", logs[1].trim_end().replace('\n', "\n    "));
    demand!(logs[0].lines().count() == 2, "xl called it {:?}", logs[0]);
    demand!(
        logs[0] == logs[1],
        "xl called it {:?}, xlrs {:?}",
        logs[0],
        logs[1]
    );
    leaves_nothing(host, || {
        let file = config("fail").write(host, "failing.cfg")?;
        let ran = host.run(&["xlrs", "create", "-q", &file.display().to_string()])?;
        println!("    {}", ran.stderr.trim_end().replace('\n', "\n    "));
        demand!(ran.status == 3, "not refused: {ran}");
        for word in ["block-test add", "exit status: 3", "no such share", "help:"] {
            demand!(ran.stderr.contains(word), "without {word:?}: {ran}");
        }
        Ok(())
    })
}
