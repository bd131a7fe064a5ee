//! Plugins in registries: pulled, checked, kept; pushed and signed by their authors.
//!
//! | file | what it knows |
//! |---|---|
//! | `name` | how they are named |
//! | `artifact` | how a component is laid out in a registry |
//! | `signature`, `keys`, `trust` | cosign's layout of signatures, key files, and who is believed |
//! | `kept` | pulled plugins on this machine's disk |

mod artifact;
mod kept;
mod keys;
mod name;
mod signature;
mod trust;

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use registry::document::{Descriptor, OCI_MANIFEST};
use registry::{Access, BlobDigest, Client, Error, Repository};

use crate::Outline;
use crate::config::{Config, TrustConfig};
use artifact::Artifact;
use kept::{Kept, Pulled};
use signature::{PAYLOAD_MAX, SIGNATURES_MAX, Signature, Signatures};

pub use keys::SigningKey;
pub use name::RemoteName;
pub(crate) use name::SCHEME;
pub(crate) use trust::{Trust, read_text};

/// All requests for one plugin together, retries included. A plugin of 32 MiB over 1 Mbit/s.
const PULL_MAX: Duration = Duration::from_secs(300);
/// A tag for who names none: registries remove what has no tag, sooner or later.
const DEFAULT_TAG: &str = "latest";
const THE_PLUGIN: &str = "the plugin";

/// A plugin that was pulled and checked.
#[derive(Debug)]
pub struct PulledPlugin {
    /// By the digest of its manifest.
    pub name: RemoteName,
    pub bytes: Bytes,
    /// By a key in `policy.trust.public_keys`; else nobody asked for that.
    pub signed: bool,
}

/// Registries, as a configuration says how they are reached and what is believed.
#[derive(Debug)]
pub struct Registries {
    config: registry::Config,
    trust: TrustConfig,
    kept: Kept,
    plugin_size_max: u64,
}

impl Registries {
    pub fn new(config: &Config) -> anyhow::Result<Registries> {
        let registries = Registries {
            config: config.registry.clone(),
            trust: config.trust.clone(),
            kept: Kept::new(config.kept.clone()),
            plugin_size_max: config.limits.plugin_size.as_u64(),
        };
        // Keys that cannot be read are told of at once.
        registries.trust()?;
        Ok(registries)
    }

    /// By the keys as their files are now: who replaces one need not restart anything.
    pub(crate) fn trust(&self) -> anyhow::Result<Trust> {
        Trust::new(&self.trust)
    }

    /// Keys that cannot be read are told of by the check itself.
    pub(crate) fn wants_signatures(&self) -> bool {
        self.trust().map_or(true, |trust| trust.wants_remote())
    }

    /// A plugin, from the disk or its registry. By tag, the registry is asked in any case.
    pub async fn pull(&self, name: &RemoteName, access: Access) -> anyhow::Result<PulledPlugin> {
        let pulling = self.pull_within(name, access);
        let late = || anyhow!("it was not here within {PULL_MAX:?}");
        let pulled = tokio::time::timeout(PULL_MAX, pulling).await.map_err(|_| late()).flatten();
        pulled.with_context(|| format!("pulling {name}"))
    }

    async fn pull_within(&self, name: &RemoteName, access: Access) -> anyhow::Result<PulledPlugin> {
        let trust = self.trust()?;
        if let Some(plugin) = name.pin().and_then(|pin| self.find(&trust, name, pin)) {
            return Ok(plugin);
        }
        let repository = self.repository(name, access)?;
        let (descriptor, manifest) = repository.root(THE_PLUGIN, OCI_MANIFEST).await?;
        let digest = descriptor.digest;
        // A tag, whose plugin is here already.
        if name.pin().is_none()
            && let Some(plugin) = self.find(&trust, name, digest)
        {
            return Ok(plugin);
        }
        let component = Artifact::read(&manifest)?.component;
        let signed = trust.wants_remote();
        let signatures = if signed { signatures(&repository, digest).await?.1 } else { Vec::new() };
        if signed {
            trust.check(digest, &signatures)?;
        }
        if component.size > self.plugin_size_max {
            let (size, max) = (component.size, self.plugin_size_max);
            bail!("it has {size} bytes, more than {max} (policy.limits.plugin_size)");
        }
        let plugin = repository.whole_blob(THE_PLUGIN, &component, self.plugin_size_max).await?;
        let pulled = Pulled { manifest, plugin, signatures };
        self.kept.keep(digest, &pulled);
        Ok(PulledPlugin { name: name.pinned(digest), bytes: pulled.plugin, signed })
    }

    /// On this machine's disk, when it is still what it was and signed by a key of today.
    fn find(&self, trust: &Trust, name: &RemoteName, digest: BlobDigest) -> Option<PulledPlugin> {
        let (found, signed) = (self.kept.find(digest, self.plugin_size_max)?, trust.wants_remote());
        let believed = !signed || trust.check(digest, &found.signatures).is_ok();
        believed.then(|| PulledPlugin { name: name.pinned(digest), bytes: found.plugin, signed })
    }

    /// Uploads a plugin, under the name's tag if it has one; `title` is its file's name.
    pub async fn push(
        &self,
        plugin: Bytes,
        title: &str,
        outline: &Outline,
        name: &RemoteName,
        access: Access,
    ) -> anyhow::Result<RemoteName> {
        ensure!(name.pin().is_none(), "{name}: a push makes the digest; leave it out");
        let pushing = || format!("pushing {name}");
        let packed = artifact::pack(&plugin, title, outline);
        let repository = self.repository(name, access).with_context(pushing)?;
        repository.put_blob(plugin).await.with_context(pushing)?;
        repository.put_blob(packed.config).await.with_context(pushing)?;
        let tag = name.tag().unwrap_or(DEFAULT_TAG);
        let digest =
            repository.put_manifest(tag, OCI_MANIFEST, packed.manifest).await.with_context(pushing)?;
        Ok(name.pinned(digest))
    }

    /// Signs a plugin, unless this key has done so. `true`: it has just been signed.
    pub async fn sign(&self, name: &RemoteName, key: &SigningKey, access: Access) -> anyhow::Result<bool> {
        let signing = || format!("signing {name}");
        let pin = name.pin().ok_or_else(|| {
            anyhow!("{name} names a tag, which may mean another plugin tomorrow: sign NAME@sha256:HEX, as push and pull print it")
        })?;
        let repository = self.repository(name, access).with_context(signing)?;
        let (_, manifest) = repository.root(THE_PLUGIN, OCI_MANIFEST).await.with_context(signing)?;
        Artifact::read(&manifest).with_context(signing)?;
        let (mut all, those) = signatures(&repository, pin).await.with_context(signing)?;
        let own = Trust::of(key)?;
        if own.check(pin, &those).is_ok() {
            return Ok(false);
        }
        ensure!(
            those.len() < SIGNATURES_MAX,
            "{name} has {SIGNATURES_MAX} signatures, and more are not looked at"
        );
        let payload = signature::payload(&name.repository(), pin);
        let signature = Signature { signature: key.sign(&payload)?, payload };
        all.add(&signature);
        let (config, manifest) = all.packed();
        for blob in [Bytes::from(signature.payload), config] {
            repository.put_blob(blob).await.with_context(signing)?;
        }
        repository.put_manifest(&signature::tag(pin), OCI_MANIFEST, manifest).await.with_context(signing)?;
        Ok(true)
    }

    /// With a client of its own: plugins are pulled so rarely that no connection would wait for the next.
    fn repository(&self, name: &RemoteName, access: Access) -> anyhow::Result<Repository> {
        let client = Client::new(self.config.clone()).context("preparing policy.registry")?;
        Ok(client.repository(name.reference(), access)?)
    }
}

/// What says that it signs this manifest: as it stands there, and what of it can be read.
async fn signatures(
    repository: &Repository,
    signed: BlobDigest,
) -> anyhow::Result<(Signatures, Vec<Signature>)> {
    let tag = signature::tag(signed);
    let manifest = match repository.tagged("its signatures", &tag, OCI_MANIFEST).await {
        Ok((_, manifest)) => manifest,
        Err(Error::NotFound { .. }) => return Ok((Signatures::default(), Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let all = Signatures::read(&manifest).with_context(|| format!("reading {tag}"))?;
    let mut read = Vec::new();
    for (descriptor, signature) in all.listed() {
        let payload = payload(repository, &descriptor).await?;
        read.push(Signature { payload: payload.to_vec(), signature });
    }
    Ok((all, read))
}

async fn payload(repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    repository.whole_blob("the payload of a signature", descriptor, PAYLOAD_MAX).await
}
