//! How platforms are named on the command line.

use std::str::FromStr;

use proto::Platform;

/// `os/arch[/variant]`, in the words of the OCI specifications.
#[derive(Clone, Debug, PartialEq)]
pub struct PlatformName(pub Platform);

impl PlatformName {
    /// What this machine runs.
    pub fn host() -> PlatformName {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            same => (same, ""),
        };
        PlatformName(Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        })
    }
}

impl FromStr for PlatformName {
    type Err = String;

    fn from_str(text: &str) -> Result<PlatformName, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if !variant.is_empty() => (os, architecture, variant),
            _ => return Err("OS/ARCH[/VARIANT] expected, as in linux/arm64/v8".to_owned()),
        };
        if os != "linux" || architecture.is_empty() {
            return Err("only linux/ARCH[/VARIANT] can be streamed".to_owned());
        }
        Ok(PlatformName(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_platforms() {
        let arm: PlatformName = "linux/arm64/v8".parse().unwrap();
        assert_eq!((arm.0.architecture.as_str(), arm.0.variant.as_str()), ("arm64", "v8"));
        for wrong in ["", "linux", "linux/", "linux/arm64/", "a/b/c/d", "windows/amd64"] {
            assert!(wrong.parse::<PlatformName>().is_err(), "{wrong}");
        }
    }
}
