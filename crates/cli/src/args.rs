//! The command line: global flags and commands, with help that teaches.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands;
use crate::platform_name::PlatformName;

const LONG_ABOUT: &str = "\
Streams container images: a container starts about a second after it is asked for, whatever its image's size, \
and reads the image's files as it needs them, while the rest arrives in the background.

IMAGE is a registry reference (debian:12, ghcr.io/org/app:1, host:5000/app@sha256:…), a layout folder \
(oci:DIR[:TAG]) or an archive (docker-archive:FILE).";

const AFTER_HELP: &str = "\
Examples:
  sluice import debian:12                          make an image streamable
  sluice run debian:12 -- cat /etc/os-release      a container that streams
  sluice mount debian:12 /mnt && ls /mnt           its file tree, read-only
  sluice compare oci:app:1 --rtt 20ms --bandwidth 200Mbit
                                                   against a normal pull, on this machine
  sluice install --dry-run                         what it takes for Kubernetes on this node

Exit codes:
  0 done   1 failed   2 wrong usage   3 the image, or its name, cannot be streamed
  4 there is no such image, file or mount, or the registry refused
  5 policy replay: other policies decide differently   6 serve: another node works in the state folder
  130 import: interrupted
  run: the exit code of the command in the container, 128+N when signal N ended it; 127 when there is none, 126
  when it cannot be executed, 125 when sluice itself failed

Settings: defaults, then /etc/sluice/sluice.toml or --config, then SLUICE__SECTION__KEY variables, then --set and flags.
`sluice config show` prints the result.";

#[derive(Debug, Parser)]
#[command(name = "sluice", version = lifecycle::VERSION, about = "Streams container images", long_about = LONG_ABOUT)]
#[command(after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Read settings from this TOML file instead of /etc/sluice/sluice.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one setting, as in --set frontend.background=false; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Where this machine keeps its content and sockets [default: /var/lib/sluice]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where imported content is kept: a folder, or s3://, gs://, az:// [default: STATE/store]
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,
    /// Use the services on this NATS server instead of running them in this process
    #[arg(long, global = true, value_name = "URL")]
    pub nats: Option<String>,
    /// The socket of a running frontend [default: STATE/node.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    pub node: Option<PathBuf>,
    /// The project that content belongs to [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    pub project: Option<String>,
    /// Which image of a multi-platform index [default: this machine's]
    #[arg(long, global = true, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<PlatformName>,
    /// Speak plain HTTP to the registry
    #[arg(long, global = true)]
    pub plain_http: bool,
    /// Log in to the registry as this user, with --password-stdin
    #[arg(long, global = true, value_name = "NAME", requires = "password_stdin")]
    pub username: Option<String>,
    /// Read the registry password from standard input
    #[arg(long, global = true, requires = "username")]
    pub password_stdin: bool,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Print errors only: no progress, no notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Import(commands::import::ImportArgs),
    Mount(commands::mount::MountArgs),
    Umount(commands::umount::UmountArgs),
    Run(Box<commands::run::RunArgs>),
    Stop(commands::stop::StopArgs),
    Inspect(commands::inspect::InspectArgs),
    Compare(Box<commands::compare::CompareArgs>),
    /// List the images that the store holds
    Ls,
    Rm(commands::rm::RmArgs),
    Gc(commands::gc::GcArgs),
    Status(commands::status::StatusArgs),
    Events(commands::events::EventsArgs),
    Evict(commands::evict::EvictArgs),
    Serve(commands::serve::ServeArgs),
    Check(commands::check::CheckArgs),
    #[command(subcommand)]
    Keys(commands::keys::KeysCommand),
    Enroll(commands::enroll::EnrollArgs),
    #[command(subcommand)]
    Revoke(commands::revoke::RevokeCommand),
    Install(Box<commands::install::InstallArgs>),
    Uninstall(commands::uninstall::UninstallArgs),
    Layers(commands::layers::LayersArgs),
    Reserve(commands::reserve::ReserveArgs),
    #[command(subcommand)]
    Policy(commands::policy::PolicyCommand),
    #[command(subcommand)]
    Quota(commands::quota::QuotaCommand),
    Project(commands::project::ProjectArgs),
    #[command(subcommand)]
    Config(commands::config::ConfigCommand),
    Completions(commands::completions::CompletionsArgs),
    Health(commands::health::HealthArgs),
    #[command(hide = true)]
    Man(commands::man::ManArgs),
    #[command(hide = true)]
    Link(commands::link::LinkArgs),
    #[command(hide = true)]
    TakeAway(commands::take_away::TakeAwayArgs),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE expected, as in frontend.background=false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_what_users_type() {
        let good: &[&[&str]] = &[
            &["import", "debian:12", "oci:dir:tag"],
            &["mount", "debian:12", "/mnt", "--foreground"],
            &["run", "--env", "A=b", "-v", "debian:12", "--", "sh", "-c", "exit 3"],
            &["run", "--detach", "--name", "web", "--network", "host", "--stop-timeout", "3s", "debian:12"],
            &["stop", "web", "db"],
            &["compare", "x", "--rtt", "20ms", "--bandwidth", "200Mbit", "--ready-http", "80/health"],
            &["gc", "--dry-run", "--grace", "1h"],
            &["--set", "frontend.background=false", "ls", "--json"],
            &["inspect", "x", "--platform", "linux/arm64/v8", "--plain-http"],
            &["config", "show"],
            &["events"],
            &["events", "--follow", "--kind", "fallback,denied", "--image", "debian:12"],
            &["events", "--mesh", "--json"],
            &["policy", "ls"],
            &["policy", "bench", "mine.wasm", "--calls", "10"],
            &["policy", "replay", "a", "a.1", "--plugin", "mine.wasm", "--as", "mine"],
            &["policy", "check", "mine.wasm", "--settings", "mine.toml"],
            &["policy", "run", "mine.wasm", "debian:12"],
            &["policy", "run", "mine.wasm", "--facts", "facts.json"],
            &["policy", "facts", "debian:12"],
            &["policy", "push", "mine.wasm", "oci://registry.example/mine:1", "--key", "mine.pem"],
            &["policy", "pull", "oci://registry.example/mine:1", "-o", "mine.wasm"],
            &["policy", "sign", "mine.wasm", "--key", "mine.pem"],
            &["policy", "keygen"],
            &["quota", "show", "--region", "eu-1"],
            &["quota", "set", "content_requests", "minute", "100000", "--shadow"],
            &["quota", "set", "content_bytes", "day", "10GiB", "--every-project"],
            &["quota", "set", "imports", "day", "forget"],
            &["project"],
            &["project", "team-a", "--json"],
            &["project", "team-a", "--streaming", "off"],
            &["project", "--every-project", "--streaming", "forget"],
            &["check", "--this-node", "--mesh", "-o", "json"],
            &["keys", "init", "mesh", "--host", "nats.example", "--url", "tls://nats.example:4222"],
            &["keys", "rotate", "mesh", "cache", "--push"],
            &["keys", "add", "mesh", "--for-node", "n1", "--projects", "a,b"],
            &["keys", "token", "mesh", "--for-node", "gpu-*", "--life", "2h", "--uses", "8"],
            &["keys", "revoke", "mesh", "n1"],
            &["keys", "show", "mesh", "--json"],
            &["enroll", "https://identity.example:7470", "--token-file", "token", "--as", "n1"],
            &["revoke", "node", "n1", "--undo"],
            &["revoke", "image", "debian:12", "--project", "team"],
            &["revoke", "project", "team"],
            &["revoke", "restored"],
            &["completions", "bash"],
            &["health"],
            &["health", "--url", "unix:/run/sluice/node.sock"],
            &["keys", "init", "mesh", "--keep"],
            &["keys", "token", "mesh", "--for-node", "node-*", "--into", "token"],
            &["install", "--restart", "--socket", "/run/s.sock"],
            &["install", "--root", "/mnt/image", "--frontend", "/bin/frontend", "--memory", "64GiB"],
            &["install", "--docker", "--restart", "--yes", "--docker-config", "/root/.docker", "--no-layers"],
            &["uninstall", "--restart", "--force"],
            &["uninstall", "--docker", "--images"],
            &["layers", "--wait", "5m", "app:1"],
            &["reserve", "--memory", "4GiB"],
        ];
        for line in good {
            let words = std::iter::once("sluice").chain(line.iter().copied());
            assert!(Cli::try_parse_from(words).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        let bad: &[&[&str]] = &[
            &[],
            &["import"],
            &["mount", "debian:12"],
            &["ls", "-v", "-q"],
            &["run", "--detach", "--tty", "debian:12"],
            &["stop"],
            &["ls", "--set", "novalue"],
            &["ls", "--username", "me"],
            &["ls", "--platform", "arm64"],
            &["compare", "x", "--bandwidth", "200"],
            &["policy", "run", "mine.wasm"],
            &["policy", "run", "mine.wasm", "debian:12", "--facts", "facts.json"],
            &["policy", "push", "mine.wasm", "registry.example/mine:1"],
            &["policy", "sign", "mine.wasm"],
            &["quota", "set", "imports", "day", "many"],
            &["quota", "set", "imports", "day", "-1"],
            &["quota", "set", "imports", "week", "1"],
            &["quota", "set", "reads", "day", "1"],
            &["compare", "x", "--ready-http", "80", "--ready-line", "up"],
            &["install", "--root", "/mnt/image", "--restart"],
            &["install", "--images", "--restart"],
            &["install", "--memory", "4GiB"],
            &["install", "--yes"],
            &["install", "--docker", "--frontend", "/bin/frontend"],
            &["uninstall", "--force"],
            &["reserve", "--memory", "much"],
            &["project", "team-a", "--streaming", "maybe"],
            &["project", "--streaming", "off"],
            &["project", "team-a", "--every-project"],
            &["keys", "add", "mesh"],
            &["keys", "token", "mesh"],
            &["revoke"],
        ];
        for line in bad {
            let words = std::iter::once("sluice").chain(line.iter().copied());
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
