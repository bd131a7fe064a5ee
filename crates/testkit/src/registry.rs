//! The reference OCI registry (Debian's `docker-registry`), filled by `skopeo`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::Server;
use crate::port;

/// How often a start is tried when another process took the port in between.
const START_ATTEMPTS: usize = 5;

/// Who may read a private registry: a user, and a password that stands nowhere else.
pub const USER: &str = "user";
pub const PASSWORD: &str = "tr0ub4dor-and-3";
/// bcrypt of [`PASSWORD`].
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuubykqqFg10fT4L0Oeh6o3L/cjvafm90G";

/// A registry of its own on loopback, speaking plain HTTP; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    server: Server,
    port: u16,
    folder: tempfile::TempDir,
    options: Options,
}

#[derive(Clone, Debug, Default)]
struct Options {
    htpasswd: Option<String>,
    listener: Option<Listener>,
}

/// Who is told of everything that happens in the registry, and what is shown there.
#[derive(Clone, Debug)]
pub struct Listener {
    pub url: String,
    pub authorization: String,
}

impl Registry {
    pub fn start() -> anyhow::Result<Registry> {
        Registry::start_with(None)
    }

    /// A registry that lets in nobody but [`USER`].
    pub fn start_private() -> anyhow::Result<Registry> {
        Registry::start_with(Some(format!("{USER}:{HASH}\n")))
    }

    /// Lets in nobody any more, as if every credential had expired.
    pub fn lock_out(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.options.htpasswd = Some(format!("another-{USER}:{HASH}\n"));
        self.restart()
    }

    /// Lets [`USER`] in again.
    pub fn let_in(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.options.htpasswd = Some(format!("{USER}:{HASH}\n"));
        self.restart()
    }

    /// A registry that asks for basic authentication; `htpasswd` holds `user:bcrypt-hash` lines.
    pub fn start_with(htpasswd: Option<String>) -> anyhow::Result<Registry> {
        Registry::start_as(Options { htpasswd, listener: None })
    }

    /// A registry that sends notifications.
    pub fn start_telling(listener: Listener) -> anyhow::Result<Registry> {
        Registry::start_as(Options { htpasswd: None, listener: Some(listener) })
    }

    fn start_as(options: Options) -> anyhow::Result<Registry> {
        let folder = tempfile::tempdir()?;
        let mut failure = None;
        for _ in 0..START_ATTEMPTS {
            let port = port::free()?;
            match serve(folder.path(), port, &options) {
                Ok(server) => return Ok(Registry { server, port, folder, options }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no attempt to start docker-registry was made")?)
    }

    /// `127.0.0.1:PORT`, the host part of a reference.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Copies the image `source` (in skopeo's words, `oci:DIR:TAG`) here as `name`.
    pub fn push(&self, source: &str, name: &str) -> anyhow::Result<String> {
        let reference = self.reference(name);
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", source]);
        if self.options.htpasswd.is_some() {
            command.args(["--dest-creds", &format!("{USER}:{PASSWORD}")]);
        }
        let output = command
            .arg(format!("docker://{reference}"))
            .output()
            .context("starting skopeo (Debian's package `skopeo`)")?;
        if !output.status.success() {
            bail!("copying {source} to {reference}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(reference)
    }

    /// Changes a byte of what it stores under this digest (without `sha256:`), and forgets nothing else.
    pub fn tamper(&self, hex: &str) -> anyhow::Result<()> {
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        let file = blobs.join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let last = bytes.last_mut().context("an empty blob")?;
        *last ^= 1;
        fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = serve(self.folder.path(), self.port, &self.options)?;
        Ok(())
    }

    /// All requests so far, a line each.
    pub fn log(&self) -> String {
        self.server.log()
    }
}

fn serve(folder: &Path, port: u16, options: &Options) -> anyhow::Result<Server> {
    let data = folder.join("data");
    let mut config = serde_json::json!({
        "version": 0.1,
        "log": { "level": "info", "accesslog": { "disabled": false } },
        "storage": { "filesystem": { "rootdirectory": data }, "delete": { "enabled": true } },
        "http": { "addr": format!("127.0.0.1:{port}") },
    });
    if let Some(Listener { url, authorization }) = &options.listener {
        let headers = serde_json::json!({ "Authorization": [authorization] });
        let endpoint = serde_json::json!({ "name": "tests", "url": url, "headers": headers,
            "timeout": "10s", "threshold": 3, "backoff": "500ms" });
        config["notifications"] = serde_json::json!({ "endpoints": [endpoint] });
    }
    if let Some(lines) = &options.htpasswd {
        let path = folder.join("htpasswd");
        fs::write(&path, lines)?;
        config["auth"] = serde_json::json!({ "htpasswd": { "realm": "sluice tests", "path": path } });
    }
    // JSON is YAML.
    let path = folder.join("config.yml");
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&path);
    let mut server =
        Server::spawn(command, &folder.join("registry.log"), "Debian's package `docker-registry`")?;
    server.wait_for_port("docker-registry", port)?;
    Ok(server)
}
