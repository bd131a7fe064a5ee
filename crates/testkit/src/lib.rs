//! Real servers and real images for the tests of all crates.
//!
//! Every server listens on loopback at a port of its own, keeps its data in a folder that goes
//! with it, and is stopped, by its process id, when its value is dropped. What cannot be had is an
//! error that says which package is missing: a test never passes because its peer was absent.

pub mod bucket;
pub mod certificates;
pub mod containerd;
pub mod kubernetes;
pub mod layout;
pub mod lying;
pub mod nats;
pub mod port;
pub mod process;
pub mod registry;
pub mod tarball;

pub use bucket::Bucket;
pub use certificates::Certificates;
pub use containerd::Containerd;
pub use kubernetes::ApiServer;
pub use layout::{Compression, ImageSpec, LayoutWriter};
pub use nats::Nats;
pub use process::Server;
pub use registry::Registry;
pub use tarball::Tarball;

/// What `./just test` keeps beside the sources.
pub fn tools() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}
