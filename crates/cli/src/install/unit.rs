//! The systemd unit of a node.

use std::fmt::Write as _;

/// What the unit runs.
#[derive(Clone, Debug)]
pub struct Service {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Hard limit, in bytes.
    pub memory_max: Option<u64>,
}

/// The text of the unit.
///
/// Nothing in it may give the process a mount namespace of its own (`ProtectSystem=`, `PrivateTmp=`,
/// `ProtectKernelModules=`, …): what it mounts must be there for containerd and the containers. Nor a list of devices
/// (`ProtectClock=`): it needs /dev/fuse. Nor `RestrictSUIDSGID=`: layers have such files.
pub fn text(service: &Service) -> String {
    let mut command = String::new();
    for word in &service.command {
        let _ = write!(command, "{}{}", if command.is_empty() { "" } else { " " }, quoted(word));
    }
    let memory = match service.memory_max {
        None => String::new(),
        Some(bytes) => {
            format!(
                "# What it keeps within: `frontend.memory_budget`, or this node's share.\nMemoryMax={bytes}\n"
            )
        }
    };
    format!(
        "\
# Written by `sluice install`, which replaces it, and `sluice uninstall` removes it: put changes of yours into
# a drop-in (`systemctl edit sluice`).
[Unit]
Description=sluice: streams container images
After=local-fs.target
# containerd asks it for every container's root. No dependency the other way: containerd goes on without it.
Before=containerd.service docker.service kubelet.service
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# The connection to the kernel outlives the process: here, and in the process that holds it.
FileDescriptorStoreMax=4
KillMode=process
Restart=always
RestartSec=200ms
{memory}OOMPolicy=continue
OOMScoreAdjust=-999
LimitNOFILE=1048576
TasksMax=infinity
# Of images, and of who asked for them, nothing is for other users of the node.
UMask=0027
# What is mounted must be seen by containerd and the containers: nothing here may make a mount namespace.
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"
    )
}

/// A word of a command line, as systemd reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_=.,:+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(words: &[&str], memory_max: Option<u64>) -> String {
        text(&Service { command: words.iter().map(|word| (*word).to_owned()).collect(), memory_max })
    }

    #[test]
    fn says_what_a_node_needs() {
        let text = unit(&["/usr/local/bin/sluice", "serve"], None);
        for line in [
            "Type=notify",
            "NotifyAccess=main",
            "FileDescriptorStoreMax=4",
            "KillMode=process",
            "Restart=always",
            "UMask=0027",
            "Before=containerd.service docker.service kubelet.service",
            "WantedBy=multi-user.target",
            "ExecStart=/usr/local/bin/sluice serve",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        assert!(!text.contains("MemoryMax"));
        assert!(unit(&["/x"], Some(42_000)).lines().any(|line| line == "MemoryMax=42000"));
    }

    #[test]
    fn takes_containerd_down_never_and_hides_no_mount() {
        let text = unit(&["/x"], Some(1));
        let settings: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split('=').next())
            .collect();
        for forbidden in [
            "RequiredBy",
            "PartOf",
            "Private",
            "Protect",
            "ReadOnly",
            "ReadWrite",
            "Inaccessible",
            "BindPaths",
            "TemporaryFileSystem",
            "RootDirectory",
            "DynamicUser",
            "MountFlags",
            "Device",
            "RestrictSUIDSGID",
            "RuntimeDirectory",
        ] {
            assert!(
                !settings.iter().any(|setting| setting.starts_with(forbidden)),
                "{forbidden} is there:\n{text}"
            );
        }
    }

    #[test]
    fn words_reach_the_program_as_they_are() {
        for (word, expected) in [
            ("--state", "--state"),
            ("a b", "\"a b\""),
            ("50%", "\"50%%\""),
            ("$HOME", "\"$$HOME\""),
            ("k=[\"v\"]", "\"k=[\\\"v\\\"]\""),
            ("a\\b\n\u{1}", "\"a\\\\b\\n\\x01\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
