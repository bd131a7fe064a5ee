//! Checks as they are printed.

use std::fmt::Write as _;

use checks::Finding;
use serde::Serialize;

use crate::render::printable;

/// Where the documentation stands, and the part of it that helps.
const DOCS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/access.md");

/// What was found, in order; also as `-o json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    section: &'static str,
    /// What was looked at, as it should be.
    check: String,
    result: Outcome,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Good,
    Warning,
    Bad,
}

impl Report {
    pub(super) fn good(&mut self, section: &'static str, check: impl Into<String>) {
        self.add(section, check.into(), Outcome::Good, String::new(), "", "");
    }

    /// `anchor`: of the part of docs/access.md that helps.
    pub(super) fn warning(
        &mut self,
        section: &'static str,
        check: impl Into<String>,
        reason: impl ToString,
        hint: &str,
        anchor: &str,
    ) {
        self.add(section, check.into(), Outcome::Warning, reason.to_string(), hint, anchor);
    }

    pub(super) fn bad(
        &mut self,
        section: &'static str,
        check: impl Into<String>,
        reason: impl ToString,
        hint: &str,
        anchor: &str,
    ) {
        self.add(section, check.into(), Outcome::Bad, reason.to_string(), hint, anchor);
    }

    /// Good, or bad for the reason of the error.
    pub(super) fn result<E: std::fmt::Display>(
        &mut self,
        section: &'static str,
        check: impl Into<String>,
        result: Result<(), E>,
        hint: &str,
        anchor: &str,
    ) {
        match result {
            Ok(()) => self.good(section, check),
            Err(error) => self.bad(section, check, format!("{error:#}"), hint, anchor),
        }
    }

    /// What a service looks at as well.
    pub(super) fn take(&mut self, section: &'static str, found: Finding) {
        let Finding { check, outcome, reason, hint, anchor, .. } = found;
        let result = match outcome {
            checks::Outcome::Good => Outcome::Good,
            checks::Outcome::Warning => Outcome::Warning,
            checks::Outcome::Bad => Outcome::Bad,
        };
        self.add(section, check, result, reason, hint, anchor);
    }

    fn add(
        &mut self,
        section: &'static str,
        check: String,
        result: Outcome,
        reason: String,
        hint: &str,
        anchor: &str,
    ) {
        let link = if anchor.is_empty() { String::new() } else { format!("{DOCS}#{anchor}") };
        self.checks.push(Check { section, check, result, reason, hint: hint.to_owned(), link });
    }

    pub(super) fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.result != Outcome::Bad)
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (number, check) in self.checks.iter().enumerate() {
            if number == 0 || self.checks[number - 1].section != check.section {
                let gap = if number == 0 { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{}\n{}", check.section, "-".repeat(check.section.len()));
            }
            let mark = match check.result {
                Outcome::Good => "√",
                Outcome::Warning => "‼",
                Outcome::Bad => "×",
            };
            let _ = writeln!(text, "{mark} {}", printable(&check.check));
            for (label, line) in [("", &check.reason), ("", &check.hint), ("see ", &check.link)] {
                if !line.is_empty() {
                    let _ = writeln!(text, "    {label}{}", printable(line));
                }
            }
        }
        let status = if self.is_good() { "√" } else { "×" };
        let _ = writeln!(text, "\nStatus check results are {status}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_printed_a_line_for_each_check_with_what_helps() {
        let mut report = Report::default();
        report.good("keys", "keys are their owner's");
        report.warning("nats", "NATS is spoken to over TLS", "nats.insecure is set", "unset it", "tls");
        assert!(report.is_good());
        report.bad("nats", "NATS answers", "no connection\nat all", "start it", "nats");
        assert!(!report.is_good());
        let expected = format!(
            "keys\n----\n√ keys are their owner's\n\nnats\n----\n‼ NATS is spoken to over TLS\n    nats.insecure is set\n    \
             unset it\n    see {DOCS}#tls\n× NATS answers\n    no connection\\nat all\n    start it\n    see {DOCS}#nats\n\n\
             Status check results are ×\n"
        );
        assert_eq!(report.text(), expected);
    }
}
