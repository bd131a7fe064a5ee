//! `sluice policy check`: what a plugin is, and whether the service would load it.

use std::process::ExitCode;

use policy::{Examined, Limits};
use proto::LoadedPolicy;
use serde::Serialize;

use super::super::Context;
use super::{Plugin, blocking, load};
use crate::render;

/// `--json`. Sizes are in bytes, times in microseconds.
#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    loaded: LoadedPolicy,
    imports: Vec<String>,
    exports: Vec<String>,
    size: u64,
    /// What one call took, about an ordinary image.
    call: Call,
    limits: Bounds,
}

#[derive(Debug, Serialize)]
struct Call {
    memory: u64,
    /// Of a processor.
    time: u64,
}

/// What the service would let the plugin be and take: `policy.limits`.
#[derive(Debug, Serialize)]
struct Bounds {
    size: u64,
    memory: u64,
    /// Of a processor.
    time: u64,
}

pub(super) async fn run(context: &Context, plugin: &Plugin) -> anyhow::Result<ExitCode> {
    let (trial, loaded) = load(context, plugin).await?;
    let examined = blocking(move || trial.examine()).await?;
    let checked = checked(loaded, examined, &context.settings.policy.limits);
    match context.global.json {
        true => render::json(&checked)?,
        false => render::line(described(&checked).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn checked(loaded: LoadedPolicy, examined: Examined, limits: &Limits) -> Checked {
    let Examined { imports, exports, size, call } = examined;
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let call = Call { memory: u64::try_from(call.memory).unwrap_or(u64::MAX), time: micros(call.processor) };
    let limits = Bounds {
        size: limits.plugin_size.as_u64(),
        memory: limits.memory.as_u64(),
        time: micros(limits.time),
    };
    Checked { loaded, imports, exports, size, call, limits }
}

fn described(checked: &Checked) -> String {
    let Checked { loaded, imports, exports, size, call, limits } = checked;
    let names = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        names => render::printable(&names.join(", ")),
    };
    let of = |used: u64, limit: u64| format!("{} of at most {}", render::bytes(used), render::bytes(limit));
    let time = format!("{} of at most {} of a processor", milliseconds(call.time), milliseconds(limits.time));
    let lines = [
        ("world", loaded.world.clone()),
        ("version", loaded.version.clone()),
        ("summary", loaded.summary.clone()),
        ("source", loaded.source.clone()),
        ("imports", names(imports)),
        ("exports", names(exports)),
        ("size", of(*size, limits.size)),
        ("memory", format!("{}, for one call", of(call.memory, limits.memory))),
        ("time", format!("{time}, for one call")),
    ];
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<8} {value}\n")).collect();
    if !loaded.settings.is_empty() {
        let rows = loaded.settings.iter().map(|setting| {
            let needed = if setting.required { "required" } else { "" };
            vec![setting.name.clone(), setting.kind.clone(), needed.to_owned(), setting.help.clone()]
        });
        text += &format!("\n{}", render::table(&["setting", "takes", "", ""], &[], rows.collect()));
    }
    text
}

fn milliseconds(micros: u64) -> String {
    format!("{} ms", micros as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use policy::Cost;

    use super::*;

    #[test]
    fn shows_the_plugin_from_outside_and_what_a_call_took_of_its_limits() {
        let loaded = LoadedPolicy { world: "eligibility".to_owned(), ..LoadedPolicy::default() };
        let took = |micros| Duration::from_micros(micros);
        let examined = Examined {
            imports: Vec::new(),
            exports: vec!["sluice:policy/judge@0.1.0".to_owned()],
            size: 35_000,
            call: Cost { instance: took(5), answer: took(90), processor: took(40), memory: 131_072 },
        };
        let checked = checked(loaded, examined, &Limits::default());
        let text = described(&checked);
        for line in [
            "world    eligibility",
            "imports  nothing",
            "exports  sluice:policy/judge@0.1.0",
            "size     35.0 kB of at most 33.6 MB",
            "memory   131.1 kB of at most 67.1 MB, for one call",
            "time     0.04 ms of at most 100 ms of a processor, for one call",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let json = serde_json::to_value(&checked).unwrap();
        assert_eq!((&json["world"], &json["size"]), (&"eligibility".into(), &35_000.into()));
        assert_eq!((&json["call"]["time"], &json["limits"]["time"]), (&40.into(), &100_000.into()));
    }
}
