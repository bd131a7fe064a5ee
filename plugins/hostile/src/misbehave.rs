//! What a policy of any world can do wrong, whatever it is asked.

use std::hint::black_box;

pub(crate) fn misbehave(how: &str) {
    match how {
        "loop" => loop {
            black_box(());
        },
        "allocate" => {
            let mut kept = Vec::new();
            loop {
                kept.push(black_box(vec![1u8; 1 << 20]));
            }
        }
        // Goes on without the gigabyte that it was refused.
        "refused-loop" => {
            core::arch::wasm32::memory_grow(0, 1 << 14);
            misbehave("loop");
        }
        "recurse" => {
            black_box(recurse(black_box(1)));
        }
        "panic" => panic!("nobody expects this"),
        "trap" => core::arch::wasm32::unreachable(),
        "outside" => {
            // SAFETY: deliberately none: the host must stop it.
            unsafe { std::ptr::read_volatile(0xffff_fff0 as *const u8) };
        }
        _ => {}
    }
}

/// Without anything in linear memory, so that the stack that is full is the host's, and not the one that compilers keep there.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    if depth == 0 { 0 } else { recurse(depth + 1).rotate_left(1) ^ depth }
}
