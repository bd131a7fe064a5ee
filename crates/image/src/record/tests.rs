use super::*;
use crate::limits::{CHUNK_PLAIN_MAX, INLINE_MAX, XATTR_VALUE_MAX};

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.into(), kind, meta: Meta { mode: 0o644, ..Meta::default() } }
}

fn chunk(name: &str, plain_len: u32) -> ChunkRef {
    ChunkRef { digest: digest(name), plain_len, stored_len: plain_len / 2 }
}

/// One small object in a shared chunk, one large over two.
fn layer() -> LayerRecord {
    let object = |name, len| EntryKind::File(Content::Object { digest: digest(name), len });
    LayerRecord {
        diff_id: [7; 32],
        tar_len: 10_240,
        entries: vec![
            entry("", EntryKind::Directory),
            entry("small", object("s", 600)),
            entry("dir/large", object("l", 3000)),
            entry("inline", EntryKind::File(Content::Inline(b"x".to_vec()))),
            entry("link", EntryKind::Symlink(b"../else\xff".to_vec())),
            entry("hard", EntryKind::Hardlink(b"small".to_vec())),
            entry("null", EntryKind::CharDevice(Device { major: 1, minor: 3 })),
            entry("gone", EntryKind::Whiteout),
        ],
        chunks: vec![chunk("pack", 1000), chunk("one", 2000), chunk("two", 1000)],
        objects: vec![
            ObjectPlace { digest: digest("s"), len: 600, first_chunk: 0, chunk_count: 1, offset: 400 },
            ObjectPlace { digest: digest("l"), len: 3000, first_chunk: 1, chunk_count: 2, offset: 0 },
        ],
        sparse: Vec::new(),
    }
}

fn image() -> ImageRecord {
    let sha = |byte: u8| format!("sha256:{}", hex::encode([byte; 32]));
    let index = IndexRef { digest: digest("tree"), plain_len: 4096, stored_len: 100 };
    ImageRecord {
        project: "default".into(),
        manifest_digest: sha(1),
        references: vec!["a".into(), "b".into()],
        config: b"{}".to_vec(),
        tree: index,
        map: index,
        layers: vec![LayerRef {
            digest: sha(2),
            diff_id: sha(3),
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            size: 5,
            entries: 1,
        }],
        files: 1,
        plain_bytes: 2,
        stored_bytes: 3,
        imported_unix: 4,
        imported_by: "fetcher-1".into(),
    }
}

#[test]
fn records_come_back_as_they_were() -> anyhow::Result<()> {
    assert_eq!(LayerRecord::decode(&layer().encode()?)?, layer());
    assert_eq!(ImageRecord::decode(&image().encode()?)?, image());
    assert!(LayerRecord::decode(&image().encode()?).is_err());
    Ok(())
}

#[test]
fn layer_records_that_break_a_rule_are_refused() -> anyhow::Result<()> {
    type Break = fn(&mut LayerRecord);
    let cases: &[(&str, Break)] = &[
        ("path", |layer| layer.entries[1].path = b"../small".to_vec()),
        ("path", |layer| layer.entries[1].path = b"/small".to_vec()),
        ("path", |layer| layer.entries[1].path = b"a//small".to_vec()),
        ("root", |layer| layer.entries[1].path = Vec::new()),
        ("mode", |layer| layer.entries[0].meta.mode = 0o40755),
        ("mtime", |layer| layer.entries[0].meta.mtime.nanos = 1_000_000_000),
        ("not sorted", |layer| {
            let xattr = |name: &str| Xattr { name: name.into(), value: Vec::new() };
            layer.entries[0].meta.xattrs = vec![xattr("user.b"), xattr("user.a")].into();
        }),
        ("not sorted", |layer| {
            let xattr = Xattr { name: b"user.a".to_vec(), value: Vec::new() };
            layer.entries[0].meta.xattrs = vec![xattr.clone(), xattr].into();
        }),
        ("xattr", |layer| {
            layer.entries[0].meta.xattrs =
                vec![Xattr { name: b"user.a".to_vec(), value: vec![0; XATTR_VALUE_MAX + 1] }].into();
        }),
        ("of an object of", |layer| {
            layer.entries[1].kind = EntryKind::File(Content::Object { digest: digest("s"), len: 601 });
        }),
        ("stands nowhere", |layer| {
            layer.entries[1].kind = EntryKind::File(Content::Object { digest: digest("?"), len: 600 });
        }),
        ("inline", |layer| {
            layer.entries[3].kind = EntryKind::File(Content::Inline(vec![0; INLINE_MAX + 1]));
        }),
        ("symbolic link", |layer| layer.entries[4].kind = EntryKind::Symlink(Vec::new())),
        ("hard link", |layer| layer.entries[5].kind = EntryKind::Hardlink(Vec::new())),
        ("link target", |layer| layer.entries[5].kind = EntryKind::Hardlink(b"a/../b".to_vec())),
        ("0:0", |layer| layer.entries[6].kind = EntryKind::CharDevice(Device { major: 0, minor: 0 })),
        ("out of range", |layer| {
            layer.entries[6].kind = EntryKind::BlockDevice(Device { major: 4096, minor: 0 });
        }),
        ("twice", |layer| layer.objects[1] = layer.objects[0]),
        ("do not fit", |layer| layer.objects[0].offset = 401),
        ("do not fit", |layer| layer.objects[0].len = u64::MAX),
        ("do not fit", |layer| layer.objects[1].len = 2999),
        ("do not fit", |layer| layer.objects[1].offset = 1),
        ("not there", |layer| layer.objects[1].chunk_count = 3),
        ("not there", |layer| layer.objects[1].chunk_count = 0),
        ("not there", |layer| layer.objects[1].first_chunk = u32::MAX),
        ("plain bytes", |layer| layer.chunks[0].plain_len = CHUNK_PLAIN_MAX as u32 + 1),
        ("stored bytes", |layer| layer.chunks[0].stored_len = 0),
    ];
    for (index, (reason, damage)) in cases.iter().enumerate() {
        let mut record = layer();
        damage(&mut record);
        let refusal = LayerRecord::decode(&record.encode()?).unwrap_err().to_string();
        assert!(refusal.contains(reason), "case {index}: {refusal}");
    }
    Ok(())
}

#[test]
fn image_records_that_break_a_rule_are_refused() -> anyhow::Result<()> {
    type Break = fn(&mut ImageRecord);
    let cases: &[Break] = &[
        |image| image.manifest_digest = "sha256:ab".into(),
        |image| image.manifest_digest = image.manifest_digest.to_uppercase(),
        |image| image.layers[0].diff_id.truncate(70),
        |image| image.layers[0].digest = String::new(),
        |image| image.references.swap(0, 1),
        |image| image.references = vec!["a".into(); 2],
    ];
    for (index, damage) in cases.iter().enumerate() {
        let mut record = image();
        damage(&mut record);
        assert!(ImageRecord::decode(&record.encode()?).is_err(), "case {index}");
    }
    Ok(())
}

#[test]
fn stored_lengths_are_filled_in_by_digest() {
    let mut record = layer();
    let mut lens: HashMap<Digest, u32> =
        [("pack", 11), ("one", 22), ("two", 33)].map(|(name, len)| (digest(name), len)).into();
    assert_eq!(record.set_stored_lens(&lens), Ok(()));
    assert_eq!(record.chunks.iter().map(|chunk| chunk.stored_len).collect::<Vec<_>>(), [11, 22, 33]);
    lens.remove(&digest("two"));
    assert_eq!(record.set_stored_lens(&lens), Err(UnknownChunk(digest("two"))));
}
