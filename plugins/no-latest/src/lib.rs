//! The example of docs/policies.md.

use sluice_policy::{About, Eligibility, Facts, Settings, Verdict, about, abstain, refuse};

struct NoLatest;

impl Eligibility for NoLatest {
    fn about() -> About {
        about("no-latest", "1.0.0", "Refuses images of the tag `latest`.", [])
    }

    fn judge(_: &Settings, facts: &Facts) -> Result<Verdict, String> {
        Ok(match facts.image.tag.as_deref() {
            Some("latest") => refuse("tag-latest", "name a version: `latest` means another image tomorrow"),
            _ => abstain(),
        })
    }
}

sluice_policy::eligibility!(NoLatest);
