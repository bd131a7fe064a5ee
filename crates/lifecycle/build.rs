//! Names the commit that an optimised program is built from. Others are built too often: each commit would compile all that
//! stands on this crate again.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SLUICE_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let optimised = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // Sources without their history, as in a tarball, are told.
    let told = std::env::var("SLUICE_COMMIT").ok();
    let commit = told.or_else(|| if optimised { commit() } else { None });
    let full = commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=SLUICE_VERSION={full}");
}

/// Its short name and its date.
fn commit() -> Option<String> {
    for watched in ["HEAD", "logs/HEAD"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", watched])?);
    }
    git(&["show", "--no-patch", "--format=%h %cs", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
