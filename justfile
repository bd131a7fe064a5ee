# Recipes. `./just` lists them; each does all of its own set-up.

set shell := ["bash", "-euo", "pipefail", "-c"]
# Recipes hand their arguments on as they were quoted.
set positional-arguments

export SLUICE_IMAGES := env("SLUICE_IMAGES", justfile_directory() / "target-images")
sluice := env("CARGO_TARGET_DIR", justfile_directory() / "target") / "release/sluice"

# list the recipes
[private]
default:
    @just --list --unsorted

# install what demo, test and bench need (Debian or Ubuntu packages, nats-server, cargo-deny)
setup:
    scripts/setup

# the policies as WebAssembly, into target-plugins
plugins: setup
    scripts/plugins

# what is needed to build the examples of docs/policies.md
authors: setup
    scripts/setup-authors

# compare a normal pull with streaming, side by side: `./just demo [IMAGE [OPTIONS OF sluice compare] [-- CMD…]]`
demo *ARGS: setup release
    scripts/demo {{ sluice }} "$@"

# all tests, against a real registry, a real NATS, containerd and the kernel
test *ARGS: plugins authors
    cargo build --workspace --bins # end-to-end tests run them
    cargo test --workspace "$@"

# ready times and throughput against containerd, as a table and as JSON: `./just bench [OUTPUT-DIR]`
bench OUTPUT="target-bench": plugins
    cargo build --release --package cli --package frontend --package fetcher --package cache --package policy --package system-tests --bins
    scripts/bench {{ sluice }} {{ OUTPUT }}

# run every fuzz target for some seconds
fuzz SECONDS="20": plugins
    fuzz/run.sh {{ SECONDS }}

# formatting, lints, licences
check: plugins
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo fetch --locked # also what only other systems build: cargo-deny reads it all
    cargo deny --offline check bans licenses sources

# the optimised command, at target/release/sluice
release: plugins
    cargo build --release --package cli
