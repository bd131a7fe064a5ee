//! Sets keys in somebody else's TOML file, and takes them out again: text in, text and what was changed out.

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::text::{self, Key};

/// A key and what it is to be, as TOML.
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

/// The text with all that is wanted in it; what is there already is not touched.
pub fn merge(text: &str, wanted: &[Wanted]) -> anyhow::Result<(String, Edits)> {
    text::parse(text)?;
    let (mut new, mut edits) = (text.to_owned(), Edits::default());
    for Wanted { key, value } in wanted {
        let before = text::get(&new, key)?.map(str::to_owned);
        if before.as_deref().is_some_and(|before| same(before, value)) {
            continue;
        }
        let (set, table) = text::set(&new, key, value)?;
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
    let (mut new, mut changed) = (text.to_owned(), Vec::new());
    for Edit { key, before, after } in edits.keys.iter().rev() {
        let Some(now) = text::get(&new, key)? else { continue };
        new = match before {
            Some(before) if same(now, before) => continue,
            _ if !same(now, after) => {
                changed.push(key.clone());
                continue;
            }
            Some(before) => text::set(&new, key, before)?.0,
            None => text::remove(&new, key)?,
        };
    }
    for table in edits.tables.iter().rev() {
        new = text::remove_empty_table(&new, table)?;
    }
    text::parse(&new).context("the file without our keys")?;
    Ok((new, changed))
}

/// Both as the same value, however they are written.
fn same(one: &str, other: &str) -> bool {
    let value = |text: &str| format!("value = {text}").parse::<toml::Table>().ok();
    value(one).is_some_and(|one| Some(one) == value(other))
}

/// The new text means what the old one does with the edits, and nothing else. Seen by another parser and without the
/// text, so that a mistake of ours in the text cannot pass.
fn check(old: &str, new: &str, edits: &Edits) -> anyhow::Result<()> {
    let read = |text: &str| -> anyhow::Result<toml::Table> { Ok(text.parse()?) };
    let mut expected = read(old)?;
    for edit in &edits.keys {
        let mut value = read(&format!("value = {}", edit.after))?;
        put(&mut expected, edit.key.names(), value.remove("value").context("a value")?)?;
    }
    let found = read(new).context("cannot be changed without making it invalid")?;
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
}
