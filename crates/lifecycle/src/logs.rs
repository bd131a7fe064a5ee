//! Logs on standard error: text for people, or one JSON object a line. Standard error may be a file that is kept within a bound.
//!
//! Events of all services use the same fields where they apply: `layer_id`, `module`, `offset`,
//! `path`, `size`, `error`.

mod output;
mod rotation;

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use output::Output;
pub(crate) use output::{publish_dropped, tell_dropped};
use rotation::Rotation;

/// The `lifecycle.log` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub format: Format,
    /// What is logged, as `tracing` filters are written: `info`, `warn,cache=debug`. The variable
    /// `RUST_LOG` comes before it.
    pub filter: String,
    /// A service's log goes to this file instead, and so does all else that it writes to standard error and output.
    pub file: Option<PathBuf>,
    /// How large the file gets. Then it is renamed to `FILE.1`, what was there to `FILE.2` and so on, and a new one begun.
    pub file_size: ByteSize,
    /// How many files are kept, the one that is written included.
    pub files: u32,
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
            // A reply that the kernel no longer wants, as its reader was killed meanwhile, is an error to fuser.
            filter: "info,foyer=warn,foyer_storage=warn,async_nats=warn,fuser::reply=off".to_owned(),
            file: None,
            file_size: ByteSize::mib(10),
            files: 3,
        }
    }
}

/// Starts logging and has panics logged. A process that logs already keeps its way of logging.
///
/// A line that cannot be written is dropped and counted: a full disk is no reason to end.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("parsing the log filter {filter:?}"))?;
    let rotation =
        config.file.as_ref().map(|file| Rotation::begin(file, config.file_size.as_u64(), config.files));
    let (rotation, refused) = match rotation.transpose() {
        Ok(rotation) => (rotation, None),
        Err(error) => (None, Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(Output::new(rotation));
    let started = match config.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    if let (Some(error), Some(file)) = (refused, &config.file) {
        tracing::warn!(path = %file.display(), %error, "the log cannot go to its file: it stays on standard error");
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
