//! A registry that tells whatever a test has it tell: manifests of images whose layers it does not have, and that it has them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::layout::sha256;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Longer lines and bodies are no request of ours, in bytes.
const REQUEST_MAX: u64 = 1024 * 1024;
/// After this a request that is held goes on: a test that failed must not hang.
const HELD_MAX: Duration = Duration::from_secs(120);

/// A layer as a manifest and a config name it, and its blob, if the registry has that.
#[derive(Clone, Debug)]
pub struct ClaimedLayer {
    pub digest: String,
    pub size: usize,
    pub diff_id: String,
    pub blob: Option<Vec<u8>>,
}

impl ClaimedLayer {
    /// A plain tar that is there.
    pub fn honest(tar: &[u8]) -> ClaimedLayer {
        ClaimedLayer { blob: Some(tar.to_vec()), ..ClaimedLayer::known(tar) }
    }

    /// A plain tar of which its digest and size are known.
    pub fn known(tar: &[u8]) -> ClaimedLayer {
        ClaimedLayer { digest: sha256(tar), size: tar.len(), diff_id: sha256(tar), blob: None }
    }
}

/// Speaks plain HTTP on loopback; gone when dropped.
#[derive(Debug)]
pub struct LyingRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether it says that it has every blob it is asked about.
    boasts: bool,
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    requests: Mutex<Vec<String>>,
    held: Mutex<Option<String>>,
    released: Condvar,
    ended: AtomicBool,
}

impl LyingRegistry {
    /// `boasts`: it says that it has every blob it is asked about, in every repository.
    pub fn start(boasts: bool) -> anyhow::Result<LyingRegistry> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { boasts, ..Shared::default() });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, serving.clone()) else { continue };
                // Who went away needs no answer.
                std::thread::spawn(move || shared.answer(&stream).ok());
            }
        });
        Ok(LyingRegistry { address, shared })
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Publishes an image; its manifest's digest.
    pub fn publish(&self, repository: &str, tag: &str, layers: &[ClaimedLayer]) -> String {
        let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let describe =
            |layer: &ClaimedLayer| json!({ "mediaType": LAYER, "digest": layer.digest, "size": layer.size });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": sha256(&config), "size": config.len() },
            "layers": layers.iter().map(describe).collect::<Vec<Value>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = sha256(&manifest);
        let at = |kind: &str, name: &str| format!("/v2/{repository}/{kind}/{name}");
        self.put(&at("blobs", &sha256(&config)), "application/octet-stream", config);
        for layer in layers {
            if let Some(blob) = &layer.blob {
                self.put(&at("blobs", &layer.digest), "application/octet-stream", blob.clone());
            }
        }
        for name in [tag, &digest] {
            self.put(&at("manifests", name), MANIFEST, manifest.clone());
        }
        digest
    }

    fn put(&self, path: &str, media_type: &str, bytes: Vec<u8>) {
        lock(&self.shared.content).insert(path.to_owned(), (media_type.to_owned(), bytes));
    }

    /// All requests so far: `METHOD PATH`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// How many of them begin with `method` and hold `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.requests().iter().filter(|asked| asked.starts_with(method) && asked.contains(part)).count()
    }

    /// Holds back the answers to what is got from paths with `part` in them.
    pub fn hold(&self, part: &str) {
        *lock(&self.shared.held) = Some(part.to_owned());
    }

    pub fn release(&self) {
        *lock(&self.shared.held) = None;
        self.shared.released.notify_all();
    }
}

impl Shared {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.take(REQUEST_MAX));
        let mut first = String::new();
        lines.read_line(&mut first)?;
        let mut line = String::new();
        while lines.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        lock(&self.requests).push(format!("{method} {path}"));
        if method == "GET" {
            let held = lock(&self.held);
            let is_held =
                |held: &mut Option<String>| held.as_ref().is_some_and(|part| path.contains(part.as_str()));
            drop(self.released.wait_timeout_while(held, HELD_MAX, is_held));
        }
        let content = lock(&self.content).get(path).cloned();
        let boasted = || (self.boasts && method == "HEAD" && path.contains("/blobs/")).then(Default::default);
        let (status, (media_type, bytes)) = match content.or_else(boasted) {
            Some(content) => ("200 OK", content),
            None => (
                "404 Not Found",
                ("application/json".to_owned(), br#"{"errors":[{"code":"UNKNOWN"}]}"#.to_vec()),
            ),
        };
        let length = bytes.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )?;
        if method != "HEAD" {
            stream.write_all(&bytes)?;
        }
        stream.flush()
    }
}

impl Drop for LyingRegistry {
    fn drop(&mut self) {
        self.release();
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the one who listens.
        drop(TcpStream::connect(self.address));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
