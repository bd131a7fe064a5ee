//! Bucket servers that speak the protocols of S3 and of Azure's blob store.
//!
//! There is none here for Google's: the emulators that can be installed lack its XML listing.

use std::path::Path;
use std::process::Command;

use crate::Server;
use crate::port;

const BUCKET: &str = "sluice-test";
/// The name and key that every Azurite has, published with it.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Creates Azure's container, which its client library does not: one signed request.
const CREATE_CONTAINER: &str = r#"
import base64, email.utils, hashlib, hmac, sys, urllib.request
port, account, key, container = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
headers = f"x-ms-date:{date}\nx-ms-version:2021-12-02\n"
resource = f"/{account}/{account}/{container}\nrestype:container"
text = "PUT" + "\n" * 12 + headers + resource
mac = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
request = urllib.request.Request(
    f"http://127.0.0.1:{port}/{account}/{container}?restype=container", method="PUT", headers={
        "x-ms-date": date, "x-ms-version": "2021-12-02", "Content-Length": "0",
        "Authorization": f"SharedKey {account}:{base64.b64encode(mac).decode()}"})
urllib.request.urlopen(request)
"#;

/// A bucket server of its own, with one empty bucket; gone when dropped.
#[derive(Debug)]
pub struct Bucket {
    url: String,
    options: Vec<(String, String)>,
    _server: Server,
    _folder: tempfile::TempDir,
}

impl Bucket {
    /// One that speaks S3's protocol.
    pub fn s3() -> anyhow::Result<Bucket> {
        let folder = tempfile::tempdir()?;
        let port = port::free()?;
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let server = serve(command, folder.path(), port, "`./just test` installs it from PyPI's moto")?;
        let endpoint = format!("http://127.0.0.1:{port}");
        python(
            "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], method='PUT'))",
            &[&format!("{endpoint}/{BUCKET}")],
        )?;
        let options = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "test"),
            ("aws_secret_access_key", "test"),
        ];
        Ok(Bucket::new(format!("s3://{BUCKET}/sluice"), &options, server, folder))
    }

    /// One that speaks Azure's protocol.
    pub fn azure() -> anyhow::Result<Bucket> {
        let folder = tempfile::tempdir()?;
        let port = port::free()?;
        let mut command = Command::new("azurite-blob");
        command.args(["--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort"]);
        command.arg(port.to_string()).arg("-l").arg(folder.path());
        let server = serve(command, folder.path(), port, "`./just test` installs it from npm's azurite")?;
        python(CREATE_CONTAINER, &[&port.to_string(), AZURE_ACCOUNT, AZURE_KEY, BUCKET])?;
        let endpoint = format!("http://127.0.0.1:{port}/{AZURE_ACCOUNT}");
        let options = [
            ("azure_storage_endpoint", endpoint.as_str()),
            ("azure_allow_http", "true"),
            ("azure_storage_account_name", AZURE_ACCOUNT),
            ("azure_storage_account_key", AZURE_KEY),
        ];
        Ok(Bucket::new(format!("az://{BUCKET}/sluice"), &options, server, folder))
    }

    fn new(url: String, options: &[(&str, &str)], server: Server, folder: tempfile::TempDir) -> Bucket {
        let owned = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Bucket { url, options: owned.collect(), _server: server, _folder: folder }
    }

    /// As `store.url` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As `store.options` takes them.
    pub fn options(&self) -> &[(String, String)] {
        &self.options
    }
}

fn serve(command: Command, folder: &Path, port: u16, hint: &str) -> anyhow::Result<Server> {
    let mut server = Server::spawn(command, &folder.join("server.log"), hint)?;
    server.wait_for_port("bucket server", port)?;
    Ok(server)
}

fn python(script: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("python3").args(["-c", script]).args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
