//! What an image is, as data: layers are read, merged and laid out here, without any I/O.
//!
//! ```text
//! tar bytes --tar--> members --scan--> chunks, LayerRecord     one layer, streaming
//! [LayerRecord] --merge--> FileTree --erofs--> tree bytes      one image
//!                            \------map---> Map                where each object's bytes are
//! ```
//!
//! Everything that enters is hostile until checked; everything that leaves is a pure function of
//! what entered, so that the same layers always give the same bytes.

pub mod chain;
pub mod config;
pub mod digest;
pub mod encoding;
pub mod erofs;
pub mod limits;
pub mod map;
pub mod merge;
pub mod path;
pub mod profile;
pub mod record;
pub mod scan;
pub mod sparse;
pub mod tar;

pub use chain::chain_ids;
pub use config::ImageConfig;
pub use digest::Digest;
pub use map::Map;
pub use profile::Profile;
pub use record::{ImageRecord, LayerRecord};
pub use sparse::{Extent, Sparse, SparseHasher};
