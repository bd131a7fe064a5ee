//! `sluice policy new`: a project to begin with, which builds and decides as it stands.
//!
//! What it writes are the examples of `plugins/examples`, as they are built and run by this repository's own tests.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::super::Context;
use crate::render;

/// The examples' own name: each place where it stands gets the new one.
const EXAMPLE: &str = "no-latest";
/// Of a policy, in bytes: as long as a policy set takes.
const NAME_MAX: usize = 64;
/// Files that are run.
const SCRIPT: &str = "build";

/// Begin a policy: a folder with one source file, the contract, and a script that builds it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy new mine --lang python && mine/build && sluice policy run mine/mine.wasm --facts mine/facts.json

It refuses images by their tag until you change its source file. What ./build needs, it says in its first lines.")]
pub struct NewArgs {
    /// Small letters, digits and hyphens
    #[arg(value_parser = name)]
    name: String,
    #[arg(long, value_enum)]
    lang: Language,
    /// Where to make it; it must not exist, or be empty [default: ./NAME]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    Rust,
    Python,
    #[value(alias = "javascript")]
    Js,
    C,
}

#[derive(Serialize)]
struct Made<'a> {
    folder: &'a Path,
    files: Vec<&'static str>,
}

/// Its path in the project, and what the example has there.
type File = (&'static str, &'static str);

macro_rules! files {
    ($($path:literal = $from:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../../plugins/", $from)))),*]
    };
}

const SHARED: &[File] = files! {
    "wit/policy.wit" = "wit/policy.wit",
    "facts.json" = "examples/facts.json",
    "settings.toml" = "examples/settings.toml",
    ".gitignore" = "examples/.gitignore",
};
/// The contract as a library; the same for every project.
const SDK: &[File] = files! {
    "sdk/Cargo.toml" = "sdk/Cargo.toml",
    "sdk/src/lib.rs" = "sdk/src/lib.rs",
    "sdk/src/bindings.rs" = "sdk/src/bindings.rs",
    "sdk/src/settings.rs" = "sdk/src/settings.rs",
};
const RUST: &[File] = files! {
    "build" = "examples/rust/build",
    "Cargo.toml" = "examples/rust/Cargo.toml",
    "Cargo.lock" = "examples/rust/Cargo.lock",
    "src/lib.rs" = "examples/rust/src/lib.rs",
};
const PYTHON: &[File] = files! {
    "build" = "examples/python/build",
    "policy.py" = "examples/python/policy.py",
};
const JS: &[File] = files! {
    "build" = "examples/javascript/build",
    "policy.js" = "examples/javascript/policy.js",
};
const C: &[File] = files! {
    "build" = "examples/c/build",
    "policy.c" = "examples/c/policy.c",
};

impl Language {
    /// What is the author's own; the rest is the same in every project.
    fn own(self) -> &'static [File] {
        match self {
            Language::Rust => RUST,
            Language::Python => PYTHON,
            Language::Js => JS,
            Language::C => C,
        }
    }

    fn common(self) -> impl Iterator<Item = &'static File> {
        let sdk = if self == Language::Rust { SDK } else { &[] };
        SHARED.iter().chain(sdk)
    }
}

pub(super) fn run(context: &Context, args: NewArgs) -> anyhow::Result<ExitCode> {
    let folder = args.folder.unwrap_or_else(|| PathBuf::from(&args.name));
    make_empty(&folder)?;
    for (path, text) in args.lang.common() {
        write(&folder, path, text)?;
    }
    for (path, text) in args.lang.own() {
        write(&folder, path, &text.replace(EXAMPLE, &args.name))?;
    }
    let files = args.lang.own().iter().chain(args.lang.common()).map(|(path, _)| *path).collect();
    if context.global.json {
        render::json(&Made { folder: &folder, files })?;
        return Ok(ExitCode::SUCCESS);
    }
    let (shown, name) = (folder.display(), &args.name);
    render::line(&format!(
        "made {shown}; next:\n  {shown}/build\n  sluice policy check {shown}/{name}.wasm\n  sluice policy run {shown}/{name}.wasm --facts {shown}/facts.json"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn make_empty(folder: &Path) -> anyhow::Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty: name another folder", folder.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
        }
        Err(error) => Err(error).with_context(|| format!("look into {}", folder.display())),
    }
}

fn write(folder: &Path, path: &str, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let file = folder.join(path);
    let writing = || format!("write {}", file.display());
    fs::create_dir_all(file.parent().unwrap_or(folder)).with_context(writing)?;
    let mode = if path == SCRIPT { 0o755 } else { 0o644 };
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&file);
    made.and_then(|mut made| made.write_all(text.as_bytes())).with_context(writing)
}

/// A name of a package in every language's toolchain, and of a policy in a set.
fn name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    match begins && text.len() <= NAME_MAX && text.bytes().all(good) && !text.ends_with('-') {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("small letters, digits and hyphens expected, a letter first, at most {NAME_MAX}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_such_that_every_toolchain_takes_them() {
        for good in ["mine", "no-latest", "a1"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "-a", "1a", "A", "a_b", "a/b", "..", "a-", "ä", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_project_is_built_by_a_script_that_names_the_plugin() {
        for language in Language::value_variants() {
            let script = language.own().iter().find(|(path, _)| *path == SCRIPT);
            assert!(
                script.is_some_and(|(_, text)| text.contains(&format!("{EXAMPLE}.wasm"))),
                "{language:?}"
            );
        }
    }
}
