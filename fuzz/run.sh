#!/usr/bin/env bash
# Runs every fuzz target for some seconds: `fuzz/run.sh [SECONDS_PER_TARGET]`.
# New inputs stay in the target folder; the corpora beside this file are the seeds.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-20}
host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/target}

# libFuzzer's instrumentation, as the stable compiler offers it. With --target the flags reach only
# what is fuzzed, not build scripts.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --bins --locked --target "$host"

for target in tar layer_record image_record map; do
    echo "== $target, $seconds s"
    found=$target_dir/found/$target
    mkdir -p "$found" artifacts
    log=$found.log
    # Memory: an encoded value may inflate to 1 GiB, which its limits allow.
    if ! "$target_dir/$host/release/$target" "$found" "corpus/$target" -max_total_time="$seconds" \
        -rss_limit_mb=3072 -timeout=25 -max_len=65536 -artifact_prefix="artifacts/$target-" >"$log" 2>&1; then
        tail -n 50 "$log" >&2
        echo "$target failed; the input is in fuzz/artifacts" >&2
        exit 1
    fi
    grep -E '^#[0-9]+[[:space:]]+(INITED|DONE)' "$log"
done
