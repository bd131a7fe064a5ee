//! `sluice policy sign` and `keygen`: who vouches for a plugin.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use policy::{Registries, RemoteName, SigningKey};

use super::super::Context;
use super::is_remote;
use crate::render;

/// A key's file, in bytes.
const KEY_MAX: u64 = 64 * 1024;

/// Sign a plugin, for services whose policy.trust.public_keys name the key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy sign oci://registry.example/team/mine@sha256:… --key mine.pem
  sluice policy sign mine.wasm --key mine.pem                        for policy.trust.required = \"all\"

In a registry the signature is laid out as cosign does it, so `cosign verify --key mine.pub` understands it, and
what `cosign sign --key` signed is believed as well. A file's signature is written beside it, as PLUGIN.sig.")]
pub struct SignArgs {
    /// oci://HOST[:PORT]/REPOSITORY[:TAG]@sha256:HEX, as push and pull print it, or a file
    #[arg(value_name = "PLUGIN")]
    plugin: PathBuf,
    /// The private key: ECDSA on P-256, as PEM; `sluice policy keygen` makes one
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Make a key to sign plugins with: NAME.pem, which is secret, and NAME.pub for everybody
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sluice policy keygen mine && sluice policy sign oci://registry.example/team/mine@sha256:… --key mine.pem

Then in sluice.toml:  policy.trust.public_keys = [\"/etc/sluice/mine.pub\"]")]
pub struct KeygenArgs {
    /// Of both files, without their ending
    #[arg(value_name = "NAME", default_value = "policy")]
    name: PathBuf,
}

pub(super) async fn run(context: &Context, args: SignArgs) -> anyhow::Result<ExitCode> {
    let key = read_key(&args.key)?;
    let config = &context.settings.policy;
    let Some(name) = is_remote(&args.plugin) else {
        let plugin = policy::read_plugin(&args.plugin, &config.limits)?;
        let file = policy::signature_file(&args.plugin);
        let signature = policy::sign_file(&plugin, &key)?;
        fs::write(&file, signature).with_context(|| format!("write {}", file.display()))?;
        render::line(&file.display().to_string())?;
        return Ok(ExitCode::SUCCESS);
    };
    let name: RemoteName = name.parse()?;
    let signed = Registries::new(config)?.sign(&name, &key, context.requests()?.access()).await?;
    if !signed {
        context.progress().note("it is signed with this key already");
    }
    render::line(&name.to_string())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn keygen(args: &KeygenArgs) -> anyhow::Result<ExitCode> {
    let file = |ending: &str| {
        let mut name = args.name.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (private, public) = (file(".pem"), file(".pub"));
    ensure!(!public.exists(), "{} is there already: nothing was made", public.display());
    let key = SigningKey::generate()?;
    write_new(&private, 0o600, &key.private_pem()?)?;
    write_new(&public, 0o644, &key.public_pem()?)?;
    render::line(&format!("{}  the private key: whoever has it can sign", private.display()))?;
    render::line(&format!("{}  the public key, for policy.trust.public_keys", public.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_new(file: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already: a key is never overwritten", file.display())
        }
        opened => opened.with_context(|| format!("write {}", file.display()))?,
    };
    opened.write_all(text.as_bytes()).with_context(|| format!("write {}", file.display()))
}

pub(super) fn read_key(file: &Path) -> anyhow::Result<SigningKey> {
    let reading = || format!("read the key {}", file.display());
    let mut text = String::new();
    let opened = fs::File::open(file).with_context(reading)?;
    opened.take(KEY_MAX).read_to_string(&mut text).with_context(reading)?;
    SigningKey::read(&text).with_context(reading)
}
