//! Refuses images that are too large, or so small that a normal pull is as fast.

use sluice_policy::{
    About, Eligibility, Facts, Kind, Problem, Settings, Verdict, about, accept, known, problem, refuse,
};

const SETTINGS: [(&str, &str); 3] = [
    ("largest-image", "Bytes of all layers together, compressed; without it any size."),
    ("largest-layer", "Bytes of one layer, compressed; without it any size."),
    ("smallest-image", "Images below this many bytes are pulled; without it none."),
];

struct SizeLimits;

impl Eligibility for SizeLimits {
    fn about() -> About {
        let settings = SETTINGS.map(|(name, help)| known(name, Kind::Number, help));
        about("size-limits", "1.0.0", "Refuses images by the size of their layers.", settings)
    }

    fn check(settings: &Settings) -> Vec<Problem> {
        let given = SETTINGS.iter().filter_map(|(name, _)| Some((name, settings.number(name)?)));
        let mut problems: Vec<Problem> = given
            .filter(|(_, bytes)| *bytes < 0)
            .map(|(name, _)| problem(name, "it must not be below 0"))
            .collect();
        if let (Some(smallest), Some(largest)) =
            (settings.number("smallest-image"), settings.number("largest-image"))
            && smallest > largest
        {
            problems.push(problem("smallest-image", "it is more than largest-image: no image would be left"));
        }
        problems
    }

    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let bytes = facts.image.compressed_bytes;
        let limit = |name: &str| settings.number(name).and_then(|bytes| u64::try_from(bytes).ok());
        let refuse = |code: &str, what: String, limit: u64| {
            refuse(code, format!("{what}, the limit is {limit} bytes"))
                .detail("limit", limit)
                .detail("image", bytes)
        };
        if let Some(limit) = limit("largest-image").filter(|limit| bytes > *limit) {
            return Ok(refuse("image-too-large", format!("its layers have {bytes} bytes"), limit));
        }
        if let Some(limit) = limit("smallest-image").filter(|limit| bytes < *limit) {
            return Ok(refuse("image-too-small", format!("its layers have {bytes} bytes only"), limit));
        }
        if let Some(limit) = limit("largest-layer")
            && let Some(layer) = facts.image.layers.iter().find(|layer| layer.size > limit)
        {
            let what = format!("its layer {} has {} bytes", layer.digest, layer.size);
            return Ok(refuse("layer-too-large", what, limit));
        }
        Ok(accept())
    }
}

sluice_policy::eligibility!(SizeLimits);
