//! Where a project's content stands.
//!
//! Without a key a project's folder is its name. Who may read objects of a bucket by their names, as a node's role or a delivery
//! network in front of it often may though neither may list it, could then read another project's: its name is no secret, nor are
//! the digests in it. With a key the folder's name cannot be told from the project's, and one project's tells nothing of another's.
//! It stands beside grants and the store's own permissions, not in their place.
//!
//! A key of the store and not a random marker in it: a marker would be one more object that those who must not know it could
//! read, and a request before the first one.

use std::path::Path;

use crate::StoreError;

const KEY_LEN: usize = 32;
/// Of a folder's name, in bytes: 128 bits are not guessed.
const SUFFIX_LEN: usize = 16;
/// Stands in no project's name.
const SEPARATOR: char = '+';

#[derive(Default)]
pub(crate) struct Layout {
    key: Option<[u8; KEY_LEN]>,
    plain: Vec<String>,
}

impl Layout {
    /// The key is made by nobody here: two who each made one would not find each other's content.
    pub(crate) fn keyed(file: &Path, plain: &[String]) -> Result<Layout, StoreError> {
        let failed = |reason: String| StoreError::Other {
            operation: "read layout key",
            object: file.display().to_string(),
            reason,
        };
        let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
        let key = <[u8; KEY_LEN]>::try_from(&bytes[..]);
        let key = key.map_err(|_| failed(format!("it has {} bytes, {KEY_LEN} are expected", bytes.len())))?;
        Ok(Layout { key: Some(key), plain: plain.to_vec() })
    }

    pub(crate) fn folder(&self, project: &str) -> String {
        match &self.key {
            Some(key) if !self.plain.iter().any(|plain| plain == project) => {
                let name = blake3::keyed_hash(key, project.as_bytes()).to_hex();
                format!("{project}{SEPARATOR}{}", &name[..2 * SUFFIX_LEN])
            }
            _ => project.to_owned(),
        }
    }
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Layout").field("keyed", &self.key.is_some()).finish_non_exhaustive()
    }
}
