//! Refuses images with encrypted layers: their bytes cannot be read here, so they cannot be streamed from here.

use sluice_policy::{About, Eligibility, Facts, Layer, Settings, Verdict, about, accept, refuse};

struct EncryptedLayers;

impl Eligibility for EncryptedLayers {
    fn about() -> About {
        about("encrypted-layers", "1.0.0", "Refuses images with encrypted layers.", [])
    }

    fn judge(_: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let encrypted: Vec<&Layer> = facts.image.layers.iter().filter(|layer| layer.encrypted).collect();
        let Some(first) = encrypted.first() else { return Ok(accept()) };
        let (count, all) = (encrypted.len(), facts.image.layers.len());
        let message = format!("{count} of its {all} layers are encrypted, the first is {}", first.digest);
        Ok(refuse("encrypted-layers", message).detail("layers", count).detail("first", &first.digest))
    }
}

sluice_policy::eligibility!(EncryptedLayers);
