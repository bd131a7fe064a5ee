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

/// Of a policy, in bytes: as long as a policy set takes.
const NAME_MAX: usize = 64;
/// A project in Rust depends on it.
const SDK_CRATE: &str = "sluice-policy";
/// Files that are run.
const SCRIPT: &str = "build";

/// Begin a policy: a folder with one source file, the contract, and a script that builds it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy new mine --lang python && mine/build && sluice policy run mine/mine.wasm --facts mine/facts.json
  sluice policy new mine --lang rust --world prefetch && mine/build
  sluice policy run mine/mine.wasm --facts mine/facts.json --settings mine/settings.toml --profile 40

A policy of the world `eligibility` says whether an image may stream: the new one refuses images by their tag. One of `prefetch` says \
what of an image is fetched first: the new one lists the paths that its setting `first` names, then what earlier starts read \
(--profile: as if they had read so many chunks). Each does so until you change its source file. What ./build needs, it says in its \
first lines.")]
pub struct NewArgs {
    /// Small letters, digits and hyphens
    #[arg(value_parser = name)]
    name: String,
    #[arg(long, value_enum)]
    lang: Language,
    /// What the policy decides
    #[arg(long, value_enum, default_value_t)]
    world: World,
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum World {
    /// May this image stream?
    #[default]
    Eligibility,
    /// What of an image is fetched first?
    Prefetch,
}

#[derive(Serialize)]
struct Made<'a> {
    folder: &'a Path,
    files: Vec<&'static str>,
}

/// Its path in the project, and what the example has there.
type File = (&'static str, &'static str);

macro_rules! files {
    ($folder:literal: $($path:literal),*) => {
        &[$(($path, include_str!(concat!("../../../../../plugins/", $folder, $path)))),*]
    };
}

const CONTRACT: &[File] = files!("": "wit/policy.wit");
/// The contract as a library, for Rust.
const SDK: &[File] =
    files!("": "sdk/Cargo.toml", "sdk/src/lib.rs", "sdk/src/bindings.rs", "sdk/src/settings.rs");
const SHARED: &[File] = files!("examples/": "facts.json", ".gitignore");

impl World {
    /// The examples' own name: each place where it stands gets the new one.
    fn example(self) -> &'static str {
        match self {
            World::Eligibility => "no-latest",
            World::Prefetch => "paths-first",
        }
    }

    /// What is the author's own.
    fn own(self, language: Language) -> &'static [File] {
        match (self, language) {
            (World::Eligibility, Language::Rust) => {
                files!("examples/eligibility/rust/": "build", "Cargo.toml", "Cargo.lock", "src/lib.rs")
            }
            (World::Eligibility, Language::Python) => {
                files!("examples/eligibility/python/": "build", "policy.py")
            }
            (World::Eligibility, Language::Js) => {
                files!("examples/eligibility/javascript/": "build", "policy.js")
            }
            (World::Eligibility, Language::C) => files!("examples/eligibility/c/": "build", "policy.c"),
            (World::Prefetch, Language::Rust) => {
                files!("examples/prefetch/rust/": "build", "Cargo.toml", "Cargo.lock", "src/lib.rs")
            }
            (World::Prefetch, Language::Python) => files!("examples/prefetch/python/": "build", "policy.py"),
            (World::Prefetch, Language::Js) => files!("examples/prefetch/javascript/": "build", "policy.js"),
            (World::Prefetch, Language::C) => files!("examples/prefetch/c/": "build", "policy.c"),
        }
    }

    /// What is the same for every name.
    fn common(self, language: Language) -> impl Iterator<Item = &'static File> {
        let settings: &[File] = match self {
            World::Eligibility => files!("examples/eligibility/": "settings.toml"),
            World::Prefetch => files!("examples/prefetch/": "settings.toml"),
        };
        let sdk = if language == Language::Rust { SDK } else { &[] };
        CONTRACT.iter().chain(SHARED).chain(settings).chain(sdk)
    }

    /// How the new policy is tried.
    fn trial(self) -> &'static str {
        match self {
            World::Eligibility => "",
            World::Prefetch => " --profile 40",
        }
    }
}

pub(super) fn run(context: &Context, args: NewArgs) -> anyhow::Result<ExitCode> {
    let NewArgs { name, lang, world, folder } = args;
    let folder = folder.unwrap_or_else(|| PathBuf::from(&name));
    make_empty(&folder)?;
    for (path, text) in world.common(lang) {
        write(&folder, path, text)?;
    }
    for (path, text) in world.own(lang) {
        write(&folder, path, &text.replace(world.example(), &name))?;
    }
    let files = world.own(lang).iter().chain(world.common(lang)).map(|(path, _)| *path).collect();
    if context.global.json {
        render::json(&Made { folder: &folder, files })?;
        return Ok(ExitCode::SUCCESS);
    }
    let (shown, trial) = (folder.display(), world.trial());
    render::line(&format!(
        "made {shown}; next:\n  {shown}/build\n  sluice policy check {shown}/{name}.wasm\n  sluice policy run {shown}/{name}.wasm --facts {shown}/facts.json --settings {shown}/settings.toml{trial}"
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
    if text == SDK_CRATE {
        return Err("the Rust crate that policies are built with has this name".to_owned());
    }
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
        for bad in ["", "-a", "1a", "A", "a_b", "a/b", "..", "a-", "ä", SDK_CRATE, &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_project_is_built_by_a_script_that_names_the_plugin_and_its_world() {
        for world in World::value_variants() {
            for language in Language::value_variants() {
                let own = world.own(*language);
                let all: String = own.iter().map(|(_, text)| *text).collect();
                let script = own.iter().find(|(path, _)| *path == SCRIPT).map_or("", |(_, text)| text);
                assert!(script.contains(&format!("{}.wasm", world.example())), "{world:?} {language:?}");
                for other in World::value_variants().iter().filter(|other| *other != world) {
                    let name = other.to_possible_value().unwrap().get_name().to_owned();
                    let says = |what: &str| all.contains(what);
                    assert!(
                        !says(&name) && !says(other.example()),
                        "{world:?} {language:?}: it is of {name}"
                    );
                }
            }
        }
    }
}
