//! Refuses images in Docker's first format, which names no contents that could be verified.

use sluice_policy::{About, Eligibility, Facts, Settings, Verdict, about, accept, refuse};

/// The format of all OCI images, and of Docker's since 2016.
const WANTED: u32 = 2;

struct SchemaVersion;

impl Eligibility for SchemaVersion {
    fn about() -> About {
        about("schema-version", "1.0.0", "Refuses image manifests of schema 1.", [])
    }

    fn judge(_: &Settings, facts: &Facts) -> Result<Verdict, String> {
        let found = facts.image.schema_version;
        if found == WANTED {
            return Ok(accept());
        }
        let message = format!("its manifest is of schema {found}: push the image again with a current tool");
        Ok(refuse("schema-version", message).detail("schema-version", found))
    }
}

sluice_policy::eligibility!(SchemaVersion);
