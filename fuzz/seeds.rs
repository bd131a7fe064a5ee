//! Writes the seed corpora: `seeds CORPUS-DIR TAR...`, where each TAR becomes a seed of the tar
//! target, and its records and map become seeds of theirs. `seeds.sh` calls it.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use fuzz::unwrap;
use image::record::{ImageRecord, IndexRef, LayerRef};
use image::scan::{CutChunk, LayerScanner, ScanError, ScanLimits};
use image::{Digest, LayerRecord, Map, merge};

/// What the tar target reads first: mend checksums, slices of 71 bytes.
const CHOICES: u8 = 10 << 1 | 1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let mut corpus = Corpus::new(arguments.next().ok_or("seeds CORPUS-DIR TAR...")?);
    for tar in arguments {
        let name = tar.file_stem().ok_or("a TAR without a name")?.to_string_lossy().into_owned();
        let archive = fs::read(&tar)?;
        let record = scan(&archive)?;
        corpus.write("tar", &name, &[&[CHOICES][..], &archive].concat())?;
        corpus.write("layer_record", &name, &unwrap(&record.encode()?))?;
        corpus.write("image_record", &name, &unwrap(&image(&record).encode()?))?;
        let layers = [&record];
        let map = Map::build(&merge::merge(&layers)?, &layers)?;
        corpus.write("map", &name, &unwrap(&map.encode()?))?;
    }
    Ok(())
}

/// A folder of seeds for each target, each seed once.
struct Corpus {
    folder: PathBuf,
    written: HashSet<(&'static str, Vec<u8>)>,
}

impl Corpus {
    fn new(folder: PathBuf) -> Corpus {
        Corpus { folder, written: HashSet::new() }
    }

    fn write(&mut self, target: &'static str, name: &str, seed: &[u8]) -> Result<(), Box<dyn Error>> {
        if self.written.insert((target, seed.to_vec())) {
            fs::create_dir_all(self.folder.join(target))?;
            fs::write(self.folder.join(target).join(name), seed)?;
        }
        Ok(())
    }
}

fn scan(archive: &[u8]) -> Result<LayerRecord, Box<dyn Error>> {
    let mut stored_lens = HashMap::new();
    let mut emit = |chunk: CutChunk| {
        stored_lens.insert(chunk.digest, chunk.plain.len() as u32);
        Ok::<_, ScanError>(())
    };
    let mut scanner = LayerScanner::new(ScanLimits::default());
    scanner.push(archive, &mut emit)?;
    let mut record = scanner.finish(&mut emit)?;
    record.set_stored_lens(&stored_lens)?;
    Ok(record)
}

/// A record of an image that has this one layer.
fn image(layer: &LayerRecord) -> ImageRecord {
    let sha256 = format!("sha256:{}", Digest::from_bytes(layer.diff_id));
    let index = IndexRef { digest: Digest::of(b"tree"), plain_len: 4096, stored_len: 100 };
    ImageRecord {
        project: "default".into(),
        manifest_digest: sha256.clone(),
        references: vec!["registry/image:tag".into()],
        config: b"{}".to_vec(),
        tree: index,
        map: index,
        layers: vec![LayerRef {
            digest: sha256.clone(),
            diff_id: sha256,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            size: 1234,
            entries: layer.entries.len() as u64,
        }],
        files: 1,
        plain_bytes: 1,
        stored_bytes: 1,
        imported_unix: 1,
        imported_by: "seeds".into(),
    }
}
