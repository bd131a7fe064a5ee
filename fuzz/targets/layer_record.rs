//! Layer records: what is accepted comes back unchanged, and can be merged and laid out.
#![no_main]

use fuzz::wrap;
use image::encoding::LAYER_RECORD;
use image::{LayerRecord, Map, erofs, merge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    let _ = LayerRecord::decode(plain);
    let Ok(record) = LayerRecord::decode(&wrap(LAYER_RECORD, plain)) else { return };
    assert_eq!(LayerRecord::decode(&record.encode().expect("encode")).expect("decode"), record);
    let layers = [&record];
    let Ok(tree) = merge::merge(&layers) else { return };
    let _ = erofs::write(&tree);
    let _ = Map::build(&tree, &layers);
});
