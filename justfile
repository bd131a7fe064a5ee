# Recipes. `./just` lists them; each installs what it needs, and nothing else.

set shell := ["bash", "-euo", "pipefail", "-c"]
# Recipes hand their arguments on as they were quoted.
set positional-arguments

export SLUICE_IMAGES := env("SLUICE_IMAGES", justfile_directory() / "target-images")
target := env("CARGO_TARGET_DIR", justfile_directory() / "target")
sluice := target / "release/sluice"

# list the recipes
[private]
default:
    @just --list --unsorted

# compare a normal pull with streaming, side by side: `./just demo [IMAGE [OPTIONS OF sluice compare] [-- CMD…]]`
demo *ARGS:
    scripts/demo "$@"

# all tests, against a real registry, a real NATS, containerd and the kernel: `./just test [OPTIONS OF cargo nextest run]`
test *ARGS:
    scripts/test all "$@"

# the tests that need no server and no root, in seconds
test-quick *ARGS:
    scripts/test quick "$@"

# events, and nodes that enroll, in a real Kubernetes: builds an API server first, which takes minutes and 6 GB; no part of `test`
test-kubernetes *ARGS: plugins
    scripts/setup build nextest
    scripts/setup-kubernetes
    cargo build --workspace --locked --bins --tests
    cargo nextest run --workspace --run-ignored all -E 'package(events) & test(/^cluster::/) + package(identity-service) & binary(pods)' "$@"

# a machine with a systemd of its own: install, restart and kill sluice under a reader, reboot, uninstall; no part of `test`. `./just test-machine PACKAGE`: by a Debian package
test-machine *PACKAGE: plugins
    scripts/setup build machine
    cargo build --workspace --bins
    scripts/test-machine {{ target }}/debug/sluice "$@"

# the Docker engine, switched to sluice and back: fetches an engine of a newer Debian first; no part of `test`. SLUICE_DOCKER=26 runs another one
test-docker *ARGS:
    scripts/setup build nextest docker
    scripts/setup-docker "${SLUICE_DOCKER:-28}"
    scripts/plugins
    cargo build --workspace --locked --bins --tests
    cargo nextest run --workspace --profile servers --run-ignored only -E 'package(system-tests) & test(/^docker::/)' "$@"

# the policies as WebAssembly, into target-plugins
plugins:
    scripts/setup build
    scripts/plugins

# the optimised command, at target/release/sluice; its debug information stands beside it
release: plugins
    scripts/release

# the images of every service in the local Docker engine, of what is compiled here: `./just images [IMAGE…]`
images *ARGS:
    scripts/images "$@"

# sluice on this machine in Docker Compose: `./just up [scale]`, see docs/compose.md
up *ARGS:
    scripts/compose up "$@"

# end it: `./just down [volumes]`; with `volumes` also what it keeps
down *ARGS:
    scripts/compose down "$@"

# what its services log: `./just logs [SERVICE…]`
logs *ARGS:
    scripts/compose logs "$@"

# `docker compose` with the right files: `./just compose exec node-1 ctr images ls`
compose *ARGS:
    scripts/compose "$@"

# the same on a Docker engine of its own, killed part by part under load; needs root: `./just test-compose`
test-compose *ARGS:
    scripts/test-compose "$@"

# everything that a release has, into target-dist: images, package, tarball, checksums: `./just dist [DIR]`
dist *ARGS:
    scripts/dist "$@"

# ready times and throughput against containerd, as a table and as JSON: `./just bench [OUTPUT-DIR]`
bench OUTPUT="target-bench": plugins
    scripts/setup images test
    cargo build --release --package cli --package frontend --package fetcher --package cache --package policy --package quota --package events --package identity-service --package system-tests --bins
    scripts/bench {{ sluice }} {{ OUTPUT }}

# formatting, lints, licences
check: plugins
    scripts/setup check
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo fetch --locked # also what only other systems build: cargo-deny reads it all
    cargo deny --offline check bans licenses sources

# run every fuzz target for some seconds
fuzz SECONDS="20": plugins
    scripts/setup fuzz
    fuzz/run.sh {{ SECONDS }}

# remove all that recipes made in this checkout: programs, images, tools; Debian packages stay installed
clean-all:
    scripts/clean-all
