//! `/readyz` says whether a service can work, and which part cannot; `/livez` only whether it lives.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use system_tests::{Scratch, binaries, metrics};
use testkit::{Nats, Server, port};

/// How long anything may take that is waited for: a probe, the client's way back to a server, a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// A service with an admin server, which is unready a second after a part failed.
struct Watched {
    name: &'static str,
    admin: u16,
    has_store: bool,
    _server: Server,
}

impl Watched {
    /// The binary `name`, or `sluice serve`.
    fn start(
        scratch: &Scratch,
        name: &'static str,
        has_store: bool,
        settings: &[String],
    ) -> anyhow::Result<Watched> {
        let admin = port::free()?;
        let shared = [format!("lifecycle.admin=127.0.0.1:{admin}"), "lifecycle.unready_after=1s".to_owned()];
        let mut command: Command = binaries::command(name)?;
        for setting in shared.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        if name == "sluice" {
            command.arg("--state").arg(scratch.path("node")).arg("serve");
        }
        let log = scratch.path(&format!("{name}-{admin}.log"));
        let mut server = Server::spawn(command, &log, "a binary of this workspace")?;
        server.wait_for_port(name, admin)?;
        Ok(Watched { name, admin, has_store, _server: server })
    }

    /// Waits until it is ready, or says of itself what contains `reason`.
    fn until(&self, reason: Option<&str>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let (status, body) = metrics::get(self.admin, "/readyz")?;
            ensure!(metrics::get(self.admin, "/livez")?.0 == 200, "{} is not alive", self.name);
            let said = match reason {
                None => status == 200,
                Some(reason) => status == 503 && body.contains(reason),
            };
            if said {
                let named = |line: &&str| reason.is_none_or(|reason| line.contains(reason));
                let lines = body.lines().filter(|line| !line.starts_with("warning: "));
                ensure!(lines.filter(named).count() == 1, "{}: not one line for it: {body}", self.name);
                return Ok(());
            }
            let what = reason.unwrap_or("ready");
            ensure!(begun.elapsed() < PATIENCE, "{}: {status} {body:?}, not {what:?}", self.name);
            sleep(POLL);
        }
    }

    /// Waits until it says what `sluice check` would warn of.
    fn warns(&self, of: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let body = metrics::get(self.admin, "/readyz")?.1;
            if body.lines().any(|line| line.starts_with("warning: ") && line.contains(of)) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{}: {body:?} does not warn of {of}", self.name);
            sleep(POLL);
        }
    }

    /// What its gauges say at last.
    fn shows(&self, gauge: &str, value: f64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while metrics::sum(self.admin, gauge)? != value {
            ensure!(begun.elapsed() < PATIENCE, "{}: {gauge} is not {value}", self.name);
            sleep(POLL);
        }
        Ok(())
    }
}

fn store_at(store: &Path) -> String {
    format!("store.url={}", store.display())
}

/// Every service of a mesh, each as a process of its own, and a whole node in one.
fn mesh(scratch: &Scratch, nats: &Nats, store: &Path) -> anyhow::Result<Vec<Watched>> {
    let key = scratch.succeed(["config", "key"])?;
    let keys = |section: &str| format!("{section}trusted_keys=[\"{}\"]", key.trim());
    let (url, store) = (format!("nats.url={}", nats.url()), store_at(store));
    let path = |name: &str| scratch.path(name).display().to_string();
    let signing = format!("fetcher.signing_key_file={}", scratch.state().join("fetcher.key").display());
    let state = format!("frontend.state={}", path("frontend"));
    let socket = format!("frontend.socket={}", path("frontend.sock"));
    Ok(vec![
        Watched::start(scratch, "fetcher", true, &[url.clone(), store.clone(), signing])?,
        Watched::start(scratch, "cache", true, &[url.clone(), store.clone(), keys("cache.")])?,
        Watched::start(
            scratch,
            "frontend",
            true,
            &[url.clone(), store.clone(), state, socket, keys("frontend.")],
        )?,
        Watched::start(scratch, "policy", false, std::slice::from_ref(&url))?,
        Watched::start(scratch, "sluice", true, &[url, store])?,
    ])
}

#[test]
fn each_service_knows_of_its_bus_and_its_store() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (mut nats, store) = (Nats::start()?, scratch.path("mesh-store"));
    let services = mesh(&scratch, &nats, &store)?;
    for service in &services {
        service.until(None)?;
        // It has no keys.
        service.warns("sluice keys init")?;
        service.shows("sluice_bus_connected", 1.0)?;
    }
    nats.kill()?;
    for service in &services {
        service.until(Some("bus: no connection to NATS at nats://127.0.0.1:"))?;
        service.shows("sluice_bus_connected", 0.0)?;
    }
    nats.restart()?;
    for service in &services {
        service.until(None)?;
        service.shows("sluice_bus_connected", 1.0)?;
    }
    // As when its file system is no longer mounted.
    let aside = scratch.path("aside");
    fs::rename(&store, &aside)?;
    for service in services.iter().filter(|service| service.has_store) {
        service.until(Some("store: open store "))?;
        service.shows("sluice_store_reachable", 0.0)?;
    }
    fs::rename(&aside, &store)?;
    for service in services.iter().filter(|service| service.has_store) {
        service.until(None)?;
        service.shows("sluice_store_reachable", 1.0)?;
    }
    Ok(())
}

#[test]
fn what_was_never_right_is_told_from_the_start() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let nats = Nats::start()?;
    let nowhere = port::free()?;
    let (right, wrong) = (format!("nats.url={}", nats.url()), format!("nats.url=nats://127.0.0.1:{nowhere}"));
    let key = format!("fetcher.signing_key_file={}", scratch.path("fetcher.key").display());
    let store = store_at(&scratch.path("mesh-store"));
    let fetcher = Watched::start(&scratch, "fetcher", true, &[wrong, store.clone(), key.clone()])?;
    fetcher.until(Some(&format!("bus: no connection to NATS at nats://127.0.0.1:{nowhere}")))?;

    // A bucket where nobody answers.
    let options = format!(
        "store.options={{ aws_endpoint = \"http://127.0.0.1:{nowhere}\", aws_allow_http = \"true\", aws_region = \"r\", \
         aws_access_key_id = \"test\", aws_secret_access_key = \"test\" }}"
    );
    let bucket = ["store.url=s3://bucket/sluice".to_owned(), options];
    let settings = [[right.clone(), key].as_slice(), &bucket].concat();
    let fetcher = Watched::start(&scratch, "fetcher", true, &settings)?;
    fetcher.until(Some("store: "))?;

    let state = format!("frontend.state={}", scratch.path("frontend").display());
    let socket = format!("frontend.socket={}", scratch.path("frontend.sock").display());
    let frontend = Watched::start(&scratch, "frontend", false, &[right.clone(), state, socket])?;
    frontend.until(Some("trusted keys: frontend.trusted_keys is empty"))?;
    let cache = Watched::start(&scratch, "cache", true, &[right, store])?;
    cache.until(Some("trusted keys: cache.trusted_keys is empty"))
}

#[test]
fn a_node_alone_has_a_bus_and_knows_of_its_store() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let node = Watched::start(&scratch, "sluice", true, &[])?;
    node.until(None)?;
    node.shows("sluice_bus_connected", 1.0)?;
    let (store, aside) = (scratch.path("node/store"), scratch.path("aside"));
    fs::rename(&store, &aside)?;
    node.until(Some("store: open store "))?;
    fs::rename(&aside, &store)?;
    node.until(None)
}
