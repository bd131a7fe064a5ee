//! The `sluice` command line: imports, mounts, runs and compares images, and serves a node on its own.
//!
//! ```text
//! args --> settings --> commands/*  --bus-->  fetcher         import, inspect, ls, rm, gc
//!                          |        --node-->  frontend        mount, run, status, evict
//!                          `-- embedded: all services in this process, when no others are named
//! ```
//!
//! One file per command; [`embedded`] composes the services, [`node`] speaks to a frontend, [`runtime`] makes a
//! container of a mounted image, [`compare`] measures it against containerd, [`link`] simulates a network, [`layers`] looks after
//! what a Docker engine reads of images beside their containers.
//!
//! Concurrency: one runtime, one command; whatever a command starts (services, processes, mounts) is owned by
//! a value whose drop ends it, so that an error or ctrl-c leaves nothing behind.

pub mod args;
pub mod commands;
pub mod compare;
pub mod embedded;
pub mod exit;
pub mod install;
pub mod layers;
pub mod link;
pub mod node;
pub mod platform_name;
pub mod processor;
pub mod progress;
pub mod render;
pub mod request;
pub mod runtime;
pub mod serving;
pub mod session;
pub mod settings;

use std::process::ExitCode;

use clap::Parser as _;

/// Reads the arguments, runs the command, and says what went wrong.
pub fn main() -> ExitCode {
    let cli = args::Cli::parse();
    if let args::Command::TakeAway(args) = &cli.command
        && !args.is_needed()
    {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&anyhow::Error::new(error).context("start the async runtime")),
    };
    let result = runtime.block_on(Box::pin(commands::run(cli)));
    // What still blocks (a reader of stdin, a lookup) must not hold up the exit.
    runtime.shutdown_timeout(exit::LINGER);
    match result {
        Ok(code) => code,
        Err(error) => exit::failed(&error),
    }
}
