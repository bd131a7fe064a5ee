//! Changes single keys in the text of a JSON file and leaves every other byte as it stands: what [`text`](super::text) is for TOML.
//!
//! The text was parsed before anything is looked for in it, so that this only has to find where members begin and end.

use std::ops::Range;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::text::Key;

/// What a file that is empty stands for.
const EMPTY: &str = "{\n}\n";

/// One `"name": value` of an object.
struct Member {
    name: String,
    /// Where the name begins.
    start: usize,
    value: Range<usize>,
}

struct Object {
    /// Where its braces are.
    open: usize,
    close: usize,
    members: Vec<Member>,
}

impl Object {
    /// The one that counts: readers take the last of those that have the same name.
    fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().rfind(|member| member.name == name)
    }
}

/// The text as JSON, which must be an object, with the parser's own words about what is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Value> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| anyhow::anyhow!("not valid JSON: {error}"))?;
    ensure!(value.is_object(), "not a JSON object");
    Ok(value)
}

/// The text, or what it stands for where it is empty.
pub fn or_empty(text: &str) -> &str {
    if text.trim().is_empty() { EMPTY } else { text }
}

/// What the key is set to, as the text has it.
pub fn get<'a>(text: &'a str, key: &Key) -> anyhow::Result<Option<&'a str>> {
    Ok(find(text, key.names())?.and_then(|(object, at)| text.get(object.members[at].value.clone())))
}

/// Sets the key to a value given as JSON; the new text, and the object that had to be made for it.
pub fn set(text: &str, key: &Key, value: &str) -> anyhow::Result<(String, Option<Key>)> {
    parse(text)?;
    let names = key.names();
    let mut object = object(text, 0)?;
    for (depth, name) in names.iter().enumerate() {
        let leaf = depth + 1 == names.len();
        match object.member(name) {
            Some(member) if leaf => return Ok((spliced(text, member.value.clone(), value), None)),
            Some(member) => {
                let whole = || Key::new(&names[..=depth].iter().map(String::as_str).collect::<Vec<_>>());
                ensure!(text[member.value.clone()].starts_with('{'), "{} is not an object there", whole());
                object = self::object(text, member.value.start)?;
            }
            None => {
                let value = names[depth + 1..].iter().rev().try_fold(value.to_owned(), |inner, name| {
                    anyhow::Ok(format!("{{{}: {inner}}}", serde_json::to_string(name)?))
                })?;
                let member = format!("{}: {value}", serde_json::to_string(name)?);
                let made = names[..names.len() - 1].iter().map(String::as_str).collect::<Vec<_>>();
                return Ok((inserted(text, &object, &member), (!leaf).then(|| Key::new(&made))));
            }
        }
    }
    bail!("a key without a name")
}

/// Takes the key out, with the comma that it needed.
pub fn remove(text: &str, key: &Key) -> anyhow::Result<String> {
    let Some((object, at)) = find(text, key.names())? else { return Ok(text.to_owned()) };
    let member = &object.members[at];
    let span = match (at.checked_sub(1).map(|before| &object.members[before]), object.members.get(at + 1)) {
        (Some(before), _) => before.value.end..member.value.end,
        (None, Some(next)) => member.start..next.start,
        (None, None) => object.open + 1..object.close,
    };
    Ok(spliced(text, span, ""))
}

/// Takes the object out if nothing is left in it.
pub fn remove_empty(text: &str, key: &Key) -> anyhow::Result<String> {
    let empty = |found: &str| found.starts_with('{') && found[1..found.len() - 1].trim().is_empty();
    match get(text, key)? {
        Some(found) if empty(found) => remove(text, key),
        _ => Ok(text.to_owned()),
    }
}

/// The object that the key is in, and which member it is.
fn find(text: &str, names: &[String]) -> anyhow::Result<Option<(Object, usize)>> {
    parse(text)?;
    let (leaf, tables) = names.split_last().context("a key without a name")?;
    let mut object = object(text, 0)?;
    for name in tables {
        match object.member(name).map(|member| member.value.clone()) {
            Some(value) if text[value.clone()].starts_with('{') => object = self::object(text, value.start)?,
            _ => return Ok(None),
        }
    }
    let at = object.members.iter().rposition(|member| member.name == *leaf);
    Ok(at.map(|at| (object, at)))
}

/// A new member behind the others, as they are indented.
fn inserted(text: &str, object: &Object, member: &str) -> String {
    let Some(last) = object.members.last() else {
        let inner = object.open + 1..object.close;
        let new =
            if text[inner.clone()].contains('\n') { format!("\n    {member}\n") } else { member.to_owned() };
        return spliced(text, inner, &new);
    };
    let before = text[..last.start].trim_end_matches([' ', '\t', '\r', '\n']).len();
    let space = if before == last.start { " " } else { &text[before..last.start] };
    let end = last.value.end;
    spliced(text, end..end, &format!(",{space}{member}"))
}

/// The object that begins at or after `from`, of a text that was parsed.
fn object(text: &str, from: usize) -> anyhow::Result<Object> {
    let open = skip_space(text, from);
    ensure!(text[open..].starts_with('{'), "not a JSON object");
    let mut members = Vec::new();
    let mut at = skip_space(text, open + 1);
    while !text[at..].starts_with('}') {
        let name = at..end_of(text, at);
        let colon = skip_space(text, name.end);
        let start = skip_space(text, colon + 1);
        let value = start..end_of(text, start);
        at = skip_space(text, value.end);
        if text[at..].starts_with(',') {
            at = skip_space(text, at + 1);
        }
        let name_text = text.get(name.clone()).context("a name without an end")?;
        members.push(Member { name: serde_json::from_str(name_text)?, start: name.start, value });
        ensure!(at < text.len(), "an object without an end");
    }
    Ok(Object { open, close: at, members })
}

fn skip_space(text: &str, from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len()
}

/// Where the value ends that begins at `start`.
fn end_of(text: &str, start: usize) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate().skip(start) {
        let after = offset + 1;
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if depth == 0 {
                        return after;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            // Behind a number or a word.
            b'}' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return offset,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return after;
                }
            }
            _ => {}
        }
    }
    text.len()
}

fn spliced(text: &str, span: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..span.start], &text[span.end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets `a.b = true` and takes it out again.
    #[track_caller]
    fn check(text: &str, expected: &str, back: &str) {
        let key = Key::new(&["a", "b"]);
        let (new, made) = set(text, &key, "true").unwrap();
        assert_eq!(new, expected);
        assert_eq!(get(&new, &key).unwrap(), Some("true"));
        parse(&new).unwrap();
        let without = remove(&new, &key).unwrap();
        let without = made.map_or(without.clone(), |made| remove_empty(&without, &made).unwrap());
        assert_eq!(without, back);
    }

    #[test]
    fn a_key_goes_behind_the_others_as_they_are_written() {
        for (text, expected) in [
            ("{\"x\":1}", "{\"x\":1, \"a\": {\"b\": true}}"),
            (
                "{\n\t\"x\": [1, {\"a\": \"}\"}]\n}\n",
                "{\n\t\"x\": [1, {\"a\": \"}\"}],\n\t\"a\": {\"b\": true}\n}\n",
            ),
            ("{\r\n  \"x\": \"\\\"{\"\r\n}", "{\r\n  \"x\": \"\\\"{\",\r\n  \"a\": {\"b\": true}\r\n}"),
            (
                "{ \"a\" : { \"c\" : 1.5e3 } , \"z\" : null }",
                "{ \"a\" : { \"c\" : 1.5e3, \"b\": true } , \"z\" : null }",
            ),
            ("{\"a\":{}}", "{\"a\":{\"b\": true}}"),
            ("{}", "{\"a\": {\"b\": true}}"),
        ] {
            check(text, expected, text);
        }
        check("{\n}\n", "{\n    \"a\": {\"b\": true}\n}\n", "{}\n");
        check("{\"a\":{\"b\":false}}", "{\"a\":{\"b\":true}}", "{\"a\":{}}");
        // Of two with one name the last one counts.
        check(
            "{\"a\":1,\"a\":{\"c\":2}}",
            "{\"a\":1,\"a\":{\"c\":2, \"b\": true}}",
            "{\"a\":1,\"a\":{\"c\":2}}",
        );
    }

    #[test]
    fn the_first_of_several_goes_alone() {
        let text = "{\n  \"a\": 1,\n  \"b\": 2\n}";
        assert_eq!(remove(text, &Key::new(&["a"])).unwrap(), "{\n  \"b\": 2\n}");
        assert_eq!(remove(text, &Key::new(&["b"])).unwrap(), "{\n  \"a\": 1\n}");
        assert_eq!(remove(text, &Key::new(&["c"])).unwrap(), text);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let key = Key::new(&["a", "b"]);
        for (text, reason) in [
            ("", "not valid JSON"),
            ("[]", "not a JSON object"),
            ("{\"a\": 1,}", "line 1"),
            ("{\"a\": [1]}", "a is not an object"),
            ("// comment\n{}", "not valid JSON"),
        ] {
            let error = format!("{:#}", set(text, &key, "true").unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(or_empty(" \n"), EMPTY);
    }
}
