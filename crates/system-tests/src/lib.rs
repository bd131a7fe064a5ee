//! What the end-to-end tests share: the commands as users run them, and the facts of a file tree.

mod accidents;
pub mod bench;
pub mod binaries;
pub mod builders;
pub mod containers;
pub mod cri;
pub mod docker;
pub mod everything;
pub mod facts;
pub mod kubernetes;
pub mod manager;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod noise;
pub mod numbered;
pub mod raw;
pub mod scratch;
pub mod secured;
pub mod services;
pub mod snapshotter;
pub mod systemd;

pub use facts::Facts;
pub use noise::noise;
pub use numbered::Numbered;
pub use scratch::Scratch;
pub use secured::Secured;
pub use snapshotter::Snapshotter;
