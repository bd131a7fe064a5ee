//! What happens where there is not enough for all: of a fetcher's turns, of a node's disk.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

/// What a registry says of an image, but its layer's bytes, which never come: its import goes on for ever.
struct Stalling {
    port: u16,
    /// The layer was asked for.
    asked: Arc<AtomicBool>,
}

impl Stalling {
    fn start() -> anyhow::Result<Stalling> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let digest = |bytes: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let layer = digest(b"never");
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        });
        let config = config.to_string();
        let media = "application/vnd.oci.image";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": format!("{media}.manifest.v1+json"),
            "config": {"mediaType": format!("{media}.config.v1+json"), "digest": digest(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": format!("{media}.layer.v1.tar"), "digest": layer, "size": 1_000_000}],
        });
        let manifest = manifest.to_string();
        let asked = Arc::new(AtomicBool::new(false));
        let layer_asked = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (manifest, config, layer) = (manifest.clone(), config.clone(), layer.clone());
                let (media, asked) = (media.to_owned(), layer_asked.clone());
                thread::spawn(move || {
                    let found = |path: &str| match path {
                        path if path.contains("/manifests/") => {
                            (format!("{media}.manifest.v1+json"), manifest.len(), manifest.clone())
                        }
                        path if path.contains(&layer) => {
                            asked.store(true, Ordering::Relaxed);
                            (media.clone(), 1_000_000, String::new())
                        }
                        path if path.contains("/blobs/") => (media.clone(), config.len(), config.clone()),
                        _ => ("application/json".to_owned(), 2, "{}".to_owned()),
                    };
                    serve(&stream, found)
                });
            }
        });
        Ok(Stalling { port, asked })
    }
}

/// Until the other side goes away. A body that is shorter than it says is waited for.
fn serve(stream: &TcpStream, found: impl Fn(&str) -> (String, usize, String)) -> anyhow::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        while !lines.next().context("a request that ends")??.is_empty() {}
        let (media, len, body) = found(request.split(' ').nth(1).context("a path")?);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {len}\r\n\r\n");
        let body = if request.starts_with("HEAD") { String::new() } else { body };
        (&mut &*stream).write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

#[test]
fn a_pull_is_an_ordinary_one_while_the_fetcher_has_others_to_import() -> anyhow::Result<()> {
    let stalling = Stalling::start()?;
    let mut node = Node::start(&Options {
        services: true,
        settings: vec!["frontend.import_queue_timeout=1s".to_owned()],
        fetcher: vec!["fetcher.limits.imports_at_once=1".to_owned()],
        ..Options::default()
    })?;
    let image = Numbered { files: 2, len: 1000, seed: 60 }.pull(&node, "before")?;
    assert!(node.status()?["images"].to_string().contains("/before"), "{image} does not stream");
    let reference = format!("127.0.0.1:{}/stalled:1", stalling.port);
    let nats = node.backend()?.nats.url();
    let mut importing = node
        .scratch()
        .command(["--nats", &nats, "import", "--plain-http", &reference])?
        .stderr(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    while !stalling.asked.load(Ordering::Relaxed) {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "the import does not begin");
        thread::sleep(Duration::from_millis(50));
    }
    let spec = testkit::ImageSpec::new([testkit::Tarball::new().file("only", b"queued").finish()]);
    let queued = node.push("queued", &spec)?;
    node.cri.pull(&queued)?;
    let told = node.scratch().succeed(["events", "--kind", "fallback", "--image", &queued])?;
    assert!(told.contains("not-imported-yet"), "{told}");
    importing.kill()?;
    importing.wait()?;
    Ok(())
}

#[test]
fn containers_that_need_more_than_the_disk_budget_read_on_and_it_is_told() -> anyhow::Result<()> {
    let settings = vec!["frontend.disk_budget=1MiB".to_owned()];
    let node = Node::start(&Options { services: true, settings, ..Options::default() })?;
    let numbered = Numbered { files: 8, len: 600_000, seed: 61 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..4)?;
    let begun = Instant::now();
    while !node.scratch().succeed(["events", "--kind", "degraded"])?.contains("frontend.disk_budget") {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "nobody is told: {}", node.sluice.log());
        thread::sleep(Duration::from_millis(200));
    }
    numbered.read_inside(&node, &container, 0..8)
}
