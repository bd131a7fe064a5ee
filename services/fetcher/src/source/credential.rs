//! Credentials: what a caller brought, or what the docker config knows for a host.
//!
//! The docker config is read when a registry first asks, in the order docker has: `credHelpers`,
//! `auths`, `credsStore`. Helpers are processes of others: they are given a time limit and are
//! killed after it. Nothing here prints a secret, `Debug` included.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::SourceConfig;

/// A helper may ask a cloud's API, so seconds are normal; one that asks a person is of no use here.
const HELPER_MAX: Duration = Duration::from_secs(30);
/// The user name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers print, with a failure, when they know nothing of a host.
const HELPER_KNOWS_NOTHING: &str = "credentials not found";

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Basic { username, .. } => write!(formatter, "Basic({username:?}, redacted)"),
            Credential::IdentityToken(_) => formatter.write_str("IdentityToken(redacted)"),
        }
    }
}

impl Credential {
    /// None when the message is empty.
    pub fn from_proto(credential: proto::Credential) -> Option<Credential> {
        use proto::credential::Kind;
        match credential.kind? {
            Kind::Basic(basic) => {
                Some(Credential::Basic { username: basic.username, password: basic.password })
            }
            Kind::IdentityToken(token) => Some(Credential::IdentityToken(token)),
        }
    }
}

/// What of docker's `config.json` is about credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// base64 of `user:password`
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What the docker config has for `host`. An error names what is wrong with the config or the
/// helper; that the host is not in it is none.
pub(super) async fn look_up(config: &SourceConfig, host: &str) -> anyhow::Result<Option<Credential>> {
    let Some(path) = config_path(config) else { return Ok(None) };
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let docker: DockerConfig =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    for key in keys(host) {
        if let Some(helper) = docker.cred_helpers.get(key).filter(|helper| !helper.is_empty()) {
            return ask_helper(config, helper, key).await;
        }
    }
    if let Some(auth) = docker.auth(host) {
        let found = auth.credential().with_context(|| format!("reading {host} in {}", path.display()))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    if let Some(store) = docker.creds_store.filter(|store| !store.is_empty()) {
        for key in keys(host) {
            if let Some(found) = ask_helper(config, &store, key).await? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn config_path(config: &SourceConfig) -> Option<PathBuf> {
    let path = config
        .docker_config
        .clone()
        .or_else(|| std::env::var_os("DOCKER_CONFIG").map(PathBuf::from))
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))?;
    Some(if path.is_dir() { path.join("config.json") } else { path })
}

/// How docker spells a host in its config. Docker Hub's key is older than its name.
fn keys(host: &str) -> Vec<&str> {
    match host {
        "docker.io" => vec!["https://index.docker.io/v1/", "index.docker.io", "docker.io"],
        host => vec![host],
    }
}

impl DockerConfig {
    fn auth(&self, host: &str) -> Option<&Auth> {
        let exact = keys(host).into_iter().find_map(|key| self.auths.get(key));
        exact.or_else(|| self.auths.iter().find(|(key, _)| host_of(key) == host).map(|(_, auth)| auth))
    }
}

/// `https://host/v1/` as older clients wrote it, without what is not the host.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    rest.map_or(key, |rest| rest.split('/').next().unwrap_or(rest))
}

impl Auth {
    fn credential(&self) -> anyhow::Result<Option<Credential>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::IdentityToken(token.clone())));
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credential::Basic { username: username.clone(), password: password.clone() }));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        // The decoder's own message would quote a part of the secret.
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = text
            .as_deref()
            .and_then(|text| text.split_once(':'))
            .context("auth is not base64 of user:password")?;
        // Docker pads the password with zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credential::Basic { username: username.to_owned(), password }))
    }
}

/// Speaks the docker-credential-helpers protocol: the host in, a JSON object out.
async fn ask_helper(config: &SourceConfig, helper: &str, key: &str) -> anyhow::Result<Option<Credential>> {
    let program = find_helper(config, helper)?;
    let context = || format!("asking {} for {key}", program.display());
    let talk = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read is not wrong yet: what it answers counts.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_MAX, talk).await {
        Ok(output) => output.with_context(context)?,
        Err(_) => bail!("{}: no answer within {HELPER_MAX:?}", context()),
    };
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if said.contains(HELPER_KNOWS_NOTHING) {
            return Ok(None);
        }
        bail!("{}: {}: {}", context(), output.status, super::document::brief(said.trim()));
    }
    // Not the parser's message: it could quote the secret.
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .ok()
        .with_context(|| format!("{}: its answer is not understood", context()))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credential::IdentityToken(answer.secret)
    } else {
        Credential::Basic { username: answer.username, password: answer.secret }
    }))
}

/// The helper's file. Its name comes from a config file, so it must be a mere name.
fn find_helper(config: &SourceConfig, helper: &str) -> anyhow::Result<PathBuf> {
    let plain = helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    ensure!(plain, "{helper:?} is not a credential helper's name");
    let program = format!("docker-credential-{helper}");
    let folders = config.helper_path.clone().map(OsString::from).or_else(|| std::env::var_os("PATH"));
    std::env::split_paths(&folders.unwrap_or_default())
        .map(|folder| folder.join(&program))
        .find(|path| path.is_file())
        .with_context(|| format!("the credential helper {program} is not installed"))
}

#[cfg(test)]
mod tests;
