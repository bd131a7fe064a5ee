//! A configuration as TOML that may be shown: secrets are covered.

use anyhow::Context;
use serde::Serialize;
use toml::Value;

const COVER: &str = "(secret)";
/// A key that has one of these in its name holds a secret …
const SECRET: [&str; 6] = ["password", "secret", "token", "seed", "credential", "key"];
/// … unless it ends in one of these: the place of a secret, or keys that are public, is none.
const PUBLIC: [&str; 4] = ["_file", "trusted_keys", "public_keys", "_key_id"];

/// Renders `configuration` as TOML. Keys and values stand as [`super::load`] reads them.
pub fn show(configuration: &impl Serialize) -> anyhow::Result<String> {
    let mut value = Value::try_from(configuration).context("writing the configuration")?;
    cover("", &mut value);
    toml::to_string_pretty(&value).context("writing the configuration")
}

fn cover(key: &str, value: &mut Value) {
    match value {
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| cover(key, value)),
        Value::Array(values) => values.iter_mut().for_each(|value| cover(key, value)),
        Value::String(text) if is_secret(key) && !text.is_empty() => COVER.clone_into(text),
        Value::String(text) => cover_url(text),
        _ => {}
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    SECRET.iter().any(|part| key.contains(part)) && !PUBLIC.iter().any(|end| key.ends_with(end))
}

/// An address may carry a password before its host, and a signature in its query.
fn cover_url(text: &mut String) {
    let Some(scheme) = text.find("://") else { return };
    if let Some(query) = text.find('?') {
        text.replace_range(query + 1.., COVER);
    }
    let start = scheme + 3;
    let end = text[start..].find('/').map_or(text.len(), |path| start + path);
    if let Some(at) = text[start..end].rfind('@') {
        text.replace_range(start..start + at, COVER);
    }
}
