//! The command line that all service binaries share.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{config, health, service};

const HEALTH: &str = "health";

/// Reads the flags and the configuration. Nothing is left to do after `--check-config`, `--show-config` and
/// `health`: then there is no configuration to return.
pub fn load<C>(name: &'static str, about: &'static str) -> anyhow::Result<Option<C>>
where
    C: Default + Serialize + DeserializeOwned,
{
    let matches = command(name, about).get_matches();
    if let Some((HEALTH, asked)) = matches.subcommand() {
        ask(asked)?;
        return Ok(None);
    }
    evaluate(&matches)
}

fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .version(crate::VERSION)
        .about(about)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .action(ArgAction::Append)
                .help("Read this configuration; of several, the later wins"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .help("Set one key, as in lifecycle.admin=0.0.0.0:9090"),
        )
        .arg(
            Arg::new("check")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Read the configuration, and end"),
        )
        .arg(
            Arg::new("show")
                .long("show-config")
                .action(ArgAction::SetTrue)
                .help("Print the configuration without its secrets, and end"),
        )
        .subcommand(
            Command::new(HEALTH)
                .about("Ask a running service whether it can work: ends with 0 if so, else with one line that says why not")
                .arg(
                    Arg::new("url")
                        .long("url")
                        .value_name("URL")
                        .default_value(health::URL)
                        .help("What is asked: http://HOST:PORT/PATH, which is good when it answers 200, or unix:PATH"),
                ),
        )
}

fn ask(matches: &ArgMatches) -> anyhow::Result<()> {
    health::report(matches.get_one::<String>("url").map_or(health::URL, String::as_str))
}

fn evaluate<C>(matches: &ArgMatches) -> anyhow::Result<Option<C>>
where
    C: Default + Serialize + DeserializeOwned,
{
    let files: Vec<PathBuf> = matches.get_many("config").unwrap_or_default().cloned().collect();
    let overrides = matches.get_many::<String>("set").unwrap_or_default();
    let overrides = overrides.map(|text| service::assignment(text)).collect::<anyhow::Result<_>>()?;
    let configuration: C = config::load(&files, overrides)?;
    if matches.get_flag("show") {
        write!(std::io::stdout(), "{}", config::show(&configuration)?)
            .context("printing the configuration")?;
        return Ok(None);
    }
    Ok((!matches.get_flag("check")).then_some(configuration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> anyhow::Result<Option<crate::Config>> {
        evaluate(&command("test", "a test").try_get_matches_from(arguments)?)
    }

    #[test]
    fn flags_set_keys() {
        let config =
            run(&["test", "--set", "drain_timeout=3s", "--set", "log.filter=debug"]).unwrap().unwrap();
        assert_eq!((config.drain_timeout.as_secs(), config.log.filter.as_str()), (3, "debug"));
        assert!(run(&["test", "--set", "drain_timeout"]).is_err());
        assert!(run(&["test", "--set", "drain=3s"]).is_err());
    }

    #[test]
    fn checking_leaves_nothing_to_run() {
        assert!(run(&["test", "--check-config"]).unwrap().is_none());
        assert!(run(&["test", "--check-config", "--set", "log.format=loud"]).is_err());
    }

    #[test]
    fn health_needs_no_configuration_and_fails_in_one_line() {
        let words = ["test", "--set", "no.such=key", "health", "--url", "unix:/nowhere"];
        let matches = command("test", "a test").try_get_matches_from(words).unwrap();
        let error = ask(matches.subcommand_matches(HEALTH).unwrap()).unwrap_err();
        assert_eq!(error.chain().count(), 1, "{error:?}");
        assert!(error.to_string().starts_with("unix:/nowhere is not healthy: "), "{error}");
    }
}
