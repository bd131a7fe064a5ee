//! Sets keys in somebody else's TOML or JSON file, and takes them out again: text in, text and what was changed out.

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::json;
use super::text::{self, Key};

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Toml,
    Json,
}

/// A key and what it is to be; its value is written alike in TOML and in JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub key: Key,
    pub value: String,
}

impl Wanted {
    pub fn new(key: &[&str], value: impl Into<toml::Value>) -> Wanted {
        Wanted { key: Key::new(key), value: value.into().to_string() }
    }
}

/// What was done to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    #[serde(default)]
    pub format: Format,
    pub keys: Vec<Edit>,
    /// Tables that were not there.
    pub tables: Vec<Key>,
}

/// One key: what the file had and what it has now, as the text has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub key: Key,
    pub before: Option<String>,
    pub after: String,
}

impl Format {
    /// Refuses what is not written so, in the parser's own words.
    fn check(self, text: &str) -> anyhow::Result<()> {
        match self {
            Format::Toml => text::parse(text).map(|_| ()),
            Format::Json => json::parse(text).map(|_| ()),
        }
    }

    fn get(self, text: &str, key: &Key) -> anyhow::Result<Option<String>> {
        let found = match self {
            Format::Toml => text::get(text, key),
            Format::Json => json::get(text, key),
        };
        Ok(found?.map(str::to_owned))
    }

    fn set(self, text: &str, key: &Key, value: &str) -> anyhow::Result<(String, Option<Key>)> {
        match self {
            Format::Toml => text::set(text, key, value),
            Format::Json => json::set(text, key, value),
        }
    }

    fn remove(self, text: &str, key: &Key) -> anyhow::Result<String> {
        match self {
            Format::Toml => text::remove(text, key),
            Format::Json => json::remove(text, key),
        }
    }

    fn remove_empty_table(self, text: &str, table: &Key) -> anyhow::Result<String> {
        match self {
            Format::Toml => text::remove_empty_table(text, table),
            Format::Json => json::remove_empty(text, table),
        }
    }

    /// What a text means, read by a parser that knows nothing of how we change it.
    fn read(self, text: &str) -> anyhow::Result<toml::Table> {
        match self {
            Format::Toml => Ok(text.parse()?),
            // A null means nothing here, and TOML has none.
            Format::Json => match comparable(json::parse(text)?) {
                toml::Value::Table(table) => Ok(table),
                _ => bail!("not a JSON object"),
            },
        }
    }

    /// Both as the same value, however they are written.
    fn same(self, one: &str, other: &str) -> bool {
        let value = |text: &str| match self {
            Format::Toml => format!("value = {text}").parse::<toml::Table>().ok(),
            Format::Json => self.read(&format!("{{\"value\": {text}}}")).ok(),
        };
        value(one).is_some_and(|one| Some(one) == value(other))
    }
}

/// A value of JSON for comparison: what TOML has no word for is written out.
fn comparable(value: serde_json::Value) -> toml::Value {
    use serde_json::Value;
    match value {
        Value::Bool(is) => is.into(),
        Value::String(text) => text.into(),
        Value::Array(values) => toml::Value::Array(values.into_iter().map(comparable).collect()),
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, comparable(value)));
            toml::Value::Table(members.collect())
        }
        other @ (Value::Null | Value::Number(_)) => {
            toml::Value::Array(vec!["json".into(), other.to_string().into()])
        }
    }
}

/// The TOML text with all that is wanted in it; what is there already is not touched.
pub fn merge(text: &str, wanted: &[Wanted]) -> anyhow::Result<(String, Edits)> {
    merge_as(Format::Toml, text, wanted)
}

/// [`merge`], for a text in either format.
pub fn merge_as(format: Format, text: &str, wanted: &[Wanted]) -> anyhow::Result<(String, Edits)> {
    let text = if format == Format::Json { json::or_empty(text) } else { text };
    format.check(text)?;
    let (mut new, mut edits) = (text.to_owned(), Edits { format, ..Edits::default() });
    for Wanted { key, value } in wanted {
        let before = format.get(&new, key)?;
        if before.as_deref().is_some_and(|before| format.same(before, value)) {
            continue;
        }
        let (set, table) = format.set(&new, key, value)?;
        new = set;
        edits.keys.push(Edit { key: key.clone(), before, after: value.clone() });
        edits.tables.extend(table);
    }
    check(text, &new, &edits)?;
    Ok((new, edits))
}

/// The text without what `edits` put there: old values are back, tables that are empty again are gone. Keys that
/// somebody changed since stay as they are, and are named.
pub fn take_out(text: &str, edits: &Edits) -> anyhow::Result<(String, Vec<Key>)> {
    let format = edits.format;
    let (mut new, mut changed) = (text.to_owned(), Vec::new());
    for Edit { key, before, after } in edits.keys.iter().rev() {
        let Some(now) = format.get(&new, key)? else { continue };
        new = match before {
            Some(before) if format.same(&now, before) => continue,
            _ if !format.same(&now, after) => {
                changed.push(key.clone());
                continue;
            }
            Some(before) => format.set(&new, key, before)?.0,
            None => format.remove(&new, key)?,
        };
    }
    for table in edits.tables.iter().rev() {
        new = format.remove_empty_table(&new, table)?;
    }
    format.check(&new).context("the file without our keys")?;
    Ok((new, changed))
}

/// The new text means what the old one does with the edits, and nothing else. Seen by another parser and without the
/// text, so that a mistake of ours in the text cannot pass.
fn check(old: &str, new: &str, edits: &Edits) -> anyhow::Result<()> {
    let mut expected = edits.format.read(old)?;
    for edit in &edits.keys {
        let mut value: toml::Table = format!("value = {}", edit.after).parse()?;
        put(&mut expected, edit.key.names(), value.remove("value").context("a value")?)?;
    }
    let found = edits.format.read(new).context("cannot be changed without making it invalid")?;
    ensure!(found == expected, "cannot be changed without changing more than is meant");
    Ok(())
}

fn put(table: &mut toml::Table, names: &[String], value: toml::Value) -> anyhow::Result<()> {
    match names {
        [] => bail!("a key without a name"),
        [name] => {
            table.insert(name.clone(), value);
            Ok(())
        }
        [name, rest @ ..] => {
            let inner = table.entry(name.clone()).or_insert_with(|| toml::Table::new().into());
            put(inner.as_table_mut().context("not a table")?, rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<Wanted> {
        vec![
            Wanted::new(&["proxy_plugins", "sluice", "type"], "snapshot"),
            Wanted::new(&["proxy_plugins", "sluice", "exports", "root"], "/var/lib/sluice"),
            Wanted::new(&["plugins", "a.b", "containerd", "snapshotter"], "sluice"),
            Wanted::new(&["plugins", "a.b", "containerd", "quiet"], false),
        ]
    }

    #[track_caller]
    fn merged(text: &str) -> (String, Edits) {
        let (new, edits) = merge(text, &wanted()).unwrap();
        let again = merge(&new, &wanted()).unwrap();
        assert_eq!(again, (new.clone(), Edits::default()), "the second time changes something");
        assert_eq!(take_out(&new, &edits).unwrap(), (text.to_owned(), vec![]), "not what it was");
        (new, edits)
    }

    #[test]
    fn an_empty_file_gets_all() {
        let (new, _) = merged("");
        let expected = "\
[proxy_plugins.sluice]
type = \"snapshot\"

[proxy_plugins.sluice.exports]
root = \"/var/lib/sluice\"

[plugins.\"a.b\".containerd]
snapshotter = \"sluice\"
quiet = false
";
        assert_eq!(new, expected);
    }

    #[test]
    fn what_is_there_stays_as_it_is_written() {
        let text = "\
# ours
version = 2
[plugins] # all of them
  [plugins.'a.b']
    x = 0x10
    [plugins.'a.b'.containerd]
      # which one
      snapshotter = 'other' # fast
      [plugins.'a.b'.containerd.runtimes.runc]
        y = [
          1, # one
        ]
[proxy_plugins]
  [proxy_plugins.other]
    type = \"snapshot\"
# the end";
        let (new, edits) = merge(text, &wanted()).unwrap();
        assert!(
            new.contains("      # which one\n      snapshotter = \"sluice\" # fast\n      quiet = false\n"),
            "{new}"
        );
        assert!(new.contains("# the end\n\n[proxy_plugins.sluice]\n"), "{new}");
        let before: Vec<_> = edits.keys.iter().map(|edit| edit.before.as_deref()).collect();
        assert_eq!(before, [None, None, Some("'other'"), None]);
        // But for the line end that the last line lacked.
        assert_eq!(take_out(&new, &edits).unwrap(), (format!("{text}\n"), vec![]));
    }

    #[test]
    fn what_was_edited_since_stays() {
        let (new, edits) = merged("[plugins.\"a.b\".containerd]\nsnapshotter = \"old\"\n");
        let edited = new.replace("quiet = false", "quiet = true").replace("[proxy", "# mine\n[proxy");
        let edited = format!("{edited}more = 'mine' # of exports\n[debug]\nlevel = 'info'\n");
        let (out, changed) = take_out(&edited, &edits).unwrap();
        assert_eq!(changed, [Key::new(&["plugins", "a.b", "containerd", "quiet"])]);
        let expected = "\
[plugins.\"a.b\".containerd]
snapshotter = \"old\"
quiet = true

# mine

# mine
[proxy_plugins.sluice.exports]
more = 'mine' # of exports
[debug]
level = 'info'
";
        assert_eq!(out, expected);
        assert_eq!(take_out(&out, &edits).unwrap(), (expected.to_owned(), changed), "the second time");
    }

    #[test]
    fn odd_files_are_merged_or_refused_but_never_broken() {
        for text in [
            "proxy_plugins = {}\n",
            "proxy_plugins.other.type = 'snapshot'\n",
            "proxy_plugins = { other = { type = 'snapshot' }, third.type = 'content' }\n",
            "plugins.'a.b'.containerd.x = 1\n[z]\n",
            "plugins.'a.b' = { containerd = { x = 1 } }\n",
            "[plugins]\n'a.b'.containerd = { }\n",
            "[plugins.\"a.b\".containerd.runtimes]\n[plugins.\"a.b\"]\nx = 1\n",
            "[plugins.\"\\u0061.b\".containerd]\r\nx = '''\r\n[plugins.\"a.b\".containerd]\r\n'''\r\n",
        ] {
            let (new, _) = merged(text);
            let table: toml::Table = new.parse().unwrap();
            assert_eq!(
                table["plugins"]["a.b"]["containerd"]["snapshotter"].as_str(),
                Some("sluice"),
                "{new}"
            );
        }
        for (text, reason) in [
            ("a = 1\na = 2\n", "line 2"),
            ("plugins = 1\n", "plugins is not a table"),
            ("[[plugins.'a.b']]\n", "is not a table"),
            ("[proxy_plugins.sluice.type]\n", "is a table there"),
            ("{{ if .Thing }}\n", "not valid TOML"),
        ] {
            let error = format!("{:#}", merge(text, &wanted()).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn json_gets_its_keys_and_loses_them_again() {
        let wanted = [
            Wanted::new(&["features", "containerd-snapshotter"], true),
            Wanted::new(&["storage-driver"], "sluice"),
        ];
        for text in [
            "{}",
            "{\n  \"data-root\": \"/data\",\n  \"max\": 1.5e3,\n  \"none\": null\n}\n",
            "{\"features\": {\"buildkit\": true}, \"storage-driver\": \"overlay2\"}",
            "{\"features\":{\"containerd-snapshotter\":false}}",
        ] {
            let (new, edits) = merge_as(Format::Json, text, &wanted).unwrap();
            assert_eq!(
                merge_as(Format::Json, &new, &wanted).unwrap().0,
                new,
                "the second time changes something"
            );
            assert_eq!(take_out(&new, &edits).unwrap(), (text.to_owned(), vec![]));
        }
        let (new, edits) = merge_as(Format::Json, "", &wanted).unwrap();
        let edited = new.replace("\"sluice\"", "\"overlay2\"").replace("}\n}", "},\n    \"debug\": true\n}");
        let (out, changed) = take_out(&edited, &edits).unwrap();
        assert_eq!(changed, [Key::new(&["storage-driver"])], "{edited}");
        assert!(out.contains("\"overlay2\"") && !out.contains("features"), "{out}");
        let read: Edits = serde_json::from_str(r#"{"keys": [], "tables": []}"#).unwrap();
        assert_eq!(read.format, Format::Toml, "of a record that an earlier version wrote");
    }
}
