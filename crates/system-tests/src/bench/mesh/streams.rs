//! A stream of chunks that the cache has in memory, and what checking one request for a chunk costs it.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use image::Digest;
use proto::chunks_request::Priority;
use proto::content_client::ContentClient;
use proto::{ChunksRequest, Signed};
use serde_json::{Value, json};
use store::verify;
use tonic::transport::Channel;

use super::side::{Side, until, with_grant};
use super::{Round, sides};
use crate::mesh::Link;
use crate::noise;

/// As chunks of large files are: half a megabyte, of which half compresses away.
const CHUNKS: u64 = 256;
const CHUNK_LEN: usize = 512 * 1024;
/// How often a round reads all of them.
const TIMES: usize = 4;
/// A link that no processor of this machine fills.
const LINK: [&str; 4] = ["--rtt", "1ms", "--bandwidth", "1Gbit"];
/// Names in the map of the image whose grant is checked.
const NAMES: u32 = 100_000;
/// Requests for one chunk each, of a round.
const REQUESTS: usize = 2_000;

struct Reader {
    side: Side,
    content: ContentClient<Channel>,
    grant: Signed,
}

/// Stored bytes a second, and seconds of the cache's processor for a gigabyte.
pub(super) async fn measure(rounds: usize) -> anyhow::Result<Value> {
    let chunks = (0..CHUNKS).map(chunk).collect::<anyhow::Result<Vec<_>>>()?;
    let (off, on) = (
        Reader::start(Side::off(None, &[])?, &chunks).await?,
        Reader::start(Side::on(None, &[])?, &chunks).await?,
    );
    let digests: Vec<Digest> = chunks.iter().map(|(digest, _)| *digest).collect();
    let links = [Link::start(off.side.cache_port, &LINK)?, Link::start(on.side.cache_port, &LINK)?];
    let through = [off.through(&links[0])?, on.through(&links[1])?];
    let stored: usize = chunks.iter().map(|(_, stored)| stored.len()).sum();
    Ok(json!({
        "stored_bytes_of_a_round": stored * TIMES,
        "loopback": compare([&off, &on], &digests, rounds, Checked::No).await?,
        "loopback_checked": compare([&off, &on], &digests, rounds, Checked::Yes).await?,
        "one_gigabit": compare([&through[0], &through[1]], &digests, rounds.min(7), Checked::Yes).await?,
    }))
}

/// Whether chunks are inflated and hashed as they come, as a node does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    No,
    Yes,
}

trait Asker {
    fn side(&self) -> &Side;
    fn content(&self) -> ContentClient<Channel>;
    fn grant(&self) -> &Signed;
}

/// One that stands behind a link.
struct Far<'a> {
    reader: &'a Reader,
    content: ContentClient<Channel>,
}

impl Asker for Reader {
    fn side(&self) -> &Side {
        &self.side
    }

    fn content(&self) -> ContentClient<Channel> {
        self.content.clone()
    }

    fn grant(&self) -> &Signed {
        &self.grant
    }
}

impl Asker for Far<'_> {
    fn side(&self) -> &Side {
        &self.reader.side
    }

    fn content(&self) -> ContentClient<Channel> {
        self.content.clone()
    }

    fn grant(&self) -> &Signed {
        &self.reader.grant
    }
}

impl Reader {
    /// With everything in the cache's memory, and with an allowance.
    async fn start(side: Side, chunks: &[(Digest, Vec<u8>)]) -> anyhow::Result<Reader> {
        let grant = side.keep(chunks, &[]).await?;
        let reader = Reader { content: side.content(side.cache_port)?, side, grant };
        let digests: Vec<Digest> = chunks.iter().map(|(digest, _)| *digest).collect();
        until("the cache serves and counts", async || {
            let read = reader.read(&digests, Checked::Yes).await;
            Ok(read.is_ok() && reader.side.is_counted()?)
        })
        .await?;
        // Once more: what went wrong would be told.
        reader.read(&digests, Checked::Yes).await?;
        Ok(reader)
    }

    fn through(&self, link: &Link) -> anyhow::Result<Far<'_>> {
        Ok(Far { reader: self, content: self.side.content(link.port)? })
    }

    async fn read(&self, digests: &[Digest], checked: Checked) -> anyhow::Result<usize> {
        read(self.content.clone(), &self.grant, digests, checked).await
    }
}

/// The bytes that came.
async fn read(
    mut content: ContentClient<Channel>,
    grant: &Signed,
    digests: &[Digest],
    checked: Checked,
) -> anyhow::Result<usize> {
    let request = ChunksRequest {
        digests: digests.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        priority: Priority::Prefetch.into(),
        ..ChunksRequest::default()
    };
    let mut frames = content.get_chunks(with_grant(request, grant)).await?.into_inner();
    let (mut bytes, mut whole) = (0, 0);
    while let Some(frame) = frames.message().await? {
        ensure!(frame.failure == 0, "chunk {} is not to be had: {}", frame.index, frame.failure);
        bytes += frame.data.len();
        whole += usize::from(frame.last);
        if checked == Checked::Yes {
            let digest = digests.get(frame.index as usize).context("a chunk that was asked for")?;
            verify::open_chunk(digest, &frame.data)?;
        }
    }
    ensure!(whole == digests.len(), "{whole} chunks of {}", digests.len());
    Ok(bytes)
}

/// Rounds in turns; throughput, and what the cache's processor did for it.
async fn compare<A: Asker>(
    pair: [&A; 2],
    digests: &[Digest],
    rounds: usize,
    checked: Checked,
) -> anyhow::Result<Value> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for number in 0..=rounds {
        let mut took = [(0.0, 0.0); 2];
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        for at in order {
            let (before, begun) = (pair[at].side().cache_processor()?, Instant::now());
            let mut bytes = 0;
            for _ in 0..TIMES {
                bytes += read(pair[at].content(), pair[at].grant(), digests, checked).await?;
            }
            let rate = bytes as f64 / begun.elapsed().as_secs_f64();
            took[at] = (rate, (pair[at].side().cache_processor()? - before) / (bytes as f64 / 1e9));
        }
        // The first one warms up.
        if number > 0 {
            rates.push(Round { off: took[0].0, on: took[1].0 });
            costs.push(Round { off: took[0].1, on: took[1].1 });
        }
    }
    Ok(json!({ "bytes_per_second": sides(&rates), "cache_processor_seconds_per_gigabyte": sides(&costs) }))
}

/// Microseconds of the cache for checking a request: grant, connection, revocations, and that the chunk is one of the image's.
pub(super) async fn measure_check(rounds: usize) -> anyhow::Result<Value> {
    let others: Vec<Digest> = (0..NAMES - 1).map(|number| Digest::of(&number.to_le_bytes())).collect();
    let chunks = [chunk(0)?];
    let side = Side::on(None, &[])?;
    let grant = side.keep(&chunks, &others).await?;
    let reader = Reader { content: side.content(side.cache_port)?, side, grant };
    let digests = [chunks[0].0];
    until("the cache serves", async || Ok(reader.read(&digests, Checked::No).await.is_ok())).await?;
    let mut means = Vec::new();
    for _ in 0..rounds {
        let read = || -> anyhow::Result<(f64, f64)> {
            let of = |end: &str| reader.side.cache_metric(&format!("sluice_cache_check_seconds_{end}"));
            Ok((of("sum")?, of("count")?))
        };
        let before = read()?;
        for _ in 0..REQUESTS {
            reader.read(&digests, Checked::No).await?;
        }
        let after = read()?;
        ensure!(after.1 - before.1 >= REQUESTS as f64, "the cache counts its checks");
        means.push((after.0 - before.0) / (after.1 - before.1) * 1e6);
    }
    Ok(json!({ "names": NAMES, "microseconds": super::median(means.clone()), "rounds": means }))
}

/// Its name, and how it is stored.
fn chunk(seed: u64) -> anyhow::Result<(Digest, Vec<u8>)> {
    let noise = noise(seed + 1, CHUNK_LEN / 2);
    let plain: Vec<u8> = noise.chunks(64).flat_map(|some| [some, &[0; 64][..some.len()]].concat()).collect();
    Ok((Digest::of(&plain), zstd::bulk::compress(&plain, 1)?))
}
