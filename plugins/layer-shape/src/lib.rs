//! Refuses images with empty or duplicate layers. sluice streams them; other systems do not, and some want to know.

use sluice_policy::{About, Eligibility, Facts, Kind, Settings, Verdict, about, accept, known, refuse};

struct LayerShape;

impl Eligibility for LayerShape {
    fn about() -> About {
        let settings = [
            known("allow-empty", Kind::Truth, "Take images with empty layers; without it they are refused."),
            known(
                "allow-duplicate",
                Kind::Truth,
                "Take images in which a layer stands twice; without it they are refused.",
            ),
            known("most-layers", Kind::Number, "The most layers an image may have; without it any number."),
        ];
        about("layer-shape", "1.0.0", "Refuses images with empty, duplicate or too many layers.", settings)
    }

    fn check(settings: &Settings) -> Vec<sluice_policy::Problem> {
        match settings.number("most-layers") {
            Some(..=0) => vec![sluice_policy::problem("most-layers", "it must be at least 1")],
            _ => Vec::new(),
        }
    }

    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let layers = &facts.image.layers;
        if let Some(most) = settings.number("most-layers")
            && layers.len() as i64 > most
        {
            let message = format!("it has {} layers, more than {most}", layers.len());
            return Ok(refuse("too-many-layers", message).detail("layers", layers.len()));
        }
        if let Some(layer) = layers.iter().find(|layer| layer.empty && !settings.truth("allow-empty")) {
            return Ok(refuse("empty-layer", format!("its layer {} is empty", layer.digest)));
        }
        if let Some(layer) = layers.iter().find(|layer| layer.duplicate && !settings.truth("allow-duplicate"))
        {
            return Ok(refuse("duplicate-layer", format!("its layer {} stands in it twice", layer.digest)));
        }
        Ok(accept())
    }
}

sluice_policy::eligibility!(LayerShape);
