//! The fetcher: resolves references, speaks to registries, imports images, signs records and grants.
//!
//! ```text
//! bus --> service --> source      names, registries, layouts, archives
//!            |----> import      layers --> chunks, tree, map, record
//!       ^    `----> store       everything that outlives a request
//!       `-- push                what registries tell was pushed
//! ```
//!
//! It keeps nothing: any number of fetchers work on one store, and one that is killed loses no more
//! than the layers it was reading.

mod attempts;
pub mod config;
mod import;
mod key;
mod marker;
mod nodes;
mod profile;
mod projects;
mod push;
mod recompress;
mod records;
mod seed;
mod service;
pub mod source;

pub use config::{Config, Judging, Limits, Projects as ProjectsConfig, Unanswered};
pub use import::copies::path as layer_copy;
pub use key::verifying_key;
pub use projects::{SWITCHES, Switches};
pub use push::{Config as PushConfig, RegistryConfig as PushRegistryConfig};
pub use revocations::KNOWN as REVOCATIONS;
pub use service::Fetcher;
