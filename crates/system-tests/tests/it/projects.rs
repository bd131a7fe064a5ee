//! Policies as their authors make them: a project by `sluice policy new`, built with its own script.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};
use system_tests::{Scratch, binaries};

const RUST_TARGET: &str = "wasm32-unknown-unknown";

/// Begins a project named `mine`; its folder.
pub(crate) fn begun(scratch: &Scratch, language: &str, world: &str) -> anyhow::Result<PathBuf> {
    let folder = scratch.path(&format!("{world}-{language}"));
    let arguments = ["policy", "new", "mine", "--lang", language, "--world", world].map(str::to_owned);
    let arguments = [arguments.to_vec(), vec![folder.display().to_string()]].concat();
    let next = scratch.succeed(&arguments)?;
    ensure!(
        next.contains("mine.wasm --facts") && next.contains("--profile") == (world == "prefetch"),
        "{next}"
    );
    let again = scratch.refuse(&arguments)?;
    assert!(again.contains("is not empty: name another folder"), "{again}");
    Ok(folder)
}

/// Builds a project. A tool that is missing is an error: `./just test` installs them.
pub(crate) fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut script = Command::new(folder.join("build"));
    let in_rust = folder.join("Cargo.toml").exists();
    let _turn = in_rust.then(rust_turn).transpose()?;
    if in_rust {
        prepare_rust(&mut script)?;
    }
    let output = script.output().context("running the build script")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "building {}: {errors}", folder.display());
    Ok(folder.join("mine.wasm"))
}

/// Projects in Rust share what they are made of, and the name of what they make: one test at a time builds one.
fn rust_turn() -> anyhow::Result<File> {
    let lock = File::create(binaries::plugin("build")?.join("projects.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// The folder in which `./just plugins` compiled the same libraries; and where rustup has no such target, the compiler that it
/// used instead, by cargo's own variables: the script is run as it stands.
fn prepare_rust(script: &mut Command) -> anyhow::Result<()> {
    script.env("CARGO_TARGET_DIR", binaries::plugin("build")?);
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("running rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    if !sysroot.join("lib/rustlib").join(RUST_TARGET).is_dir() {
        let path = std::env::var("PATH").context("PATH")?;
        script.env("PATH", format!("/usr/bin:{path}")).env("RUSTC", "/usr/bin/rustc");
        // It is of the toolchain that runs this test.
        script.env_remove("LD_LIBRARY_PATH");
        script.env("RUSTC_BOOTSTRAP", "1").env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
        script.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
    }
    Ok(())
}
