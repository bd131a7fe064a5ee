//! Makes a node's containerd, or a machine's Docker engine, use sluice, and undoes it.
//!
//! ```text
//! containerd, docker, unit: what must be in which file --\
//! record: what was done before --------------------------> plan: one step per file --> files --> report
//! images: what cannot start under another snapshotter, over containerd's own socket
//! ```
//!
//! [`text`], [`json`], [`keys`], [`plan`], [`containerd`], [`docker`] and [`unit`] are pure: text in, text out.

pub mod client;
pub mod containerd;
pub mod docker;
pub mod engine;
pub mod files;
pub mod images;
pub mod json;
pub mod keys;
pub mod node;
pub mod plan;
pub mod record;
pub mod report;
pub mod switch;
pub mod systemd;
pub mod text;
pub mod unit;
