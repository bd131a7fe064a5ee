//! The tar reader and the scanner: any bytes give a sound record or an error, in bounded memory,
//! and the same one however they are sliced.
//!
//! Input: one byte of choices (the lowest bit: mend checksums; the rest: the size of slices), then
//! the archive.
#![no_main]

use std::collections::HashMap;

use image::LayerRecord;
use image::scan::{LayerScanner, ScanError, ScanLimits};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
const LIMITS: ScanLimits = ScanLimits { plain_max: 4 << 20, entries_max: 1000 };

fuzz_target!(|data: &[u8]| {
    let Some((choice, archive)) = data.split_first() else { return };
    let mut archive = archive.to_vec();
    if choice & 1 == 1 {
        mend_checksums(&mut archive);
    }
    let whole = scan(&archive, archive.len().max(1));
    let sliced = scan(&archive, usize::from(choice >> 1) * 7 + 1);
    assert_eq!(whole, sliced);
    if let Ok(record) = whole {
        let encoded = record.encode().expect("a record within the limits");
        assert_eq!(LayerRecord::decode(&encoded).expect("a record of a scan"), record);
    }
});

fn scan(archive: &[u8], slice: usize) -> Result<LayerRecord, ScanError> {
    let mut stored_lens = HashMap::new();
    let mut emit = |chunk: image::scan::CutChunk| {
        stored_lens.insert(chunk.digest, chunk.plain.len() as u32);
        Ok::<_, ScanError>(())
    };
    let mut scanner = LayerScanner::new(LIMITS);
    for slice in archive.chunks(slice) {
        scanner.push(slice, &mut emit)?;
    }
    let mut record = scanner.finish(&mut emit)?;
    record.set_stored_lens(&stored_lens).expect("every chunk was given out");
    Ok(record)
}

/// Almost no change to a header leaves its sum right: without this the fuzzer would try only that.
fn mend_checksums(archive: &mut [u8]) {
    for block in archive.as_chunks_mut::<BLOCK>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
