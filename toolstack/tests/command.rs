//! The command as it is typed: with wrong words and files, without Xen, without a store daemon, without being root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_xlrs");

/// What a row of words shall end with.
struct Told {
    status: Option<i32>,
    /// All that it said, to whomever.
    text: String,
}

fn run(command: &mut Command) -> Told {
    let output = command.output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    Told {
        status: output.status.code(),
        text,
    }
}

fn xlrs(line: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(line.split(' ').filter(|word| !word.is_empty()))
        .env_remove("XENSTORED_PATH");
    command
}

/// Runs a line, and checks its status, what it says, and that it tells what to do.
fn check(command: &mut Command, status: i32, parts: &[&str]) {
    let told = run(command);
    let about = format!("{command:?}: {:?}\n{}", told.status, told.text);
    assert_eq!(told.status, Some(status), "{about}");
    for part in parts {
        assert!(told.text.contains(part), "no {part:?} in {about}");
    }
    if status != 0 {
        let remedies = [
            "help:",
            "--help",
            "boot the kernel",
            "Usage:",
            "`xlrs host",
            "sudo",
        ];
        let has_one = remedies.iter().any(|remedy| told.text.contains(remedy));
        assert!(has_one, "no remedy in {about}");
    }
}

/// A folder that goes with the test, with files in it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str, files: &[(&str, &str)]) -> Folder {
        let path = std::env::temp_dir().join(format!("xlrs-command-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (name, text) in files {
            std::fs::write(path.join(name), text).unwrap();
        }
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on its being gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_no_configuration_is_refused_by_name() {
    let program = Path::new(PROGRAM);
    let folder = program.parent().unwrap();
    for (path, part) in [
        // Without a limit it would be read until memory ends.
        (Path::new("/dev/zero"), "longer than 1 MiB"),
        (program, "longer than 1 MiB"),
        (folder, "EISDIR"),
        (Path::new("/no/such.cfg"), "ENOENT"),
    ] {
        let named = path.display().to_string();
        check(xlrs("check").arg(path), 1, &[part, &named, "help:"]);
    }
}

/// As xl: 2 if the words are wrong, 1 if there is no such command. Nothing is asked of Xen before that is known.
#[test]
fn wrong_words() {
    for (line, status, part) in [
        ("", 1, "Usage: xlrs"),
        ("frobnicate", 1, "unrecognized subcommand 'frobnicate'"),
        ("help frobnicate", 1, "unrecognized subcommand"),
        ("start web", 1, "`xlrs create FILE` starts a guest"),
        ("logs web", 1, "/var/log/xen/console"),
        // Short for several.
        ("p web", 1, "'pause'"),
        ("store", 1, "Usage: xlrs store"),
        ("store frobnicate", 1, "unrecognized subcommand"),
        ("host frobnicate", 1, "unrecognized subcommand"),
        ("create --frobnicate a.cfg", 2, "--frobnicate"),
        ("create", 6, "no configuration file is named"),
        ("create a.cfg b.cfg", 2, "two configuration files"),
        ("run", 2, "<KERNEL>"),
        ("run /bin/true --memory x", 2, "it is no size"),
        ("config-update web", 2, "no configuration file is named"),
        ("destroy", 2, "<DOMAIN>"),
        ("shutdown", 1, "<DOMAIN>"),
        ("shutdown -a web", 2, "cannot be used with"),
        ("reboot", 1, "<DOMAIN>"),
        ("pause", 2, "<DOMAIN>"),
        ("unpause", 2, "<DOMAIN>"),
        ("rename web", 2, "<NAME>"),
        ("sysrq web", 2, "<LETTER>"),
        ("sysrq web hh", 1, "it is not one letter"),
        ("trigger web frobnicate", 2, "invalid value"),
        ("dump-core web", 2, "<FILE>"),
        ("list --frobnicate", 2, "--frobnicate"),
        ("uptime --frobnicate", 2, "--frobnicate"),
        ("domid", 2, "<NAME>"),
        ("domname", 2, "<NUMBER>"),
        ("domname web", 1, "it is no domain's number"),
        ("console", 2, "<DOMAIN>"),
        ("console -t serial web", 2, "serial"),
        ("vcpu-pin web 0", 2, "<HARD"),
        ("vcpu-pin web x all", 1, "neither a number nor"),
        ("vcpu-set web x", 2, "invalid value 'x'"),
        ("mem-set web", 2, "<SIZE>"),
        ("mem-set web 12q", 1, "it is no size"),
        ("mem-max web 12q", 1, "it is no size"),
        ("sched-credit -d", 2, "--domain"),
        ("sched-credit2 -w 3", 2, "--domain"),
        ("sched-rtds -d web -p x", 2, "invalid value 'x'"),
        ("block-attach web", 2, "<DISK>"),
        ("block-attach web a,raw,xvda,q", 1, "unknown access"),
        ("block-list", 2, "<DOMAIN>"),
        ("block-detach web", 2, "<DISK>"),
        ("block-resize web", 2, "<DISK>"),
        ("block-snapshot web xvda", 2, "<FILE>"),
        ("block-snapshot -h", 0, "Example"),
        ("network-attach", 2, "<DOMAIN>"),
        ("network-list", 2, "<DOMAIN>"),
        ("network-detach web", 2, "Usage:"),
        ("channel-list", 2, "<DOMAIN>"),
        ("cpupool-create", 1, "no configuration file is named"),
        ("cpupool-create /no/such.cfg", 1, "ENOENT"),
        ("cpupool-destroy", 2, "Usage:"),
        ("cpupool-cpu-add pool", 2, "Usage:"),
        ("debug-keys", 2, "<KEYS>"),
        ("set-parameters", 2, "none is named"),
        ("top --frobnicate", 2, "--frobnicate"),
        ("store read", 2, "<PATHS>"),
        ("store write /a", 2, "<VALUE>"),
        ("check", 2, "<FILE>"),
        ("docs completions tcsh", 2, "invalid value"),
        ("-h", 0, "Usage: xlrs"),
        ("help", 0, "Usage: xlrs"),
        ("create -h", 0, "Usage: xlrs create"),
        ("--version", 0, "xlrs "),
    ] {
        check(&mut xlrs(line), status, &[part]);
    }
}

/// What there is not here says so, and a script that calls it goes no further.
#[test]
fn what_cannot_be_done_is_told() {
    for (line, part) in [
        ("save web file", "save guests"),
        ("restore file", "restore guests"),
        ("migrate web host", "migrate guests"),
        ("migrate-receive", "migrate guests"),
        ("devd", "driver domain"),
    ] {
        check(&mut xlrs(line), 1, &[part, "cannot do this yet", "help:"]);
    }
    for (line, part) in [
        ("pci-list web", "PCI devices"),
        ("cd-insert web hda x", "CD drive"),
        ("vncviewer web", "no screen"),
    ] {
        let told = run(&mut xlrs(line));
        assert_eq!(told.status, Some(1), "{line}: {}", told.text);
        assert!(told.text.contains(part), "{line}: {}", told.text);
    }
}

fn on_xen() -> bool {
    let kind = std::fs::read_to_string("/sys/hypervisor/type");
    let on_xen = kind.is_ok_and(|kind| kind.trim() == "xen");
    if on_xen {
        println!("skipped: this machine runs on Xen");
    }
    on_xen
}

/// Commands that need Xen, all with good words; and files in a folder, of which `@` is the path.
const NEED_XEN: &[&str] = &[
    "create @/good.cfg",
    "create -q -p @/good.cfg memory=32",
    "run /bin/true",
    "config-update web @/good.cfg",
    "destroy web",
    "shutdown web",
    "shutdown -a",
    "reboot web",
    "pause web",
    "unpause 7",
    "rename web other",
    "sysrq web h",
    "trigger web nmi",
    "dump-core web @/core",
    "list",
    "list web",
    "list -l",
    "vm-list",
    "uptime",
    "domid web",
    "domname 7",
    "console web",
    "vcpu-list",
    "vcpu-pin web 0 all",
    "vcpu-set web 2",
    "mem-set web 32",
    "mem-max web 32",
    "claims",
    "sched-credit",
    "sched-credit2",
    "sched-rtds",
    "block-attach web @/good.cfg,raw,xvda,r",
    "block-list web",
    "block-detach web xvda",
    "block-resize web xvda",
    "block-snapshot web xvda @/new.qcow2",
    "network-attach web",
    "network-list web",
    "network-detach web 0",
    "channel-list web",
    "cpupool-create name=pool",
    "cpupool-list",
    "cpupool-destroy pool",
    "cpupool-rename pool other",
    "cpupool-cpu-add pool 1",
    "cpupool-cpu-remove pool 1",
    "cpupool-migrate web pool",
    "cpupool-numa-split",
    "info",
    "info free_memory",
    "dmesg",
    "top",
    "debug-keys q",
    "set-parameters loglvl=info",
    "store ls",
    "store read /a",
    "store exists /a",
    "store write /a 1",
    // The daemons that this program is, too.
    "supervise",
    "serve-console",
];
const GOOD: (&str, &str) = ("good.cfg", "name='web'\nkernel='/bin/true'\nmemory=16\n");

/// Also where guests are made: xl cannot begin either, and ends with 1.
#[test]
fn without_xen() {
    if on_xen() {
        return;
    }
    let folder = Folder::new("no-xen", &[GOOD]);
    let path = folder.0.display().to_string();
    for line in NEED_XEN {
        let parts = [
            "does not run on Xen",
            "/sys/hypervisor/type",
            "boot the kernel",
        ];
        check(&mut xlrs(&line.replace('@', &path)), 1, &parts);
    }
}

/// A mistake in a file is told whether there is Xen or not.
#[test]
fn wrong_files() {
    let folder = Folder::new(
        "files",
        &[
            ("open.cfg", "name='web"),
            ("no-kernel.cfg", "name='web'\n"),
            ("no-file.cfg", "name='web'\nkernel='/no/such/kernel'\n"),
            (
                "no-quotes.cfg",
                "name='web'\nkernel='/bin/true'\nmemory=true\n",
            ),
            GOOD,
        ],
    );
    let path = folder.0.display().to_string();
    for (line, status, part) in [
        ("create @/open.cfg", 1, "does not end on its line"),
        ("create -n @/open.cfg", 1, "does not end on its line"),
        ("check @/open.cfg", 1, "open.cfg:1:6"),
        ("create @/no-kernel.cfg", 1, "the guest has no kernel"),
        ("create -n @/no-quotes.cfg", 1, "no-quotes.cfg:3"),
        ("create /no/such.cfg", 3, "ENOENT"),
        ("create -n /no/such.cfg", 3, "ENOENT"),
        ("create -n @/no-file.cfg", 3, "/no/such/kernel"),
        ("check @/no-file.cfg", 1, "/no/such/kernel"),
        // A file, but no kernel.
        ("create -n @/good.cfg", 3, "no kernel for a Xen PV guest"),
        ("check @/good.cfg", 1, "no kernel for a Xen PV guest"),
    ] {
        check(
            &mut xlrs(&line.replace('@', &path)),
            status,
            &[part, "help:"],
        );
    }
}

/// Who names a store need not be on Xen, and is told about the store.
#[test]
fn without_a_store_daemon() {
    let folder = Folder::new("no-store", &[]);
    let missing = folder.0.join("missing");
    let closed = folder.0.join("closed");
    // Nobody listens any more.
    drop(std::os::unix::net::UnixListener::bind(&closed).unwrap());
    for (socket, part) in [(missing, "(No such file"), (closed, "(Connection refused")] {
        let named = socket.display().to_string();
        for line in [
            "domid web",
            "domname 7",
            "console web",
            "store ls",
            "store read /a",
            "store exists /a",
            "store rm /a",
        ] {
            let mut command = xlrs(line);
            command.env("XENSTORED_PATH", &socket);
            check(&mut command, 1, &[&named, part, "`xlrs host start`"]);
        }
    }
}

/// Whoever is nobody is told what root may do.
#[test]
fn without_being_root() {
    const NOBODY: u32 = 65_534;
    let is_root = rustix::process::geteuid().is_root();
    let folder = Folder::new("nobody", &[GOOD, ("secret.cfg", GOOD.1)]);
    let program = folder.0.join("xlrs");
    std::fs::copy(PROGRAM, &program).unwrap();
    let allow = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.0.join(name), permissions).unwrap();
    };
    let socket = folder.0.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    allow("xlrs", 0o755);
    allow("good.cfg", 0o644);
    allow("secret.cfg", 0);
    allow("socket", 0);
    allow("", 0o555);
    let path = folder.0.display().to_string();
    let nobody = |line: &str| {
        let mut command = Command::new(&program);
        command
            .args(line.replace('@', &path).split(' '))
            .env("XENSTORED_PATH", &socket);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    for (line, status, parts) in [
        ("create @/secret.cfg", 3, ["EACCES", "run this as root"]),
        ("check @/secret.cfg", 1, ["EACCES", "run this as root"]),
        ("docs man @/man", 1, ["EACCES", "run this as root"]),
        ("host start", 1, ["only root can do that", "sudo xlrs host"]),
        ("host stop", 1, ["only root can do that", "sudo xlrs host"]),
        ("store ls", 1, ["socket (Permission denied", "only root"]),
        ("domid web", 1, ["socket (Permission denied", "only root"]),
        ("create -n @/good.cfg", 3, ["no kernel for", "help:"]),
        ("--help", 0, ["Usage: xlrs", "create"]),
    ] {
        check(&mut nobody(line), status, &parts);
    }
    if !on_xen() {
        let lines = [
            "list",
            "create @/good.cfg",
            "pause web",
            "supervise",
            "serve-console",
        ];
        for line in lines {
            check(&mut nobody(line), 1, &["does not run on Xen"]);
        }
    }
}
