//! Refuses images by their tag.

use sluice_policy::{
    About, Eligibility, Facts, Kind, Problem, Settings, Verdict, about, abstain, known, problem, refuse,
};

struct Policy;

impl Eligibility for Policy {
    fn about() -> About {
        let tags = known("tags", Kind::Texts, "Tags that are refused; left out: `latest` alone.");
        about("no-latest", env!("CARGO_PKG_VERSION"), "Refuses images by their tag.", [tags])
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        let empty = settings.texts("tags").iter().any(String::is_empty);
        empty.then(|| problem("tags", "a tag is never empty")).into_iter().collect()
    }

    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let Some(tag) = &facts.image.tag else { return Ok(abstain()) };
        let refused = match settings.has("tags") {
            true => settings.texts("tags").contains(tag),
            false => tag == "latest",
        };
        Ok(match refused {
            true => refuse("tag-refused", format!("the tag `{tag}` is refused: name another")).detail("tag", tag),
            false => abstain(),
        })
    }
}

sluice_policy::eligibility!(Policy);
