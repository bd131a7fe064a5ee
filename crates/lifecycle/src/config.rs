//! Configuration in layers: defaults, files, `SLUICE__…` variables, flags; the later wins.
//!
//! A variable's name is the key's path in upper case with two underscores between its parts:
//! `SLUICE__CACHE__MEMORY=1GiB` is `cache.memory`. A value that begins like a TOML list, table or
//! string is read as TOML; any other is taken as it stands.

mod show;

use std::path::PathBuf;

use anyhow::Context;
use config::{File, FileFormat, Map, Value, ValueKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use show::show;

const VARIABLE_PREFIX: &str = "SLUICE__";

/// Reads a configuration; an error names the key, and where its value came from.
pub fn load<C>(files: &[PathBuf], overrides: Vec<(String, String)>) -> anyhow::Result<C>
where
    C: Default + Serialize + DeserializeOwned,
{
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    load_from(files, variables, overrides)
}

/// Like [`load`], with the variables given.
pub fn load_from<C>(
    files: &[PathBuf],
    variables: Vec<(String, String)>,
    overrides: Vec<(String, String)>,
) -> anyhow::Result<C>
where
    C: Default + Serialize + DeserializeOwned,
{
    let defaults = toml::to_string(&C::default()).context("writing the default configuration")?;
    let mut builder = config::Config::builder().add_source(File::from_str(&defaults, FileFormat::Toml));
    for file in files {
        // Checked here, as the reader's own complaint does not name the file.
        std::fs::metadata(file).with_context(|| format!("reading configuration {}", file.display()))?;
        builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
    }
    let variables = variables.into_iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(VARIABLE_PREFIX)?.to_lowercase().replace("__", ".");
        Some((key, value, format!("the variable {name}")))
    });
    let flags = overrides.into_iter().map(|(key, value)| {
        let origin = format!("the flag for {key}");
        (key, value, origin)
    });
    for (key, value, origin) in variables.chain(flags) {
        // A source of its own, as overrides within one have no order.
        let single = parse(&value, &origin)
            .and_then(|value| Ok(config::Config::builder().set_override(&key, value)?.build()?))
            .with_context(|| format!("reading {origin}"))?;
        builder = builder.add_source(single);
    }
    builder.build().and_then(config::Config::try_deserialize).context("reading the configuration")
}

fn parse(text: &str, origin: &str) -> anyhow::Result<Value> {
    let origin = origin.to_owned();
    if !text.starts_with(['[', '{', '"', '\'']) {
        return Ok(Value::new(Some(&origin), ValueKind::String(text.to_owned())));
    }
    let line = format!("value = {text}");
    let mut table: toml::Table = line.parse().context("not valid TOML")?;
    let value = table.remove("value").context("not one TOML value")?;
    Ok(convert(value, &origin))
}

fn convert(value: toml::Value, origin: &String) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(truth),
        toml::Value::Datetime(time) => ValueKind::String(time.to_string()),
        toml::Value::Array(values) => {
            ValueKind::Array(values.into_iter().map(|value| convert(value, origin)).collect())
        }
        toml::Value::Table(values) => {
            let values = values.into_iter().map(|(key, value)| (key, convert(value, origin)));
            ValueKind::Table(values.collect::<Map<_, _>>())
        }
    };
    Value::new(Some(origin), kind)
}

#[cfg(test)]
mod tests;
