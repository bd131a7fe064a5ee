//! Fetches first what its settings name, then what earlier starts read, then the rest.

use sluice_policy::{
    About, Facts, Item, Kind, Mode, Prefetch, PrefetchPlan, Problem, Profile, Settings, about, known, problem,
};

struct Policy;

impl Prefetch for Policy {
    fn about() -> About {
        let settings = [
            known(
                "first",
                Kind::Texts,
                "Files, and folders for all below them, in this order; left out: none.",
            ),
            known("bandwidth", Kind::Number, "Bytes a second of the rest; left out: the node's own limit."),
        ];
        about("paths-first", env!("CARGO_PKG_VERSION"), "Fetches first what its settings name.", settings)
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        let mut problems = Vec::new();
        if settings.texts("first").iter().any(String::is_empty) {
            problems.push(problem("first", "a path is never empty"));
        }
        if settings.number("bandwidth").is_some_and(|bytes| bytes <= 0) {
            problems.push(problem("bandwidth", "it must be more than 0"));
        }
        problems
    }

    // Decide by the image here: `facts` has its name, its labels and its layers.
    fn plan(settings: &Settings, _facts: &Facts, profile: &Profile) -> Result<PrefetchPlan, String> {
        let mut items: Vec<Item> = settings.texts("first").iter().cloned().map(Item::Path).collect();
        // All of the profile's chunks. They are known by their numbers, in the order in which starts read them.
        if profile.chunks > 0 {
            items.push(Item::Chunks((0, profile.chunks)));
        }
        let bandwidth = settings.number("bandwidth").and_then(|bytes| u64::try_from(bytes).ok());
        let reason = "paths-and-profile".to_owned();
        Ok(PrefetchPlan { mode: Mode::ListedThenRest, items, bandwidth, reason })
    }
}

sluice_policy::prefetch!(Policy);
