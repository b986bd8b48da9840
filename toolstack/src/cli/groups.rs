//! Which commands belong together: the help lists them in groups.

use std::fmt::Write as _;

/// The groups in the order of the help, and the commands in each.
const GROUPS: [(&str, &[&str]); 7] = [
    (
        "Guests",
        &[
            "create",
            "run",
            "list",
            "console",
            "shutdown",
            "reboot",
            "destroy",
            "pause",
            "unpause",
            "rename",
            "config-update",
            "vm-list",
            "uptime",
            "domid",
            "domname",
            "sysrq",
            "trigger",
            "dump-core",
            "pool",
        ],
    ),
    (
        "CPU and memory",
        &[
            "vcpu-list",
            "vcpu-pin",
            "vcpu-set",
            "mem-set",
            "mem-max",
            "claims",
            "sched-credit",
            "sched-credit2",
            "sched-rtds",
        ],
    ),
    (
        "Devices",
        &[
            "block-attach",
            "block-list",
            "block-detach",
            "block-resize",
            "block-snapshot",
            "network-attach",
            "network-list",
            "network-detach",
            "channel-list",
        ],
    ),
    (
        "Cpupools",
        &[
            "cpupool-create",
            "cpupool-list",
            "cpupool-destroy",
            "cpupool-rename",
            "cpupool-cpu-add",
            "cpupool-cpu-remove",
            "cpupool-migrate",
            "cpupool-numa-split",
        ],
    ),
    (
        "Host",
        &[
            "host",
            "info",
            "top",
            "dmesg",
            "debug-keys",
            "set-parameters",
        ],
    ),
    ("Store", &["store"]),
    ("Other", &["check", "docs", HELP]),
];

/// clap's own, which is made only when it is called.
const HELP: &str = "help";

/// The command with a help that lists its commands in groups.
pub fn grouped(command: clap::Command) -> clap::Command {
    let styles = command.get_styles();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    // What is written to memory is always written.
    for (group, names) in GROUPS {
        let _ = writeln!(text, "\n{header}{group}:{header:#}");
        for name in names {
            let about = match command.find_subcommand(name) {
                Some(found) => about(found),
                None => "Show this help, or that of a command".into(),
            };
            let _ = writeln!(text, "  {literal}{name:<18}{literal:#}  {about}");
        }
    }
    let _ = write!(
        text,
        "\n{header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    command.help_template(text)
}

fn about(command: &clap::Command) -> String {
    let mut text = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    for alias in command.get_visible_aliases() {
        let _ = write!(text, " [alias: {alias}]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_stands_in_one_group() {
        let mut listed: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        listed.sort_unstable();
        let mut command = crate::cli::Cli::command();
        command.build();
        let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
        let mut shown: Vec<&str> = shown.map(clap::Command::get_name).collect();
        shown.sort_unstable();
        assert_eq!(listed, shown);
    }

    #[test]
    fn the_help_has_all_of_them() {
        let help = grouped(crate::cli::Cli::command())
            .render_long_help()
            .to_string();
        for (group, names) in GROUPS {
            assert!(help.contains(&format!("\n{group}:\n")), "{group}: {help}");
            for name in names {
                let line = help
                    .lines()
                    .find(|l| l.split_whitespace().next() == Some(name));
                let line = line.unwrap_or_else(|| panic!("no {name}: {help}"));
                assert!(line.len() > 25 && line.len() <= 100, "{line}");
            }
        }
        for part in ["Usage: xlrs", "-h, --help", "Exit status:"] {
            assert!(help.contains(part), "no {part}: {help}");
        }
        assert!(!help.contains('{'), "{help}");
    }
}
