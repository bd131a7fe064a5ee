//! Makes a node's containerd use sluice, and undoes it.
//!
//! ```text
//! containerd, unit: what must be in which file --\
//! record: what was done before -------------------> plan: one step per file --> files --> report
//! images: what cannot start under another snapshotter, over containerd's own socket
//! ```
//!
//! [`text`], [`keys`], [`plan`], [`containerd`] and [`unit`] are pure: text in, text out.

pub mod client;
pub mod containerd;
pub mod files;
pub mod images;
pub mod keys;
pub mod node;
pub mod plan;
pub mod record;
pub mod report;
pub mod switch;
pub mod systemd;
pub mod text;
pub mod unit;
