//! What earlier starts of an image read, in the order it was first needed.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The profile of an image: chunks in the order in which starts first asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// How many starts it was learned from.
    pub starts: u32,
    pub chunks: Vec<Digest>,
}
