//! Platforms: one spelling for each, and which of an index's images runs on one.

use proto::Platform;
use registry::document::PlatformField;

/// The platform asked for, in the usual spelling; an empty one is this machine's.
pub fn wanted(asked: &Platform) -> Platform {
    let host = asked.os.is_empty() && asked.architecture.is_empty();
    let architecture = if host { std::env::consts::ARCH } else { &asked.architecture };
    let os = if asked.os.is_empty() { "linux" } else { &asked.os };
    normalised(os, architecture, &asked.variant)
}

/// `os/architecture[/variant]`
pub fn text(platform: &Platform) -> String {
    let Platform { os, architecture, variant } = platform;
    if variant.is_empty() { format!("{os}/{architecture}") } else { format!("{os}/{architecture}/{variant}") }
}

/// How well an image for `offered` runs on `wanted`: lower is better, none means not at all.
///
/// A processor runs what was built for the older variants of its architecture.
pub(super) fn rank(wanted: &Platform, offered: &Platform) -> Option<u32> {
    if wanted.os != offered.os || wanted.architecture != offered.architecture {
        return None;
    }
    if wanted.variant == offered.variant {
        return Some(0);
    }
    match (level(&wanted.variant), level(&offered.variant)) {
        (Some(wanted), Some(offered)) => wanted.checked_sub(offered),
        _ => None,
    }
}

/// As a document has it, in the usual spelling; none when it does not say.
pub(super) fn stated(field: &PlatformField) -> Option<Platform> {
    image::config::Platform::stated(&field.os, &field.architecture, &field.variant).map(from_config)
}

fn normalised(os: &str, architecture: &str, variant: &str) -> Platform {
    from_config(image::config::Platform::spelled(os, architecture, variant))
}

fn from_config(platform: image::config::Platform) -> Platform {
    Platform { os: platform.os, architecture: platform.architecture, variant: platform.variant }
}

/// The number in `v8`. No variant is the oldest one.
fn level(variant: &str) -> Option<u32> {
    if variant.is_empty() {
        return Some(0);
    }
    variant.strip_prefix('v')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        wanted(&Platform { os: next(), architecture: next(), variant: next() })
    }

    #[test]
    fn one_spelling_each() {
        for (written, usual) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/riscv64", "linux/riscv64"),
            ("/amd64", "linux/amd64"),
        ] {
            assert_eq!(text(&platform(written)), usual);
        }
        assert!(!wanted(&Platform::default()).architecture.is_empty());
    }

    #[test]
    fn older_variants_run_on_newer_processors_only() {
        let order = |wanted: &str, offered: &str| rank(&platform(wanted), &platform(offered));
        assert_eq!(order("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(order("linux/amd64", "linux/amd64/v3"), None);
        assert!(order("linux/amd64/v3", "linux/amd64/v2") < order("linux/amd64/v3", "linux/amd64"));
        assert!(order("linux/arm/v7", "linux/arm/v6").is_some());
        assert_eq!(order("linux/arm/v6", "linux/arm/v7"), None);
        assert!(order("linux/arm64/v9", "linux/arm64").is_some());
        assert_eq!(order("linux/amd64", "windows/amd64"), None);
        assert_eq!(order("linux/arm64", "linux/arm/v7"), None);
    }

    #[test]
    fn attestations_state_no_platform() {
        let field =
            PlatformField { os: "unknown".into(), architecture: "unknown".into(), variant: String::new() };
        assert_eq!(stated(&field), None);
        assert_eq!(stated(&PlatformField::default()), None);
    }
}
