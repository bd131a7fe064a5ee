//! A real API server of Kubernetes with its etcd: no kubelet, no controllers. `./just test-kubernetes` builds both, which takes minutes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::{Certificates, Server, port, tools};

/// Tried in one version.
const RELEASE: &str = "kubernetes-1.36";
const HINT: &str = "`./just test-kubernetes` builds it";

/// Who may do everything.
pub const ADMIN: &str = "admin-token";

/// Speaks TLS on loopback; gone when dropped.
#[derive(Debug)]
pub struct ApiServer {
    server: Server,
    _etcd: Server,
    arguments: Vec<String>,
    port: u16,
    certificates: Certificates,
    folder: tempfile::TempDir,
}

impl ApiServer {
    /// `users`: names, whose tokens are `NAME-token` and who may do nothing yet. `more`: arguments of the server.
    pub fn start(users: &[&str], more: &[&str]) -> anyhow::Result<ApiServer> {
        let folder = tempfile::tempdir()?;
        let certificates = Certificates::make(&folder.path().join("tls"))?;
        let (etcd_url, etcd) = start_etcd(folder.path())?;
        let port = port::free()?;
        let tokens = folder.path().join("tokens.csv");
        let lines = users.iter().map(|user| format!("{user}-token,{user},{user}\n"));
        let lines: String = [format!("{ADMIN},admin,1,system:masters\n")].into_iter().chain(lines).collect();
        std::fs::write(&tokens, lines)?;
        let (own, key) = (certificates.server.display(), certificates.server_key.display());
        let mut arguments = vec![
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={own}"),
            format!("--tls-private-key-file={key}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--token-auth-file={}", tokens.display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={own}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let server = serve(&arguments, folder.path())?;
        let mut started = ApiServer { server, _etcd: etcd, arguments, port, certificates, folder };
        started.listening()?;
        Ok(started)
    }

    /// `https://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Whose certificate it shows.
    pub fn authority(&self) -> &Path {
        &self.certificates.ca
    }

    /// A configuration of whoever has this token.
    pub fn kubeconfig(&self, token: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("{token}.kubeconfig"));
        let cluster =
            serde_json::json!({ "server": self.url(), "certificate-authority": self.certificates.ca });
        write_kubeconfig(&path, &cluster, token)?;
        Ok(path)
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    /// Starts it again, with all that it kept.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = serve(&self.arguments, self.folder.path())?;
        self.listening()
    }

    pub fn log(&self) -> String {
        self.server.log()
    }

    fn listening(&mut self) -> anyhow::Result<()> {
        self.server.wait_for_port("kube-apiserver", self.port)
    }
}

/// For a client of `cluster`, an object of a kubeconfig, with this token.
pub fn write_kubeconfig(path: &Path, cluster: &serde_json::Value, token: &str) -> anyhow::Result<()> {
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": cluster }],
        "users": [{ "name": "it", "user": { "token": token } }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("writing {}", path.display()))
}

fn program(name: &str) -> PathBuf {
    tools().join(RELEASE).join("bin").join(name)
}

fn serve(arguments: &[String], folder: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(program("kube-apiserver"));
    command.args(arguments);
    Server::spawn(command, &folder.join("api.log"), HINT)
}

fn start_etcd(folder: &Path) -> anyhow::Result<(String, Server)> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (port, peers) = (port::free()?, url(port::free()?));
    let clients = url(port);
    let mut command = Command::new(program("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd")).args([
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--unsafe-no-fsync".to_owned(),
    ]);
    let mut server = Server::spawn(command, &folder.join("etcd.log"), HINT)?;
    server.wait_for_port("etcd", port)?;
    Ok((clients, server))
}
