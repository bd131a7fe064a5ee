//! From a mounted image to a running container, through an OCI runtime (runc or crun).
//!
//! ```text
//! image config --(options, user looked up in the root)--> spec --> bundle/config.json --> `runc run`
//! ```
//!
//! A [`Container`] owns its bundle folder and, while it lives, the runtime's state of it: dropping it kills and deletes
//! the container. The root file system is the caller's.

pub mod container;
pub mod defaults;
pub mod folder;
pub mod image_config;
pub mod init;
pub mod options;
pub mod output;
pub mod ports;
pub mod signals;
pub mod spec;
pub mod stopping;
pub mod user;

pub use container::{Container, Runtime};
pub use folder::Folder;
pub use image_config::ImageConfig;
pub use init::Init;
pub use options::{Network, RunOptions, Volume};
pub use ports::Ports;
