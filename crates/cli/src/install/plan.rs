//! What is to be done to one file, from what it is, what it should be, and what we did to it before. Pure.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::keys::{self, Edits, Format, Wanted};
use super::text::Key;

/// What we did to a file: enough to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the file was; none: there was none.
    pub original: Option<String>,
    /// SHA-256 of what we wrote.
    pub written: String,
    /// The keys of it that are ours; none: the whole file is.
    pub edits: Option<Edits>,
    /// Whether its folder was made for it.
    pub folder: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Created,
    Changed,
    Restored,
    Removed,
    /// As it should be.
    Unchanged,
    /// Not as it should be, and not ours to change.
    Left,
}

/// The way of one file from what it is to what it will be.
#[derive(Clone, Debug)]
pub struct Step {
    pub action: Action,
    /// What the file is to hold; none: it is to go. Only where something is to be written.
    pub write: Option<Option<String>>,
    /// What is to be known of it afterwards.
    pub entry: Option<Entry>,
    pub notes: Vec<String>,
}

impl Step {
    fn still(action: Action, entry: Option<&Entry>, notes: Vec<String>) -> Step {
        Step { action, write: None, entry: entry.cloned(), notes }
    }
}

/// Puts keys into a file, or into a new one that begins with `fresh`.
pub fn merge(
    now: Option<&str>,
    fresh: &str,
    wanted: &[Wanted],
    entry: Option<&Entry>,
) -> anyhow::Result<Step> {
    merge_as(Format::Toml, now, fresh, wanted, entry)
}

/// [`merge`], for a file in either format.
pub fn merge_as(
    format: Format,
    now: Option<&str>,
    fresh: &str,
    wanted: &[Wanted],
    entry: Option<&Entry>,
) -> anyhow::Result<Step> {
    let (merged, missing) = keys::merge_as(format, now.unwrap_or(fresh), wanted)?;
    if now.is_some() && missing.keys.is_empty() {
        return Ok(Step::still(Action::Unchanged, entry, Vec::new()));
    }
    // What the file would be without us, which is not what it is when we were here before.
    let original = match (now, entry) {
        (Some(now), Some(entry)) => without(now, entry)?.0,
        (now, _) => now.map(str::to_owned),
    };
    let (of_original, edits) = keys::merge_as(format, original.as_deref().unwrap_or(fresh), wanted)?;
    let untouched = now.is_none() || now == original.as_deref() || is_written(now, entry);
    let text = if untouched { of_original } else { merged };
    let folder = entry.is_some_and(|entry| entry.folder);
    let entry = Entry { original, written: digest(&text), edits: Some(edits), folder };
    let action = if now.is_some() { Action::Changed } else { Action::Created };
    Ok(Step { action, write: Some(Some(text)), entry: Some(entry), notes: Vec::new() })
}

/// Makes a file that is ours as a whole.
pub fn own(now: Option<&str>, text: &str, entry: Option<&Entry>) -> Step {
    let action = match now {
        None => Action::Created,
        Some(now) if now == text => return Step::still(Action::Unchanged, entry, Vec::new()),
        Some(_) if is_written(now, entry) => Action::Changed,
        Some(_) => {
            let note = "it is not as `sluice install` wrote it: move it away and run this again to have it written anew";
            return Step::still(Action::Left, entry, vec![note.to_owned()]);
        }
    };
    let folder = entry.is_some_and(|entry| entry.folder);
    let entry = Entry { original: None, written: digest(text), edits: None, folder };
    Step { action, write: Some(Some(text.to_owned())), entry: Some(entry), notes: Vec::new() }
}

/// Undoes what was done to a file.
pub fn undo(now: Option<&str>, entry: &Entry) -> anyhow::Result<Step> {
    let still = |action, note: &str| {
        let notes = Some(note).filter(|note| !note.is_empty()).map(str::to_owned);
        Ok(Step::still(action, None, notes.into_iter().collect()))
    };
    if now == entry.original.as_deref() {
        return still(Action::Unchanged, "");
    }
    let Some(now) = now else { return still(Action::Left, "somebody removed it") };
    if entry.edits.is_none() && !is_written(Some(now), Some(entry)) {
        return still(Action::Left, "somebody changed it since: remove it when nobody needs it");
    }
    let (text, changed) = without(now, entry)?;
    let mut notes: Vec<String> =
        changed.iter().map(|key| format!("{key} stays: somebody changed it since")).collect();
    let action = match &text {
        None => Action::Removed,
        Some(text) if Some(text) == entry.original.as_ref() => Action::Restored,
        Some(text) if text == now => Action::Left,
        Some(_) => Action::Changed,
    };
    if matches!(action, Action::Changed | Action::Left) {
        notes.push("somebody changed the file since: what is not of sluice stays".to_owned());
    }
    let write = (action != Action::Left).then_some(text);
    Ok(Step { action, write, entry: None, notes })
}

/// A file as it would be had we never been there, and which of our keys somebody else has set since.
fn without(now: &str, entry: &Entry) -> anyhow::Result<(Option<String>, Vec<Key>)> {
    if Some(now) == entry.original.as_deref() || is_written(Some(now), Some(entry)) {
        return Ok((entry.original.clone(), Vec::new()));
    }
    let edits = entry.edits.as_ref().context("a file that is ours as a whole was changed")?;
    let (text, changed) = keys::take_out(now, edits)?;
    Ok((Some(text), changed))
}

fn is_written<'a>(now: impl Into<Option<&'a str>>, entry: Option<&Entry>) -> bool {
    now.into().zip(entry).is_some_and(|(now, entry)| digest(now) == entry.written)
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(address: &str) -> Vec<Wanted> {
        vec![Wanted::new(&["plugins", "snapshotter"], "sluice"), Wanted::new(&["proxy", "address"], address)]
    }

    fn install(now: Option<&str>, entry: Option<&Entry>) -> (Action, String, Entry) {
        let step = merge(now, "version = 2\n", &wanted("/a"), entry).unwrap();
        (step.action, step.write.unwrap().unwrap(), step.entry.unwrap())
    }

    const THEIRS: &str = "# theirs\n[plugins]\nsnapshotter = 'overlayfs' # fast\nother = 1";

    #[test]
    fn what_nobody_touched_comes_back_byte_for_byte() {
        let (action, text, entry) = install(Some(THEIRS), None);
        assert_eq!(action, Action::Changed);
        let step = undo(Some(&text), &entry).unwrap();
        assert_eq!(
            (step.action, step.write, step.entry),
            (Action::Restored, Some(Some(THEIRS.into())), None)
        );

        let (action, text, entry) = install(None, None);
        assert_eq!(action, Action::Created);
        assert!(text.starts_with("version = 2\n"));
        let step = undo(Some(&text), &entry).unwrap();
        assert_eq!((step.action, step.write), (Action::Removed, Some(None)));
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let (_, text, entry) = install(Some(THEIRS), None);
        let step = merge(Some(&text), "", &wanted("/a"), Some(&entry)).unwrap();
        assert_eq!((step.action, step.write, step.entry), (Action::Unchanged, None, Some(entry)));
        // Somebody had written the same before us: there is nothing to undo.
        let step = merge(Some(&text), "", &wanted("/a"), None).unwrap();
        assert_eq!((step.action, step.entry), (Action::Unchanged, None));
    }

    #[test]
    fn what_was_cut_off_half_way_is_repaired_by_running_it_again() {
        // The record was written, the file was not.
        let (_, text, entry) = install(Some(THEIRS), None);
        assert_eq!(install(Some(THEIRS), Some(&entry)), (Action::Changed, text.clone(), entry.clone()));
        assert_eq!(undo(Some(THEIRS), &entry).unwrap().action, Action::Unchanged);
        let (_, made, new) = install(None, None);
        assert_eq!(install(None, Some(&new)), (Action::Created, made, new.clone()));
        assert_eq!(undo(None, &new).unwrap().action, Action::Unchanged);
    }

    #[test]
    fn another_address_later_is_undone_with_the_first() {
        let (_, text, entry) = install(Some(THEIRS), None);
        let step = merge(Some(&text), "", &wanted("/b"), Some(&entry)).unwrap();
        let (text, entry) = (step.write.unwrap().unwrap(), step.entry.unwrap());
        assert!(text.contains("\"/b\"") && !text.contains("\"/a\""), "{text}");
        assert_eq!(undo(Some(&text), &entry).unwrap().write, Some(Some(THEIRS.to_owned())));
    }

    #[test]
    fn later_edits_of_others_stay() {
        let (_, text, entry) = install(Some(THEIRS), None);
        let edited = text.replace("other = 1", "other = 2");
        let without = THEIRS.replace("other = 1", "other = 2\n");
        let step = undo(Some(&edited), &entry).unwrap();
        assert_eq!((step.action, step.write), (Action::Changed, Some(Some(without.clone()))));
        // Also when we came again in between.
        let step = merge(Some(&edited), "", &wanted("/b"), Some(&entry)).unwrap();
        let (again, entry) = (step.write.unwrap().unwrap(), step.entry.unwrap());
        assert!(again.contains("other = 2") && again.contains("\"/b\""), "{again}");
        let step = undo(Some(&again), &entry).unwrap();
        assert_eq!((step.action, step.write), (Action::Restored, Some(Some(without))));
        // And one of our own keys.
        let (_, text, entry) = install(Some(THEIRS), None);
        let edited = text.replace("\"sluice\"", "\"native\"");
        let step = undo(Some(&edited), &entry).unwrap();
        assert!(step.write.unwrap().unwrap().contains("snapshotter = \"native\""));
        assert!(step.notes[0].starts_with("plugins.snapshotter stays"), "{:?}", step.notes);
    }

    #[test]
    fn a_file_of_ours_is_replaced_only_while_it_is_ours() {
        let step = own(None, "one", None);
        let entry = step.entry.unwrap();
        assert_eq!(own(Some("one"), "one", Some(&entry)).action, Action::Unchanged);
        assert_eq!(own(Some("one"), "two", Some(&entry)).action, Action::Changed);
        for (now, entry) in [("mine", Some(&entry)), ("one", None)] {
            let step = own(Some(now), "two", entry);
            assert_eq!((step.action, step.write), (Action::Left, None), "{now}");
        }
        assert_eq!(undo(Some("one"), &entry).unwrap().write, Some(None));
        let step = undo(Some("mine"), &entry).unwrap();
        assert_eq!((step.action, step.write), (Action::Left, None));
    }
}
