//! Fetches first what earlier starts of the image read, in their order; everything else after that.

use sluice_policy::{
    About, Facts, Item, Kind, Mode, Prefetch, PrefetchPlan, Problem, Profile, Settings, about, known, problem,
};

struct Learned;

impl Prefetch for Learned {
    fn about() -> About {
        let settings = [
            known(
                "rest",
                Kind::Truth,
                "false: never fetch what no start has read; without it the rest follows.",
            ),
            known(
                "bandwidth",
                Kind::Number,
                "Bytes a second of the background; without it the node's own limit.",
            ),
        ];
        about("learned", "1.0.0", "Fetches first what earlier starts read.", settings)
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        match settings.number("bandwidth") {
            Some(..=0) => vec![problem("bandwidth", "it must be more than 0")],
            _ => Vec::new(),
        }
    }

    fn plan(settings: &Settings, _: &Facts, profile: &Profile) -> Result<PrefetchPlan, String> {
        let learned = (profile.chunks > 0).then_some(Item::Chunks((0, profile.chunks)));
        let only = settings.has("rest") && !settings.truth("rest");
        Ok(PrefetchPlan {
            mode: if only { Mode::ListedOnly } else { Mode::ListedThenRest },
            items: learned.into_iter().collect(),
            bandwidth: settings.number("bandwidth").and_then(|bytes| u64::try_from(bytes).ok()),
            reason: match (profile.starts, profile.chunks) {
                (_, 0) => "no-profile",
                // Nobody has started this image: another one of its repository tells what is likely.
                (0, _) => "profile-of-another",
                _ => "profile",
            }
            .to_owned(),
        })
    }
}

sluice_policy::prefetch!(Learned);
