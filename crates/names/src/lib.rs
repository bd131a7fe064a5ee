//! Names that all services share, each checked once: where it comes in.
//!
//! On the wire and in records they are strings. A value of one of these types is well-formed, so it is safe in a path, a subject
//! and a log; nothing else takes one apart.

mod digest;
mod image_name;
mod project;
mod reference;

pub use digest::{ManifestDigest, NotAManifestDigest};
pub use image_name::{ImageName, NotAnImageName};
pub use project::{NotAProject, Project};
pub use reference::Reference;
