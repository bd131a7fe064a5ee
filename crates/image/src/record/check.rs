//! The rules that a decoded record must keep. Whoever holds a record need not ask again.

use std::collections::{HashMap, HashSet};

use super::{
    ChunkRef, Content, Device, Entry, EntryKind, ImageRecord, LayerRecord, Meta, ObjectPlace, Xattr,
};
use crate::Digest;
use crate::limits::{
    CHUNK_PLAIN_MAX, CHUNK_STORED_MAX, EXTENTS_MAX, FILE_MAX, INLINE_MAX, PATH_MAX, XATTR_NAME_MAX,
    XATTR_VALUE_MAX, XATTRS_MAX, XATTRS_TOTAL_MAX,
};
use crate::path;
use crate::sparse::Sparse;

/// Linux packs a device number into 12 bits of major and 20 of minor.
pub(crate) const MAJOR_MAX: u32 = (1 << 12) - 1;
pub(crate) const MINOR_MAX: u32 = (1 << 20) - 1;

pub(super) fn layer(record: &LayerRecord) -> Result<(), String> {
    places(&record.chunks, &record.objects, &record.sparse)?;
    let mut objects = HashMap::with_capacity(record.objects.len());
    for place in &record.objects {
        if objects.insert(place.digest, place.len).is_some() {
            return Err(format!("object {} stands twice", place.digest));
        }
    }
    let mut sets = HashSet::new();
    for (index, item) in record.entries.iter().enumerate() {
        // What many entries share is looked at once.
        let new = sets.insert(item.meta.xattrs.address());
        entry(item, &objects, new)
            .map_err(|reason| format!("entry {index} {:?}: {reason}", String::from_utf8_lossy(&item.path)))?;
    }
    Ok(())
}

pub(super) fn image(record: &ImageRecord) -> Result<(), String> {
    for digest in [&record.manifest_digest]
        .into_iter()
        .chain(record.layers.iter().flat_map(|layer| [&layer.digest, &layer.diff_id]))
    {
        sha256(digest)?;
    }
    if !record.references.is_sorted_by(|one, other| one < other) {
        return Err("references are not sorted".into());
    }
    Ok(())
}

/// Every object must stand inside the chunks that it names, and every chunk be small enough to hold.
pub fn places(chunks: &[ChunkRef], objects: &[ObjectPlace], sparse: &[Sparse]) -> Result<(), String> {
    if !sparse.is_sorted_by(|one, other| one.object < other.object) {
        return Err("objects with holes are not sorted".into());
    }
    if sparse.iter().map(|sparse| sparse.extents.len()).sum::<usize>() > EXTENTS_MAX {
        return Err(format!("more than {EXTENTS_MAX} extents of objects with holes"));
    }
    let mut with_holes = 0;
    // ends[n] is where chunk n begins when all chunks stand in a row.
    let mut ends = Vec::with_capacity(chunks.len() + 1);
    let mut end = 0_u64;
    ends.push(end);
    for (index, chunk) in chunks.iter().enumerate() {
        if !(1..=CHUNK_PLAIN_MAX).contains(&(chunk.plain_len as usize)) {
            return Err(format!("chunk {index}: {} plain bytes", chunk.plain_len));
        }
        if !(1..=CHUNK_STORED_MAX).contains(&(chunk.stored_len as usize)) {
            return Err(format!("chunk {index}: {} stored bytes", chunk.stored_len));
        }
        end += u64::from(chunk.plain_len);
        ends.push(end);
    }
    for place in objects {
        let first = place.first_chunk as usize;
        let beyond = first.saturating_add(place.chunk_count as usize);
        if first > chunks.len() || beyond > chunks.len() {
            return Err(format!("object {}: stands in chunks that are not there", place.digest));
        }
        let room = ends[beyond] - ends[first];
        let fits = if let Some(sparse) = Sparse::find(sparse, &place.digest) {
            with_holes += 1;
            sparse.check(place.len)?;
            place.offset == 0 && sparse.data_len() == room && place.len <= FILE_MAX
        } else {
            match place.chunk_count {
                0 => return Err(format!("object {}: stands in chunks that are not there", place.digest)),
                1 => u64::from(place.offset).checked_add(place.len).is_some_and(|end| end <= room),
                _ => place.offset == 0 && place.len == room,
            }
        };
        if !fits || place.len == 0 {
            return Err(format!("object {}: {} bytes do not fit its chunks", place.digest, place.len));
        }
    }
    match with_holes == sparse.len() {
        true => Ok(()),
        false => Err("holes of objects that are not there".into()),
    }
}

pub(crate) fn device(device: Device) -> Result<(), String> {
    match device.major <= MAJOR_MAX && device.minor <= MINOR_MAX {
        true => Ok(()),
        false => Err(format!("device {}:{} is out of range", device.major, device.minor)),
    }
}

fn entry(entry: &Entry, objects: &HashMap<Digest, u64>, new_xattrs: bool) -> Result<(), String> {
    path::check(&entry.path).map_err(|error| format!("path {error}"))?;
    if entry.path.is_empty() && !matches!(entry.kind, EntryKind::Directory | EntryKind::Opaque) {
        return Err("the root is not a directory".into());
    }
    meta(&entry.meta, new_xattrs)?;
    match &entry.kind {
        EntryKind::File(Content::Inline(bytes)) if bytes.len() > INLINE_MAX => {
            Err(format!("{} bytes inline", bytes.len()))
        }
        EntryKind::File(Content::Object { digest, len }) => match objects.get(digest) {
            Some(known) if known == len && *len > INLINE_MAX as u64 => Ok(()),
            Some(known) => Err(format!("{len} bytes of an object of {known}")),
            None => Err(format!("object {digest} stands nowhere")),
        },
        EntryKind::Symlink(target) => match target.contains(&0) || !(1..PATH_MAX).contains(&target.len()) {
            true => Err(format!("symbolic link with a target of {} bytes", target.len())),
            false => Ok(()),
        },
        EntryKind::Hardlink(target) if target.is_empty() => Err("hard link to the root".into()),
        EntryKind::Hardlink(target) => path::check(target).map_err(|error| format!("link target {error}")),
        EntryKind::CharDevice(Device { major: 0, minor: 0 }) => Err("character device 0:0".into()),
        EntryKind::CharDevice(number) | EntryKind::BlockDevice(number) => device(*number),
        _ => Ok(()),
    }
}

fn meta(meta: &Meta, new_xattrs: bool) -> Result<(), String> {
    if meta.mode & !0o7777 != 0 {
        return Err(format!("mode {:o}", meta.mode));
    }
    if meta.mtime.nanos >= 1_000_000_000 {
        return Err(format!("mtime with {} ns", meta.mtime.nanos));
    }
    if !new_xattrs {
        return Ok(());
    }
    if !meta.xattrs.is_sorted_by(|one, other| one.name < other.name) {
        return Err("xattrs are not sorted".into());
    }
    xattrs(&meta.xattrs)
}

/// One inode's extended attributes, as far as any file system could hold them.
pub(crate) fn xattrs(xattrs: &[Xattr]) -> Result<(), String> {
    if xattrs.len() > XATTRS_MAX {
        return Err(format!("{} xattrs, more than {XATTRS_MAX}", xattrs.len()));
    }
    let mut total = 0;
    for Xattr { name, value } in xattrs {
        if !(1..=XATTR_NAME_MAX).contains(&name.len()) || name.contains(&0) || value.len() > XATTR_VALUE_MAX {
            return Err(format!("xattr {:?} of {} bytes", String::from_utf8_lossy(name), value.len()));
        }
        total += name.len() + value.len();
    }
    match total > XATTRS_TOTAL_MAX {
        true => Err(format!("xattrs of {total} bytes, more than {XATTRS_TOTAL_MAX}")),
        false => Ok(()),
    }
}

fn sha256(text: &str) -> Result<(), String> {
    let well_formed = text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    });
    match well_formed {
        true => Ok(()),
        false => Err(format!("not a sha256 digest: {text:?}")),
    }
}
