//! Maps: in an accepted one every object is found, and lies wholly inside its chunks.
#![no_main]

use fuzz::wrap;
use image::Map;
use image::encoding::MAP;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    let _ = Map::decode(plain);
    let Ok(map) = Map::decode(&wrap(MAP, plain)) else { return };
    assert_eq!(Map::decode(&map.encode().expect("encode")).expect("decode"), map);
    for object in &map.objects {
        let place = map.place(&object.digest).expect("an object of the map");
        assert_eq!(place, object);
        let (mut position, mut data) = (0, 0);
        for slice in map.slices(place, 0..u64::MAX) {
            let chunk = &map.chunks[slice.chunk as usize];
            // What is between two slices is a hole.
            assert!(slice.object_offset == position || map.sparse(&object.digest).is_some());
            assert!(slice.object_offset >= position);
            assert!(slice.len > 0 && slice.chunk_offset + slice.len <= chunk.plain_len);
            position = slice.object_offset + u64::from(slice.len);
            data += u64::from(slice.len);
        }
        assert!(position <= object.len);
        assert_eq!(data, map.data_len(place));
    }
});
