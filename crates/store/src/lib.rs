//! The object store: where imported content is kept, whatever holds it.
//!
//! ```text
//! <store url>/<project>/
//!     chunks/ab/<rest of the BLAKE3 hex>    one zstd frame each
//!     trees/ab/…   maps/ab/…                one zstd stream each
//!     layers/<diff id hex>                  an encoded LayerRecord
//!     images/<manifest hex>                 an encoded Signed over an ImageRecord: written last
//!     sources/<manifest hex>                where an image came from, for repair
//!     profiles/<manifest hex>               what is known of an image's starts
//!     repositories/<hash>                   which image of a repository was started
//!     removed/<manifest hex>                the record of an image that somebody removed, until its content is gone
//!     importing/…   collecting/…            markers: what goes on, while they are young
//! ```
//!
//! Where the layout has a key, a project's folder is `<project>+<what the key makes of its name>` ([`layout`]).
//!
//! Content is named by the digest of its plain bytes, so writers never conflict: whoever comes first
//! wins and the others find it present. Every write is atomic (a rename, a link or an upload), so a
//! reader sees a whole object or none. Nothing read from here is trusted: see [`verify`].

mod error;
mod layout;
mod open;
mod project;
pub mod verify;

pub use error::StoreError;
pub use open::{Config, Store};
pub use project::{Index, Kind, ProjectStore, Put, Stored};

#[cfg(test)]
mod tests;
