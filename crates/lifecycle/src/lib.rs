//! What every service does between being started and being gone: configuration, logs, metrics,
//! health, shutdown.
//!
//! A library that `main` calls; it never calls `main`, knows nothing of images, and every part is
//! of use without the others. The whole of it:
//!
//! ```no_run
//! # #[derive(Default, serde::Serialize, serde::Deserialize)]
//! # struct Settings { lifecycle: lifecycle::Config }
//! # async fn serve(_: tokio_util::sync::CancellationToken) -> anyhow::Result<()> { Ok(()) }
//! # async fn run() -> anyhow::Result<()> {
//! let Some(settings) = lifecycle::command_line::load::<Settings>("cache", "serves content")? else {
//!     return Ok(());
//! };
//! let service = lifecycle::start("cache", &settings.lifecycle).await?;
//! service.essential("server", serve(service.shutdown.clone()));
//! service.run().await
//! # }
//! ```

pub mod admin;
mod allocator;
pub mod command_line;
pub mod config;
pub mod health;
pub mod logs;
pub mod private;
mod probe;
pub mod readiness;
pub mod service;
pub mod signals;
pub mod telemetry;

/// What `--version` says: the version and, of an optimised program, the commit that it was built from and its date.
pub const VERSION: &str = env!("SLUICE_VERSION");

pub use probe::Probe;
pub use readiness::{Part, Readiness, UNREADY_AFTER, Waiting};
pub use service::{Config, Service, start};
