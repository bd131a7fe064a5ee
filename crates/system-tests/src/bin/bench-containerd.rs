//! Measures sluice as a snapshotter of containerd; prints one JSON object.
//!
//! ```text
//! bench-containerd [--quick] [--only PART]... [--image NAME LAYOUT (--ready-line WORDS | --ready-http PORT[/PATH])]...
//! ```
//!
//! PART is one of starts (which needs images), prepare, many, killed; without any, all are measured. Needs root.

use std::io::Write as _;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};
use system_tests::bench::ready::Ready;
use system_tests::bench::site::Site;
use system_tests::bench::starts::Image;
use system_tests::bench::{killed, many, prepare, starts};

const PARTS: [&str; 4] = ["starts", "prepare", "many", "killed"];
/// Of all that is measured; one where it must be quick.
const ROUNDS: usize = 3;
const LAYERS: [usize; 2] = [1, 100];

#[derive(Debug, Default)]
struct Plan {
    quick: bool,
    only: Vec<String>,
    images: Vec<Image>,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    let site = Site::start()?;
    let mut result = Map::new();
    for part in PARTS {
        if plan.only.is_empty() || plan.only.iter().any(|only| only == part) {
            result.insert(part.to_owned(), plan.measure(&site, part)?);
        }
    }
    let text = serde_json::to_string_pretty(&result)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

impl Plan {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Plan> {
        let mut plan = Plan::default();
        while let Some(word) = words.next() {
            let mut next = |what: &str| words.next().with_context(|| format!("{word} needs {what}"));
            match word.as_str() {
                "--quick" => plan.quick = true,
                "--only" => plan.only.push(next("a part")?),
                "--image" => {
                    let (name, layout) = (next("a name")?, next("a layout")?);
                    plan.images.push(Image { name, layout, ready: Ready::Line("ready".to_owned()) });
                }
                "--ready-line" => plan.last()?.ready = Ready::Line(next("words")?),
                "--ready-http" => plan.last()?.ready = Ready::http(&next("a probe")?)?,
                _ => bail!("{word} is not known"),
            }
        }
        for only in &plan.only {
            ensure!(PARTS.contains(&only.as_str()), "{only} is none of {PARTS:?}");
        }
        Ok(plan)
    }

    fn last(&mut self) -> anyhow::Result<&mut Image> {
        self.images.last_mut().context("when an image is ready is said after the image")
    }

    fn measure(&self, site: &Site, part: &str) -> anyhow::Result<Value> {
        let rounds = if self.quick { 1 } else { ROUNDS };
        match part {
            "starts" => {
                let each = self.images.iter().map(|image| {
                    note(&format!("starts of {}", image.name));
                    anyhow::Ok((image.name.clone(), starts::measure(site, image, rounds)?))
                });
                Ok(Value::Object(each.collect::<anyhow::Result<_>>()?))
            }
            "prepare" => {
                note("Prepare");
                let each = LAYERS.iter().map(|&layers| prepare::measure(site, layers, rounds));
                Ok(json!(each.collect::<anyhow::Result<Vec<_>>>()?))
            }
            "many" => {
                note("many containers at once");
                many::measure(site, rounds)
            }
            _ => {
                note("a killed frontend");
                killed::measure(site, rounds)
            }
        }
    }
}

/// What is going on, for who waits.
fn note(what: &str) {
    let _ = writeln!(std::io::stderr(), "under containerd: {what}");
}
