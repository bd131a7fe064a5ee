//! Fetches all of the image at once, what starts read first: for nodes that may lose their network.

use sluice_policy::{About, Facts, Item, Mode, Prefetch, PrefetchPlan, Profile, Settings, about};

struct WholeImage;

impl Prefetch for WholeImage {
    fn about() -> About {
        about("whole-image", "1.0.0", "Fetches the whole image with the urgency of a start.", [])
    }

    fn plan(_: &Settings, _: &Facts, profile: &Profile) -> Result<PrefetchPlan, String> {
        let learned = (profile.chunks > 0).then_some(Item::Chunks((0, profile.chunks)));
        Ok(PrefetchPlan {
            mode: Mode::Everything,
            items: learned.into_iter().collect(),
            bandwidth: None,
            reason: "whole-image".to_owned(),
        })
    }
}

sluice_policy::prefetch!(WholeImage);
