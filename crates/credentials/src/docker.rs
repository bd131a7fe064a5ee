//! Docker's `config.json` and its credential helpers.
//!
//! In the order that docker has: `credHelpers`, `auths`, `credsStore`. Read each time it is asked for something: people
//! log in while we run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::program::{Program, brief, is_plain_name};
use crate::{Credential, basic_of};

/// A helper may ask a cloud's API, so seconds are normal; one that asks a person is of no use here.
const HELPER_MAX: Duration = Duration::from_secs(30);
/// The user name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers print, with a failure, when they know nothing of a host.
const HELPER_KNOWS_NOTHING: &str = "credentials not found";

/// Where docker's configuration and its helpers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// A `config.json`, or the folder that holds it. None: `$DOCKER_CONFIG`, then `~/.docker`.
    pub config: Option<PathBuf>,
    /// Where `docker-credential-*` are looked for, like `PATH`. None: `PATH`.
    pub helper_path: Option<String>,
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
pub async fn look_up(places: &Places, host: &str) -> anyhow::Result<Option<Credential>> {
    let Some(path) = config_path(places) else { return Ok(None) };
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let docker: DockerConfig =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    for key in keys(host) {
        if let Some(helper) = docker.cred_helpers.get(key).filter(|helper| !helper.is_empty()) {
            return ask_helper(places, helper, key).await;
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
            if let Some(found) = ask_helper(places, &store, key).await? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn config_path(places: &Places) -> Option<PathBuf> {
    let path = places
        .config
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
pub(crate) fn host_of(key: &str) -> &str {
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
        basic_of(auth).map(Some)
    }
}

/// Speaks the docker-credential-helpers protocol: the host in, a JSON object out.
async fn ask_helper(places: &Places, helper: &str, key: &str) -> anyhow::Result<Option<Credential>> {
    let file = find_helper(places, helper)?;
    let context = || format!("asking {} for {key}", file.display());
    let program = Program { file: file.clone(), arguments: vec!["get".to_owned()], environment: Vec::new() };
    let output = program.run(key.as_bytes(), HELPER_MAX).await.with_context(context)?;
    if !output.succeeded {
        let said = [output.answer, output.errors].concat();
        let said = String::from_utf8_lossy(&said);
        if said.contains(HELPER_KNOWS_NOTHING) {
            return Ok(None);
        }
        bail!("{}: it failed: {}", context(), brief(said.trim()));
    }
    // Not the parser's message: it could quote the secret.
    let answer: HelperAnswer = serde_json::from_slice(&output.answer)
        .ok()
        .with_context(|| format!("{}: its answer is not understood", context()))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credential::IdentityToken(answer.secret)
    } else {
        Credential::Basic { username: answer.username, password: answer.secret }
    }))
}

/// The helper's file. Its name comes from a config file, so it must be a mere name.
fn find_helper(places: &Places, helper: &str) -> anyhow::Result<PathBuf> {
    ensure!(is_plain_name(helper), "{helper:?} is not a credential helper's name");
    let program = format!("docker-credential-{helper}");
    let folders = places.helper_path.clone().map(OsString::from).or_else(|| std::env::var_os("PATH"));
    std::env::split_paths(&folders.unwrap_or_default())
        .map(|folder| folder.join(&program))
        .find(|path| path.is_file())
        .with_context(|| format!("the credential helper {program} is not installed"))
}

#[cfg(test)]
mod tests;
