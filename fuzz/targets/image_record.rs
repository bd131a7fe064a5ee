//! Image records: what is accepted comes back unchanged.
#![no_main]

use fuzz::wrap;
use image::ImageRecord;
use image::encoding::IMAGE_RECORD;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    let _ = ImageRecord::decode(plain);
    let Ok(record) = ImageRecord::decode(&wrap(IMAGE_RECORD, plain)) else { return };
    assert_eq!(ImageRecord::decode(&record.encode().expect("encode")).expect("decode"), record);
});
