//! What was done, or would be: line by line as it happens for people, at the end for programs.

use std::path::{Path, PathBuf};

use serde::Serialize;
use similar::TextDiff;

use super::images::{Finding, Verdict};
use super::plan::Action;
use crate::render;

/// How the result is shown.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub json: bool,
    pub quiet: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    dry_run: bool,
    files: Vec<File>,
    /// Command lines that were run.
    commands: Vec<String>,
    /// Images that were forgotten.
    images: Vec<Finding>,
    /// What is left to do, as command lines.
    next: Vec<String>,
    #[serde(skip)]
    style: Style,
}

#[derive(Debug, Serialize)]
struct File {
    path: PathBuf,
    action: Action,
    /// Lines that went and lines that came; no others, as there may be passwords in them.
    diff: String,
    notes: Vec<String>,
}

impl Report {
    pub fn new(dry_run: bool, style: Style) -> Report {
        Report { dry_run, files: vec![], commands: vec![], images: vec![], next: vec![], style }
    }

    pub fn file(
        &mut self,
        path: &Path,
        action: Action,
        (before, after): (&str, &str),
        notes: Vec<String>,
    ) -> anyhow::Result<()> {
        let diff = diff(before, after);
        let shown = path.display();
        self.say(&match (action, self.dry_run) {
            (Action::Unchanged, _) => format!("{shown}: as it should be"),
            (Action::Left, _) => format!("{shown}: left as it is"),
            (Action::Created, false) => format!("{shown}: created"),
            (Action::Changed, false) => format!("{shown}: changed"),
            (Action::Restored, false) => format!("{shown}: as it was before"),
            (Action::Removed, false) => format!("{shown}: removed"),
            (Action::Created, true) => format!("{shown}: would be created"),
            (Action::Changed, true) => format!("{shown}: would be changed"),
            (Action::Restored, true) => format!("{shown}: would be as it was before"),
            (Action::Removed, true) => format!("{shown}: would be removed"),
        })?;
        for note in &notes {
            self.say(&format!("  {note}"))?;
        }
        for line in diff.lines() {
            self.say(&format!("  {line}"))?;
        }
        self.files.push(File { path: path.to_owned(), action, diff, notes });
        Ok(())
    }

    pub fn command(&mut self, line: &str) -> anyhow::Result<()> {
        self.say(&format!("{}: {line}", if self.dry_run { "would run" } else { "ran" }))?;
        self.commands.push(line.to_owned());
        Ok(())
    }

    pub fn image(&mut self, finding: &Finding) -> anyhow::Result<()> {
        if let Verdict::Cannot { missing, layers } = finding.verdict {
            let verb = if self.dry_run { "would forget" } else { "forgot" };
            self.say(&format!("{verb} {}: {missing} of its {layers} layers are not here", title(finding)))?;
            self.images.push(finding.clone());
        }
        Ok(())
    }

    pub fn next(&mut self, line: String) -> anyhow::Result<()> {
        self.say(&format!("{}: {line}", if self.next.is_empty() { "next" } else { "then" }))?;
        self.next.push(line);
        Ok(())
    }

    /// Whether people are spoken to.
    pub fn speaks(&self) -> bool {
        !self.style.json && !self.style.quiet
    }

    /// A word for people.
    pub fn say(&self, line: &str) -> anyhow::Result<()> {
        if self.style.json || self.style.quiet { Ok(()) } else { render::line(line) }
    }

    pub fn finish(&self) -> anyhow::Result<()> {
        if self.style.json { render::json(self) } else { Ok(()) }
    }
}

/// The image's name as people know it: not the one by which the kubelet finds its configuration.
fn title(finding: &Finding) -> &str {
    let is_reference = |name: &&String| !name.starts_with("sha256:");
    finding.names.iter().find(is_reference).unwrap_or(&finding.digest)
}

/// A unified diff without unchanged lines around.
fn diff(before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(0)
        .missing_newline_hint(false)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_changed_and_no_line_more() {
        let before =
            "[registry]\npassword = 'secret'\n[images]\nsnapshotter = 'overlayfs'\npassword = 'other'\n";
        let after = before.replace("'overlayfs'", "'sluice'") + "new = 1\n";
        let diff = diff(before, &after);
        let lines: Vec<&str> = diff.lines().filter(|line| !line.starts_with("@@")).collect();
        assert_eq!(lines, ["-snapshotter = 'overlayfs'", "+snapshotter = 'sluice'", "+new = 1"], "{diff}");
        assert_eq!(self::diff("same\n", "same\n"), "");
    }
}
