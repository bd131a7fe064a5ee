//! Nodes that enrol at once, as a group does that grows by itself: each with a key of its own, a token, and a connection over TLS.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use identity::{Own, Token, client};
use serde_json::{Value, json};
use testkit::port;

use crate::{Scratch, Secured};

const AT_ONCE: usize = 32;
/// A node that is told to come back does so.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);
const LIFE: Duration = Duration::from_secs(3_600);

pub(super) async fn measure(nodes: u32) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let mesh = Secured::start(&scratch)?;
    let port = port::free()?;
    let mut identity = mesh.service(&scratch, "identity", &[format!("identity.listen=127.0.0.1:{port}")])?;
    identity.server.wait_for_port("identity", port)?;
    let authority = mesh.set.authority()?.fingerprint();
    let (token, _) = mesh.set.tokens().make("gpu-*", &["default".to_owned()], LIFE, nodes, authority)?;
    let address = format!("https://127.0.0.1:{port}");
    let begun = Instant::now();
    let each = (0..nodes).map(|number| enroll(&scratch, &address, &token, format!("gpu-{number}")));
    let again: Vec<usize> = futures::stream::iter(each).buffer_unordered(AT_ONCE).try_collect().await?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(mesh.set.entries()?.len() > nodes as usize, "all are known");
    Ok(json!({
        "nodes": nodes,
        "seconds": seconds,
        "nodes_per_minute": f64::from(nodes) / seconds * 60.0,
        "told_to_come_back": again.iter().sum::<usize>(),
    }))
}

/// How often it was told to come back.
async fn enroll(scratch: &Scratch, address: &str, token: &Token, node: String) -> anyhow::Result<usize> {
    let own = Own::open(&scratch.path(&format!("nodes/{node}")))?;
    let mut last = None;
    for tries in 0..TRIES {
        match client::enroll(&own, address, token, &node).await {
            Ok(_) => return Ok(tries),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last.context("it was tried")?.context(format!("{node} does not get in")))
}
