//! `sluice policy bench`: what a plugin costs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use policy::{Cost, Trial};
use serde::Serialize;

use super::super::Context;
use super::{Plugin, read_facts};
use crate::render;

/// Measure a plugin as the service runs it: compiling, an instance, an answer, memory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy bench mine.wasm
  sluice policy bench mine.wasm --facts facts.json --settings mine.toml --calls 20000 --json

A service answers for a plugin in the time of an answer, which holds that of an instance: each call has one of its own.")]
pub struct BenchArgs {
    #[command(flatten)]
    plugin: Plugin,
    /// What it is asked about, as `sluice policy facts` prints it; without, an ordinary image of two layers
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: u32,
}

/// Times are in microseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Measured {
    calls: u32,
    compile: u64,
    instance: Quantiles,
    answer: Quantiles,
    /// The most that a call used, in bytes.
    memory: usize,
}

#[derive(Debug, PartialEq, Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

pub(super) async fn run(context: &Context, args: BenchArgs) -> anyhow::Result<ExitCode> {
    let facts = args.facts.as_deref().map(read_facts).transpose()?;
    let (plugin, calls) = (args.plugin.local()?.to_owned(), args.calls);
    let (settings, limits) = (args.plugin.settings()?, context.settings.policy.limits.clone());
    let measure = move || {
        let trial = Trial::of_plugin(&plugin, settings, limits)?;
        anyhow::Ok(measured(&trial.measure(facts, calls)?, calls, trial.loaded_in()))
    };
    let measured = tokio::task::spawn_blocking(measure).await.context("measuring")??;
    match context.global.json {
        true => render::json(&measured)?,
        false => render::line(described(&measured).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measured(costs: &[Cost], calls: u32, compile: Duration) -> Measured {
    let of = |time: fn(&Cost) -> Duration| quantiles(costs.iter().map(time).collect());
    Measured {
        calls,
        compile: u64::try_from(compile.as_micros()).unwrap_or(u64::MAX),
        instance: of(|cost| cost.instance),
        answer: of(|cost| cost.answer),
        memory: costs.iter().map(|cost| cost.memory).max().unwrap_or(0),
    }
}

fn quantiles(mut times: Vec<Duration>) -> Quantiles {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = times.len().saturating_sub(1) * percent / 100;
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Quantiles { p50: at(50), p99: at(99) }
}

fn described(measured: &Measured) -> String {
    let Measured { calls, compile, instance, answer, memory } = measured;
    let row = |name: &str, times: &Quantiles| {
        vec![name.to_owned(), format!("{:.0} µs", times.p50), format!("{:.0} µs", times.p99)]
    };
    let rows = vec![row("instance", instance), row("answer", answer)];
    let table = render::table(&["of each call", "p50", "p99"], &[1, 2], rows);
    let memory = render::bytes(u64::try_from(*memory).unwrap_or(u64::MAX));
    format!("{table}\n{calls} calls; compiled in {:.1} ms; at most {memory} of memory", *compile as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_calls() {
        let cost = |micros| Cost {
            instance: Duration::from_micros(1),
            answer: Duration::from_micros(micros),
            processor: Duration::from_micros(micros),
            memory: micros as usize,
        };
        let costs: Vec<Cost> = (1..=101).rev().map(cost).collect();
        let measured = measured(&costs, 101, Duration::from_millis(2));
        assert_eq!(measured.answer, Quantiles { p50: 51.0, p99: 100.0 });
        assert_eq!((measured.memory, measured.compile), (101, 2_000));
        let text = described(&measured);
        assert!(text.contains("51 µs") && text.contains("compiled in 2.0 ms"), "{text}");
    }
}
