//! Logs on standard error: text for people, or one JSON object a line.
//!
//! Events of all services use the same fields where they apply: `layer_id`, `module`, `offset`,
//! `path`, `size`, `error`.

use std::io::IsTerminal;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// The `lifecycle.log` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub format: Format,
    /// What is logged, as `tracing` filters are written: `info`, `warn,cache=debug`. The variable
    /// `RUST_LOG` comes before it.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            format: Format::Text,
            filter: "info,foyer=warn,foyer_storage=warn,async_nats=warn".to_owned(),
        }
    }
}

/// Starts logging and has panics logged. A process that logs already keeps its way of logging.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("parsing the log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(())
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("not a text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(error = text, location, thread = thread.name(), %backtrace, "panicked");
}
