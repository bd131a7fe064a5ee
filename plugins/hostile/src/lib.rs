//! A policy that does what no policy should: for tests of the host. The label `misbehave` of the image says what, the setting
//! `checks` what it does already while its settings are checked.

mod misbehave;

use sluice_policy::{
    About, Eligibility, Facts, Kind, Level, Problem, Settings, Verdict, about, accept, known, log, problem,
    refuse,
};

use misbehave::misbehave;

struct Hostile;

impl Eligibility for Hostile {
    fn about() -> About {
        let settings = [
            known("checks", Kind::Text, "What to do while settings are checked."),
            known("even", Kind::Number, "A number that the policy itself wants to be even."),
            known("error-lines", Kind::Number, "Report an error of so many lines, whatever the image."),
            known("\u{1b}[31mred", Kind::Text, "What names no setting: it would colour a terminal."),
            known("only", Kind::Text, "The one way to misbehave; without it whatever the image says."),
            known("answer", Kind::Text, "Refuse with this reason code; without it accept."),
        ];
        about("hostile", "1.0.0", "Misbehaves.", settings)
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        if let Some(how) = settings.text("checks") {
            misbehave(how);
        }
        match settings.number("even") {
            Some(number) if number % 2 != 0 => vec![problem("even", "it is odd")],
            _ => Vec::new(),
        }
    }

    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String> {
        if let Some(lines) = settings.number("error-lines") {
            return Err("\u{1b}[31mred\n".repeat(usize::try_from(lines).unwrap_or_default()));
        }
        let how =
            facts.image.labels.iter().find(|(name, how)| {
                name == "misbehave" && settings.text("only").is_none_or(|only| only == how)
            });
        if let Some((_, how)) = how {
            match how.as_str() {
                "error" => return Err("no table for this registry".to_owned()),
                "megabytes" => return Ok(refuse("large", "x".repeat(8 << 20))),
                "no-reason" => return Ok(refuse("", "")),
                "control" => return Ok(refuse("control", "\u{1b}[31mred")),
                // SAFETY: deliberately none: the host must not trust that what a guest calls text is text.
                "not-text" => {
                    return Ok(refuse("text", unsafe { String::from_utf8_unchecked(vec![0xff; 9]) }));
                }
                "log" => (0..10_000).for_each(|line| log(Level::Info, &format!("line {line}"))),
                "log-megabytes" => log(Level::Info, &"x".repeat(8 << 20)),
                how => misbehave(how),
            }
        }
        Ok(match settings.text("answer") {
            Some(reason) => refuse(reason, "as its settings say"),
            None => accept(),
        })
    }
}

sluice_policy::eligibility!(Hostile);
