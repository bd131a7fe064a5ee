//! Which objects an image has, in a file instead of in memory: a node has many images, and looks rarely.
//!
//! One record an object, sorted by digest: `digest (32) | length | length without holes` (u64, little endian). The file has no name and ends with
//! this process; it was written from a map that was checked. On a full disk they stand in memory after all: an eviction,
//! which needs them, is what makes room.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt as _;

use image::{Digest, Map};

use super::Objects;

const RECORD_BYTES: usize = 48;
/// Records that are read at once when many are wanted.
const READ_BYTES: usize = 64 * RECORD_BYTES;

/// An object of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    pub digest: Digest,
    pub len: u64,
    /// Without its holes.
    pub data_len: u64,
}

#[derive(Debug)]
pub struct Names {
    records: Records,
    count: u64,
}

#[derive(Debug)]
enum Records {
    File(File),
    Memory(Vec<u8>),
}

impl Objects {
    /// Writes down what a map names.
    pub fn names(&self, map: &Map) -> io::Result<Names> {
        let file = || write(map, BufWriter::with_capacity(READ_BYTES, self.incoming()?.nameless()?));
        let records = match file() {
            Ok(file) => Records::File(file.into_inner().map_err(io::IntoInnerError::into_error)?),
            Err(error) if no_room(&error) => Records::Memory(write(map, Vec::new())?),
            Err(error) => return Err(error),
        };
        Ok(Names { records, count: map.objects.len() as u64 })
    }
}

/// Also where nothing can be written at all.
fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

fn write<W: Write>(map: &Map, mut into: W) -> io::Result<W> {
    for place in &map.objects {
        into.write_all(place.digest.as_bytes())?;
        into.write_all(&place.len.to_le_bytes())?;
        into.write_all(&map.data_len(place).to_le_bytes())?;
    }
    into.flush()?;
    Ok(into)
}

impl Records {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Records::File(file) => file.read_at(into, offset),
            Records::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                (&bytes[from..]).read(into)
            }
        }
    }
}

impl Names {
    pub fn get(&self, index: u64) -> io::Result<Option<Name>> {
        if index >= self.count {
            return Ok(None);
        }
        let mut record = [0; RECORD_BYTES];
        self.reader(index).read_exact(&mut record)?;
        Ok(Some(Name::of(&record)))
    }

    /// The first that is not below `digest`.
    pub fn at_or_after(&self, digest: &Digest) -> io::Result<Option<Name>> {
        self.get(self.position(digest)?)
    }

    /// All whose digest begins with this byte.
    pub fn in_shard(&self, shard: u8) -> io::Result<impl Iterator<Item = io::Result<Name>> + '_> {
        let mut first = [0; 32];
        first[0] = shard;
        let within = move |name: &io::Result<Name>| {
            name.as_ref().map_or(true, |name| name.digest.as_bytes()[0] == shard)
        };
        Ok(self.from(self.position(&Digest::from_bytes(first))?).take_while(within))
    }

    pub fn iter(&self) -> impl Iterator<Item = io::Result<Name>> + '_ {
        self.from(0)
    }

    fn from(&self, index: u64) -> impl Iterator<Item = io::Result<Name>> + '_ {
        let mut records = BufReader::with_capacity(READ_BYTES, self.reader(index));
        std::iter::from_fn(move || {
            let mut record = [0; RECORD_BYTES];
            match records.read_exact(&mut record) {
                Ok(()) => Some(Ok(Name::of(&record))),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
                Err(error) => Some(Err(error)),
            }
        })
    }

    fn reader(&self, index: u64) -> Reader<'_> {
        Reader { records: &self.records, offset: index * RECORD_BYTES as u64 }
    }

    fn position(&self, digest: &Digest) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle)? {
                Some(name) if name.digest < *digest => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

impl Name {
    fn of(record: &[u8; RECORD_BYTES]) -> Name {
        let (mut digest, mut len, mut data_len) = ([0; 32], [0; 8], [0; 8]);
        digest.copy_from_slice(&record[..32]);
        len.copy_from_slice(&record[32..40]);
        data_len.copy_from_slice(&record[40..]);
        let [len, data_len] = [len, data_len].map(u64::from_le_bytes);
        Name { digest: Digest::from_bytes(digest), len, data_len }
    }
}

/// Reads on from an offset of its own: others read the same file.
struct Reader<'a> {
    records: &'a Records,
    offset: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.records.read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use image::record::ObjectPlace;

    use super::*;

    #[test]
    fn finds_what_was_written_and_leaves_no_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let place = |number: u32| ObjectPlace {
            digest: Digest::of(&number.to_le_bytes()),
            len: number.into(),
            first_chunk: 0,
            chunk_count: 1,
            offset: 0,
        };
        let mut places: Vec<ObjectPlace> = (0..5000).map(place).collect();
        places.sort_by_key(|place| place.digest);
        let map = Map { objects: places, ..Map::default() };
        check(&map, &objects.names(&map).unwrap());
        assert_eq!(std::fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
        let count = map.objects.len() as u64;
        check(&map, &Names { records: Records::Memory(write(&map, Vec::new()).unwrap()), count });
        let none = objects.names(&Map::default()).unwrap();
        assert_eq!((none.get(0).unwrap(), none.iter().count()), (None, 0));
    }

    fn check(map: &Map, names: &Names) {
        let expected: Vec<Name> = map
            .objects
            .iter()
            .map(|place| Name { digest: place.digest, len: place.len, data_len: place.len })
            .collect();
        assert_eq!(names.iter().collect::<io::Result<Vec<_>>>().unwrap(), expected);
        for name in &expected {
            assert_eq!(names.at_or_after(&name.digest).unwrap(), Some(*name));
        }
        let mut shards = Vec::new();
        for shard in 0..=255 {
            shards.extend(names.in_shard(shard).unwrap().collect::<io::Result<Vec<_>>>().unwrap());
        }
        assert_eq!(shards, expected);
        assert_eq!(names.at_or_after(&Digest::from_bytes([0; 32])).unwrap(), Some(expected[0]));
        assert_eq!(names.at_or_after(&Digest::from_bytes([255; 32])).unwrap(), None);
    }
}
