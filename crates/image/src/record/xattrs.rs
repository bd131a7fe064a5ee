//! Extended attributes that many members share, and how a layer record keeps each set of them once.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ChunkRef, Entry, EntryKind, LayerRecord, Meta, Mtime, ObjectPlace, Xattr};
use crate::encoding;
use crate::limits::{CHUNKS_MAX, ENTRIES_MAX, XATTRS_MAX};
use crate::sparse::Sparse;

/// The extended attributes of one member, sorted by name, each name once. A clone is the same set: one PAX header may give
/// 64 KiB of them to a million members.
#[derive(Clone, Default)]
pub struct Xattrs(Option<Arc<[Xattr]>>);

impl Xattrs {
    pub const NONE: Xattrs = Xattrs(None);

    /// Where the set stands: the same for all its clones.
    pub(crate) fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    /// Bytes of names and values.
    pub(crate) fn content_len(&self) -> usize {
        self.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum()
    }
}

impl From<Vec<Xattr>> for Xattrs {
    fn from(xattrs: Vec<Xattr>) -> Xattrs {
        Xattrs((!xattrs.is_empty()).then(|| xattrs.into()))
    }
}

impl FromIterator<Xattr> for Xattrs {
    fn from_iter<I: IntoIterator<Item = Xattr>>(xattrs: I) -> Xattrs {
        xattrs.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Xattrs {
    type Target = [Xattr];

    fn deref(&self) -> &[Xattr] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<'a> IntoIterator for &'a Xattrs {
    type Item = &'a Xattr;
    type IntoIter = std::slice::Iter<'a, Xattr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Xattrs {
    fn eq(&self, other: &Xattrs) -> bool {
        self.address() == other.address() || **self == **other
    }
}

impl Eq for Xattrs {}

impl Hash for Xattrs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Xattrs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

/// Numbers sets, equal ones alike, from 1 on; 0 is the empty one.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    sets: Vec<Xattrs>,
    /// Most are clones: their content is looked at once.
    by_address: HashMap<usize, u32>,
    by_content: HashMap<Xattrs, u32>,
}

impl Interner {
    /// The number of a set; and the set itself, one for all that are equal. `Err`: the set is new.
    pub(crate) fn intern(&mut self, set: &Xattrs) -> Result<(u32, Xattrs), (u32, Xattrs)> {
        if set.is_empty() {
            return Ok((0, Xattrs::NONE));
        }
        let known = self.by_address.get(&set.address()).or_else(|| self.by_content.get(set)).copied();
        if let Some(number) = known {
            return Ok((number, self.sets[number as usize - 1].clone()));
        }
        self.sets.push(set.clone());
        // Fits: members are bounded far below.
        let number = self.sets.len() as u32;
        // A set that is kept here is nobody else's address.
        self.by_address.insert(set.address(), number);
        self.by_content.insert(set.clone(), number);
        Err((number, set.clone()))
    }
}

#[derive(Serialize)]
struct EntryOut<'a> {
    #[serde(with = "encoding::bytes")]
    path: &'a [u8],
    kind: &'a EntryKind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Mtime,
    xattrs: u32,
}

#[derive(Deserialize)]
struct EntryIn {
    #[serde(with = "encoding::bytes")]
    path: Vec<u8>,
    kind: EntryKind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Mtime,
    xattrs: u32,
}

struct EntriesOut<'a>(&'a [Entry], Vec<u32>);

impl Serialize for EntriesOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().zip(&self.1).map(|(Entry { path, kind, meta }, xattrs)| {
            let Meta { mode, uid, gid, mtime, .. } = *meta;
            EntryOut { path, kind, mode, uid, gid, mtime, xattrs: *xattrs }
        }))
    }
}

const NAME: &str = "LayerRecord";
const FIELDS: &[&str] = &["diff_id", "tar_len", "xattrs", "entries", "chunks", "objects", "sparse"];

impl Serialize for LayerRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut interner = Interner::default();
        let number = |entry: &Entry| match interner.intern(&entry.meta.xattrs) {
            Ok((number, _)) | Err((number, _)) => number,
        };
        let numbers = self.entries.iter().map(number).collect();
        let sets: Vec<&[Xattr]> = interner.sets.iter().map(|set| &**set).collect();
        let mut record = serializer.serialize_struct(NAME, FIELDS.len())?;
        record.serialize_field("diff_id", &self.diff_id)?;
        record.serialize_field("tar_len", &self.tar_len)?;
        record.serialize_field("xattrs", &sets)?;
        record.serialize_field("entries", &EntriesOut(&self.entries, numbers))?;
        record.serialize_field("chunks", &self.chunks)?;
        record.serialize_field("objects", &self.objects)?;
        record.serialize_field("sparse", &self.sparse)?;
        record.end()
    }
}

impl<'de> Deserialize<'de> for LayerRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LayerRecord, D::Error> {
        deserializer.deserialize_struct(NAME, FIELDS, RecordVisitor)
    }
}

#[derive(Deserialize)]
struct SetIn(#[serde(deserialize_with = "encoding::at_most::<_, _, XATTRS_MAX>")] Vec<Xattr>);
#[derive(Deserialize)]
struct SetsIn(#[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")] Vec<SetIn>);
#[derive(Deserialize)]
struct ChunksIn(#[serde(deserialize_with = "encoding::at_most::<_, _, CHUNKS_MAX>")] Vec<ChunkRef>);
#[derive(Deserialize)]
struct ObjectsIn(#[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")] Vec<ObjectPlace>);
#[derive(Deserialize)]
struct SparseIn(#[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")] Vec<Sparse>);

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = LayerRecord;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a layer record")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<LayerRecord, A::Error> {
        fn field<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
            fields: &mut A,
            at: usize,
        ) -> Result<T, A::Error> {
            fields.next_element()?.ok_or_else(|| A::Error::invalid_length(at, &RecordVisitor))
        }
        let diff_id = field(&mut fields, 0)?;
        let tar_len = field(&mut fields, 1)?;
        let sets: SetsIn = field(&mut fields, 2)?;
        let sets: Vec<Xattrs> = sets.0.into_iter().map(|set| set.0.into()).collect();
        let entries = fields.next_element_seed(EntriesIn(&sets))?;
        Ok(LayerRecord {
            diff_id,
            tar_len,
            entries: entries.ok_or_else(|| A::Error::invalid_length(3, &RecordVisitor))?,
            chunks: field::<ChunksIn, A>(&mut fields, 4)?.0,
            objects: field::<ObjectsIn, A>(&mut fields, 5)?.0,
            sparse: field::<SparseIn, A>(&mut fields, 6)?.0,
        })
    }
}

/// Entries, each with the set that it names.
struct EntriesIn<'a>(&'a [Xattrs]);

impl<'de> DeserializeSeed<'de> for EntriesIn<'_> {
    type Value = Vec<Entry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Entry>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for EntriesIn<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {ENTRIES_MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<Entry>, A::Error> {
        let mut list = Vec::new();
        while let Some(EntryIn { path, kind, mode, uid, gid, mtime, xattrs }) = entries.next_element()? {
            if list.len() == ENTRIES_MAX {
                return Err(A::Error::invalid_length(ENTRIES_MAX + 1, &self));
            }
            let xattrs = match xattrs.checked_sub(1) {
                None => Xattrs::NONE,
                Some(at) => match self.0.get(at as usize) {
                    // An empty set is written as none.
                    Some(set) if !set.is_empty() => set.clone(),
                    _ => return Err(A::Error::custom("attributes that are not there")),
                },
            };
            list.push(Entry { path, kind, meta: Meta { mode, uid, gid, mtime, xattrs } });
        }
        Ok(list)
    }
}
