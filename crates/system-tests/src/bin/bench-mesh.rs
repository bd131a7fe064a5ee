//! Measures what holds a mesh together; prints one JSON object.
//!
//! ```text
//! bench-mesh [--quick] [--only PART]...
//! ```
//!
//! PART is one of streams, check, starts (which needs root), spend, claim, windows, events, enrolment; without any, all are measured.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_json::Map;
use system_tests::bench::mesh::{PARTS, emit, measure};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, folder, count] = &words[..]
        && word == "--emit"
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let told = runtime.block_on(emit(Path::new(folder), count.parse()?))?;
        return Ok(writeln!(std::io::stdout(), "{told}")?);
    }
    let (quick, only) = parse(words.into_iter())?;
    let mut result = Map::new();
    for part in PARTS {
        if only.is_empty() || only.iter().any(|only| only == part) {
            writeln!(std::io::stderr(), "a mesh: {part}")?;
            result.insert(part.to_owned(), measure(part, quick).with_context(|| part.to_owned())?);
        }
    }
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&result)?)?;
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<(bool, Vec<String>)> {
    let (mut quick, mut only) = (false, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--only" => only.push(words.next().context("--only needs a part")?),
            _ => bail!("{word} is not known"),
        }
    }
    for part in &only {
        ensure!(PARTS.contains(&part.as_str()), "{part} is none of {PARTS:?}");
    }
    Ok((quick, only))
}
