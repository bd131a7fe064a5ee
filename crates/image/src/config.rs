//! What an image's config says of the image itself: for which platform it is, when it was made, its labels.
//!
//! Source: the OCI image specification, config.md. Read leniently, since builders write `null` for what is empty and leave out
//! what they do not know; a config that is not JSON, or has something else where these stand, says nothing at all.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// None: it does not say, as those written by hand.
    pub platform: Option<Platform>,
    /// Milliseconds since 1970.
    pub created_ms: Option<u64>,
    /// As many as there are.
    pub labels: BTreeMap<String, String>,
}

/// In the usual spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

#[derive(Default, Deserialize)]
struct File {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<Inner>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    labels: Option<BTreeMap<String, String>>,
}

/// As a manifest names a config: `sha256:<hex>`.
pub fn digest(json: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(json)))
}

impl ImageConfig {
    pub fn read(json: &[u8]) -> ImageConfig {
        let file: File = serde_json::from_slice(json).unwrap_or_default();
        let text = Option::unwrap_or_default;
        ImageConfig {
            platform: Platform::stated(&text(file.os), &text(file.architecture), &text(file.variant)),
            created_ms: file.created.as_deref().and_then(milliseconds),
            labels: file.config.and_then(|inner| inner.labels).unwrap_or_default(),
        }
    }
}

impl Platform {
    /// As a document has it; none when it does not say.
    pub fn stated(os: &str, architecture: &str, variant: &str) -> Option<Platform> {
        let known = |text: &str| !text.is_empty() && text != "unknown";
        (known(os) && known(architecture)).then(|| Platform::spelled(os, architecture, variant))
    }

    /// One spelling for each platform.
    pub fn spelled(os: &str, architecture: &str, variant: &str) -> Platform {
        let os = os.to_ascii_lowercase();
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("i386" | "i686" | "x86" | "386", _) => ("386", ""),
            (architecture, variant) => (architecture, variant),
        };
        Platform { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }
}

fn milliseconds(time: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn says_what_stands_in_it() {
        let json = r#"{"architecture":"aarch64","os":"Linux","variant":"v8","created":"2026-01-01T00:00:00.5Z",
            "config":{"Labels":{"b":"2","a":"1"},"Env":null},"rootfs":{"diff_ids":[]}}"#;
        let config = ImageConfig::read(json.as_bytes());
        assert_eq!(config.platform, Some(Platform::spelled("linux", "arm64", "")));
        assert_eq!(config.created_ms, Some(1_767_225_600_500));
        assert_eq!(config.labels, [("a", "1"), ("b", "2")].map(|(a, b)| (a.into(), b.into())).into());
    }

    #[test]
    fn what_is_null_or_left_out_is_not_known() {
        for json in ["{}", r#"{"os":null,"created":null,"config":null}"#, r#"{"config":{"Labels":null}}"#] {
            assert_eq!(ImageConfig::read(json.as_bytes()), ImageConfig::default(), "{json}");
        }
        let half = ImageConfig::read(br#"{"os":"linux","architecture":"unknown","created":"yesterday"}"#);
        assert_eq!(half, ImageConfig::default());
        let before = ImageConfig::read(br#"{"created":"1969-12-31T23:59:59Z"}"#);
        assert_eq!(before.created_ms, None);
    }

    #[test]
    fn a_malformed_config_says_nothing() {
        let deep = "[".repeat(1_000_000);
        let wrong = [
            "",
            "nothing",
            "[]",
            r#"{"os":"linux","architecture":"amd64","created":1}"#,
            r#"{"os":"linux","architecture":"amd64","config":{"Labels":["a"]}}"#,
            r#"{"os":"linux","os":"linux","architecture":"amd64"}"#,
            &deep,
        ];
        for json in wrong {
            assert_eq!(ImageConfig::read(json.as_bytes()), ImageConfig::default(), "{json:.40}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), time in ".{0,30}") {
            ImageConfig::read(&bytes);
            milliseconds(&time);
        }
    }
}
