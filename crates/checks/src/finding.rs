//! What was found when something was looked at.

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, as it should be.
    pub check: String,
    pub outcome: Outcome,
    /// Whether a process can do its work all the same.
    pub bearable: bool,
    pub reason: String,
    /// What to do.
    pub hint: &'static str,
    /// Of the part of docs/access.md that helps.
    pub anchor: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// It works, but somebody should look.
    Warning,
    Bad,
}

impl Finding {
    pub fn good(check: impl Into<String>) -> Finding {
        Finding {
            check: check.into(),
            outcome: Outcome::Good,
            bearable: true,
            reason: String::new(),
            hint: "",
            anchor: "",
        }
    }

    pub fn warning(
        check: impl Into<String>,
        reason: impl ToString,
        hint: &'static str,
        anchor: &'static str,
    ) -> Finding {
        let (check, reason) = (check.into(), reason.to_string());
        Finding { check, outcome: Outcome::Warning, bearable: true, reason, hint, anchor }
    }

    pub fn bad(
        check: impl Into<String>,
        reason: impl ToString,
        hint: &'static str,
        anchor: &'static str,
    ) -> Finding {
        Finding { outcome: Outcome::Bad, bearable: false, ..Finding::warning(check, reason, hint, anchor) }
    }

    pub fn is_bad(&self) -> bool {
        self.outcome == Outcome::Bad
    }

    pub fn is_good(&self) -> bool {
        self.outcome == Outcome::Good
    }

    /// As `/readyz` says it.
    pub(crate) fn in_one_line(&self) -> String {
        let hint = if self.hint.is_empty() { String::new() } else { format!(" ({})", self.hint) };
        format!("{}{hint}", self.reason)
    }
}
