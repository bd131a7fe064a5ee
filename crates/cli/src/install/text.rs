//! Changes single keys in the text of a TOML file and leaves every other byte as it stands.
//!
//! The parser says only where things are; the text itself is cut and spliced, so that comments, order, spaces and line
//! ends need no care of ours. A table that is not there yet is written at the end of the file.

use std::fmt;
use std::ops::Range;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use toml_edit::{Document, Item, TableLike, Value};

/// Where a key is: the names of its tables, and its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Vec<String>);

impl Key {
    pub fn new(names: &[&str]) -> Key {
        Key(names.iter().map(|name| (*name).to_owned()).collect())
    }

    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The table that the key is in.
    fn table(&self) -> Key {
        Key(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    fn from(&self, depth: usize) -> Key {
        Key(self.0[depth.min(self.0.len())..].to_vec())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        for (number, name) in self.0.iter().enumerate() {
            if number > 0 {
                formatter.write_str(".")?;
            }
            match !name.is_empty() && name.chars().all(bare) {
                true => formatter.write_str(name)?,
                false => write!(formatter, "{}", toml::Value::String(name.clone()))?,
            }
        }
        Ok(())
    }
}

/// Where in the text a key is, or would be.
enum Spot {
    /// Here is its value.
    Value(Range<usize>),
    /// After the line that ends here, in a table that is there; what is left of the key under that table's header.
    Line { after: usize, name: Key, deeper: bool },
    /// In the inline table that stands here.
    Inline { table: Range<usize>, name: Key, empty: bool },
    /// Its table has no header yet.
    NoTable,
}

/// The innermost table in braces on the way to a key.
struct Inline {
    span: Range<usize>,
    depth: usize,
    empty: bool,
}

/// What the key is set to, as the text has it.
pub fn get<'a>(text: &'a str, key: &Key) -> anyhow::Result<Option<&'a str>> {
    Ok(match find(text, key)? {
        Spot::Value(span) => text.get(span),
        _ => None,
    })
}

/// Sets the key to a value given as TOML; the new text, and the table that had to be made for it.
pub fn set(text: &str, key: &Key, value: &str) -> anyhow::Result<(String, Option<Key>)> {
    let end = line_end_of(text);
    Ok(match find(text, key)? {
        Spot::Value(span) => (spliced(text, span, value), None),
        Spot::Line { after, name, deeper } => {
            let (start, next) = (line_start(text, after), next_line(text, after));
            let indent: String = text[start..].chars().take_while(|c| matches!(c, ' ' | '\t')).collect();
            let more = if deeper && !indent.is_empty() { "  " } else { "" };
            let before = if text[..next].ends_with('\n') { "" } else { end };
            (spliced(text, next..next, &format!("{before}{indent}{more}{name} = {value}{end}")), None)
        }
        Spot::Inline { table, name, empty } => {
            let at = table.start + 1;
            let comma = if empty { "" } else { "," };
            (spliced(text, at..at, &format!(" {name} = {value}{comma}")), None)
        }
        Spot::NoTable => {
            let table = key.table();
            let before = match text {
                "" => "",
                _ if text.ends_with('\n') => end,
                _ => &format!("{end}{end}"),
            };
            let name = key.from(key.names().len() - 1);
            (format!("{text}{before}[{table}]{end}{name} = {value}{end}"), Some(table))
        }
    })
}

/// Takes the key out, with its line.
pub fn remove(text: &str, key: &Key) -> anyhow::Result<String> {
    let Spot::Value(value) = find(text, key)? else { return Ok(text.to_owned()) };
    let document = parse(text)?;
    let (mut table, mut inline): (&dyn TableLike, _) = (document.as_table(), false);
    for name in key.table().names() {
        let item = table.get(name).context("a table that was just there")?;
        inline |= item.is_value();
        table = item.as_table_like().context("a table that was just there")?;
    }
    Ok(match inline {
        false => spliced(text, line_start(text, value.start)..next_line(text, value.end), ""),
        true => spliced(text, member(text, value), ""),
    })
}

/// Takes the table's header out, and the empty line above it, if nothing is left under it.
pub fn remove_empty_table(text: &str, table: &Key) -> anyhow::Result<String> {
    let document = parse(text)?;
    let mut item = document.as_item();
    for name in table.names() {
        match item.as_table_like().and_then(|table| table.get(name)) {
            Some(inner) => item = inner,
            None => return Ok(text.to_owned()),
        }
    }
    let (Some(found), Some(span)) = (item.as_table(), item.span()) else { return Ok(text.to_owned()) };
    if last_value(found).is_some() || found.is_implicit() {
        return Ok(text.to_owned());
    }
    let mut start = line_start(text, span.start);
    let above = line_start(text, start.saturating_sub(1));
    if text[above..start].trim().is_empty() {
        start = above;
    }
    Ok(spliced(text, start..next_line(text, span.end), ""))
}

/// The text as TOML, with the parser's own words about what is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Document<&str>> {
    Document::parse(text).map_err(|error| anyhow::anyhow!("not valid TOML: {}", error.to_string().trim_end()))
}

fn find(text: &str, key: &Key) -> anyhow::Result<Spot> {
    let document = parse(text)?;
    let mut table: &dyn TableLike = document.as_table();
    // The innermost table with a header; below it dotted keys may make tables that have none.
    let (mut header_depth, mut has_header, mut header_end) = (0, true, 0);
    let mut inline = None;
    let (leaf, tables) = key.names().split_last().context("a key without a name")?;
    for (depth, name) in tables.iter().enumerate() {
        let Some(item) = table.get(name) else {
            return Ok(match inline {
                None if !table.is_dotted() => Spot::NoTable,
                _ => place(table, inline, key, header_depth, header_end),
            });
        };
        match item {
            Item::Table(inner) if !inner.is_dotted() => {
                header_depth = depth + 1;
                has_header = !inner.is_implicit();
                header_end = item.span().map_or(0, |span| span.end);
            }
            Item::Value(Value::InlineTable(inner)) if !inner.is_dotted() => {
                let span = item.span().context("a table without a place")?;
                inline = Some(Inline { span, depth: depth + 1, empty: inner.is_empty() });
            }
            Item::Table(_) | Item::Value(Value::InlineTable(_)) => {}
            _ => bail!("{} is not a table there", Key(key.names()[..=depth].to_vec())),
        }
        table = item.as_table_like().context("a table that is none")?;
    }
    Ok(match table.get(leaf) {
        Some(Item::Value(value)) if !value.is_inline_table() => {
            Spot::Value(value.span().context("a value without a place")?)
        }
        Some(_) => bail!("{key} is a table there, not a value"),
        None if inline.is_none() && !table.is_dotted() && !has_header => Spot::NoTable,
        None => place(table, inline, key, header_depth, header_end),
    })
}

/// Where a key goes that is not in `table`, which is.
fn place(
    table: &dyn TableLike,
    inline: Option<Inline>,
    key: &Key,
    header_depth: usize,
    header_end: usize,
) -> Spot {
    if let Some(Inline { span, depth, empty }) = inline {
        return Spot::Inline { table: span, name: key.from(depth), empty };
    }
    let last = last_value(table);
    Spot::Line { after: last.unwrap_or(header_end), name: key.from(header_depth), deeper: last.is_none() }
}

/// Where the last value ends that stands under a table's own header.
fn last_value(table: &dyn TableLike) -> Option<usize> {
    let ends = table.iter().filter_map(|(_, item)| match item {
        Item::Value(value) => value.span().map(|span| span.end),
        Item::Table(inner) if inner.is_dotted() => last_value(inner),
        _ => None,
    });
    ends.max()
}

/// A member of an inline table, with one of the commas beside it.
fn member(text: &str, value: Range<usize>) -> Range<usize> {
    let start = text[..value.start].rfind(['{', ',', '\n']).map_or(0, |at| at + 1);
    let after = value.end + text[value.end..].len() - text[value.end..].trim_start().len();
    if text[after..].starts_with(',') {
        return start..after + 1;
    }
    let before = start - usize::from(text[..start].ends_with(','));
    before..value.end
}

fn spliced(text: &str, span: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..span.start], &text[span.end..])
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

fn next_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1)
}

/// The line end that the file uses.
fn line_end_of(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &[&str]) -> Key {
        Key::new(names)
    }

    /// Sets `a.b.c = 1` and takes it out again.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let key = key(&["a", "b", "c"]);
        let (new, made) = set(text, &key, "1").unwrap();
        assert_eq!(new, expected);
        assert_eq!(get(&new, &key).unwrap(), Some("1"));
        let back = remove(&new, &key).unwrap();
        let back = made.map_or(back.clone(), |table| remove_empty_table(&back, &table).unwrap());
        assert_eq!(back, text);
    }

    #[test]
    fn a_key_goes_where_its_table_is() {
        check("", "[a.b]\nc = 1\n");
        check("# only this\n", "# only this\n\n[a.b]\nc = 1\n");
        check("[a.b]\n", "[a.b]\nc = 1\n");
        check("[a.b] # here\nd = 2 # two\n\n# e\n[e]\n", "[a.b] # here\nd = 2 # two\nc = 1\n\n# e\n[e]\n");
        check("  [a.b]\n    [a.b.d]\n", "  [a.b]\n    c = 1\n    [a.b.d]\n");
        check("[a.b]\n\td = [\n\t1,\n\t]\n", "[a.b]\n\td = [\n\t1,\n\t]\n\tc = 1\n");
        // No header of its own yet: at the end, after the comments that are there.
        check("[a.b.d]\ne = 1\n# last\n", "[a.b.d]\ne = 1\n# last\n\n[a.b]\nc = 1\n");
        check("[a]\nd = 2\n", "[a]\nd = 2\n\n[a.b]\nc = 1\n");
    }

    #[test]
    fn dotted_and_inline_tables_stay_what_they_are() {
        check("a.b.d = 2\n[z]\n", "a.b.d = 2\na.b.c = 1\n[z]\n");
        check("[a]\nb.d = 2\n", "[a]\nb.d = 2\nb.c = 1\n");
        check("a.d = 2\n", "a.d = 2\na.b.c = 1\n");
        check("a = { b = { d = 2 } }\n", "a = { b = { c = 1, d = 2 } }\n");
        check("a = { b.d = 2 }\n", "a = { b.c = 1, b.d = 2 }\n");
        check("[a]\nb = {}\n", "[a]\nb = { c = 1}\n");
        check("a = {}\n", "a = { b.c = 1}\n");
    }

    #[test]
    fn line_ends_are_those_of_the_file() {
        check("[a.b]\r\nd = 2\r\n", "[a.b]\r\nd = 2\r\nc = 1\r\n");
        check("[z]\r\n", "[z]\r\n\r\n[a.b]\r\nc = 1\r\n");
    }
}
