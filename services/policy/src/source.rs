//! Where plugins come from. What is loaded is pinned: by being part of this program, or by its digest.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use registry::Access;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Limits};
use crate::remote::{Registries, RemoteName, SCHEME, SigningKey, Trust, read_text};

/// The policies that come with sluice, by name.
const BUILTIN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/builtin.rs"));
/// The file of a signature, in bytes.
const SIGNATURE_MAX: u64 = 4 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Builtin(String),
    File {
        path: PathBuf,
        pin: String,
    },
    /// With a digest.
    Remote(RemoteName),
}

/// A plugin's bytes, and their digest: `sha256:<hex>`.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: String,
}

/// A plugin that its author gives, pinned or not.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) source: String,
    pub(crate) bytes: Bytes,
}

/// What plugins are fetched with.
#[derive(Debug)]
pub(crate) struct Sources {
    registries: Registries,
    plugin_size_max: u64,
    given: Option<Given>,
    runtime: Handle,
    shutdown: CancellationToken,
}

impl FromStr for Source {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Source> {
        if let Some(name) = text.strip_prefix("builtin:") {
            return Ok(Source::Builtin(name.to_owned()));
        }
        if text.starts_with(SCHEME) {
            let name: RemoteName = text.parse()?;
            if name.pin().is_none() {
                bail!(
                    "{text:?} is not pinned, and a tag may mean another plugin tomorrow: write {name}@sha256:HEX, as \
                     `sluice policy pull {text}` prints it"
                );
            }
            return Ok(Source::Remote(name));
        }
        let Some(rest) = text.strip_prefix("file:") else {
            bail!(
                "{text:?} is no source: builtin:NAME, file:PATH@sha256:HEX or {SCHEME}HOST/REPOSITORY@sha256:HEX expected"
            );
        };
        let (path, pin) = rest.rsplit_once('@').unwrap_or((rest, ""));
        if !is_digest(pin) {
            bail!(
                "{text:?} is not pinned: write file:PATH@sha256:HEX, with the 64 digits of `sha256sum PATH`"
            );
        }
        Ok(Source::File { path: path.into(), pin: pin.to_owned() })
    }
}

impl Source {
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Source::Remote(_))
    }
}

impl Given {
    /// A file as it is now.
    pub(crate) fn file(file: &Path, limits: &Limits) -> anyhow::Result<Given> {
        let file = std::path::absolute(file)?;
        let bytes = read_plugin(&file, limits)?;
        Ok(Given { source: format!("file:{}@{}", file.display(), digest(&bytes)), bytes })
    }
}

impl Sources {
    /// To be called on a runtime, where registries are then asked.
    pub(crate) fn new(config: &Config, shutdown: CancellationToken) -> anyhow::Result<Sources> {
        Ok(Sources {
            registries: Registries::new(config)?,
            plugin_size_max: config.limits.plugin_size.as_u64(),
            given: None,
            runtime: Handle::current(),
            shutdown,
        })
    }

    /// One of the plugins is here already.
    pub(crate) fn with(self, given: Given) -> Sources {
        Sources { given: Some(given), ..self }
    }

    /// Whether plugins of registries must be signed: each time by a key of today.
    pub(crate) fn wants_signatures(&self) -> bool {
        self.registries.wants_signatures()
    }

    /// Reads a plugin, checks it against its pin, and its signature where one is wanted. `folder` is where relative paths
    /// begin. Blocks.
    pub(crate) fn fetch(&self, source: &Source, folder: &Path) -> anyhow::Result<Fetched> {
        if let Some(given) = &self.given
            && given.source.parse::<Source>().is_ok_and(|given| given == *source)
        {
            return Ok(Fetched { digest: digest(&given.bytes), bytes: given.bytes.clone() });
        }
        match source {
            Source::Builtin(name) => {
                let found = BUILTIN.iter().find(|(builtin, _)| builtin == name);
                let bytes = found
                    .ok_or_else(|| anyhow!("there is no policy builtin:{name}; there are {}", names()))?
                    .1;
                Ok(Fetched { digest: digest(bytes), bytes: Bytes::from_static(bytes) })
            }
            Source::File { path, pin } => self.file(&folder.join(path), pin),
            Source::Remote(name) => {
                let pulling = self.registries.pull(name, Access::own());
                let pulled = self.runtime.block_on(self.shutdown.run_until_cancelled(pulling));
                let plugin = pulled.ok_or_else(|| anyhow!("pulling {name}: the service stops"))??;
                Ok(Fetched { digest: digest(&plugin.bytes), bytes: plugin.bytes })
            }
        }
    }

    fn file(&self, path: &Path, pin: &str) -> anyhow::Result<Fetched> {
        let bytes =
            read(path, self.plugin_size_max).with_context(|| format!("reading {}", path.display()))?;
        let digest = digest(&bytes);
        if digest != *pin {
            bail!("{} is not what was pinned: it has the digest {digest}, not {pin}", path.display());
        }
        let trust = self.registries.trust()?;
        if trust.wants_files() {
            check_signature(&trust, path, &bytes)?;
        }
        Ok(Fetched { bytes, digest })
    }
}

fn check_signature(trust: &Trust, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = signature_file(path);
    let missing = || {
        format!(
            "{}: policy.trust.required wants its signature in {}, which `sluice policy sign` writes",
            path.display(),
            file.display()
        )
    };
    let text = read_text(&file, SIGNATURE_MAX).with_context(missing)?;
    let signature = STANDARD.decode(text.trim()).ok();
    let good = signature.is_some_and(|signature| trust.verifies(bytes, &signature));
    ensure!(good, "{} holds no signature by a key in policy.trust.public_keys", file.display());
    Ok(())
}

/// Where a plugin's signature is, beside its file.
pub fn signature_file(plugin: &Path) -> PathBuf {
    let mut name = plugin.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// What is written there: base64 of the signature over the file's bytes, as `cosign sign-blob` has it.
pub fn sign_file(plugin: &[u8], key: &SigningKey) -> anyhow::Result<String> {
    Ok(STANDARD.encode(key.sign(plugin)?) + "\n")
}

/// `sha256:<hex>`
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A plugin's file, as large as it may be.
pub fn read_plugin(file: &Path, limits: &Limits) -> anyhow::Result<Bytes> {
    read(file, limits.plugin_size.as_u64()).with_context(|| format!("reading {}", file.display()))
}

fn read(path: &Path, max: u64) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        bail!("it has more than {max} bytes (policy.limits.plugin_size)");
    }
    Ok(bytes.into())
}

fn names() -> String {
    BUILTIN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Required, TrustConfig};

    fn sources(max: u64, trust: TrustConfig) -> Sources {
        let limits = Limits { plugin_size: bytesize::ByteSize::b(max), ..Limits::default() };
        let config = Config { limits, trust, ..Config::default() };
        Sources::new(&config, CancellationToken::new()).unwrap()
    }

    fn fetch(sources: &Sources, source: &str, folder: &Path) -> anyhow::Result<Bytes> {
        Ok(sources.fetch(&source.parse()?, folder)?.bytes)
    }

    #[tokio::test]
    async fn what_is_not_pinned_or_not_what_was_pinned_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("a.wasm"), b"plugin").unwrap();
        let (right, wrong) = (digest(b"plugin"), digest(b"another"));
        let all = sources(1000, TrustConfig::default());
        let source = format!("file:a.wasm@{right}");
        assert_eq!(fetch(&all, &source, folder).unwrap(), "plugin");
        let small = sources(3, TrustConfig::default());
        let error = format!("{:#}", fetch(&small, &source, folder).unwrap_err());
        assert!(error.contains("more than 3 bytes"), "{error}");
        for (source, expected) in [
            (
                format!("file:a.wasm@{wrong}").as_str(),
                format!("not what was pinned: it has the digest {right}").as_str(),
            ),
            ("file:a.wasm", "is not pinned"),
            ("file:a.wasm@sha256:12", "is not pinned"),
            ("a.wasm", "is no source"),
            ("builtin:nothing", "there are encrypted-layers"),
            (&format!("file:absent.wasm@{right}"), "reading"),
            ("oci://registry.example/policy:1", "sluice policy pull oci://registry.example/policy:1"),
            ("oci://policy", "it names no host"),
        ] {
            let error = format!("{:#}", fetch(&all, source, folder).unwrap_err());
            assert!(error.contains(expected), "{source}: {error}");
        }
    }

    #[tokio::test]
    async fn files_are_signed_where_all_must_be() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (ours, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let trust = TrustConfig { public_keys: vec![ours.public_pem().unwrap()], required: Required::All };
        let strict = sources(1000, trust);
        let plugin = folder.join("a.wasm");
        std::fs::write(&plugin, b"plugin").unwrap();
        let source = format!("file:a.wasm@{}", digest(b"plugin"));
        let error = || format!("{:#}", fetch(&strict, &source, folder).unwrap_err());
        assert!(error().contains("wants its signature in"), "{}", error());
        for wrong in [sign_file(b"plugin", &other), sign_file(b"another", &ours), Ok("?".to_owned())] {
            std::fs::write(signature_file(&plugin), wrong.unwrap()).unwrap();
            assert!(error().contains("a.wasm.sig holds no signature by a key"), "{}", error());
        }
        std::fs::write(signature_file(&plugin), sign_file(b"plugin", &ours).unwrap()).unwrap();
        assert_eq!(fetch(&strict, &source, folder).unwrap(), "plugin");
        assert!(fetch(&strict, "builtin:size-limits", folder).is_ok());
    }
}
