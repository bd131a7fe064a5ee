//! Importing an image: its layers into chunks, then a tree, a map and a signed record.
//!
//! ```text
//! layers --(known by their record, or read once, several at a time)--> layer records
//!        --merged one at a time--> tree, map --> image record, written last
//! ```
//!
//! Until its last write an import leaves nothing that an image could be made of: chunks that nobody
//! names, and records of layers that were verified whole. A killed import therefore goes on where it
//! stopped: finished layers are known, and of the others the chunks are there already. A repair is an
//! import that first reads back what is there, and reads again only layers with damage.

mod assemble;
mod chunks;
pub(crate) mod copies;
mod damage;
pub(crate) mod error;
mod gunzip;
mod inflate;
mod layer;
mod progress;
pub(crate) mod proofs;
mod records;

use std::collections::HashSet;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt, stream};
use image::record::LayerRef;
use image::scan::{RecordBudget, ScanLimits};
use image::{Digest, ImageRecord};
use prost::Message;
use proto::{ImportSummary, LayerSource, ResolveRequest};
use store::{ProjectStore, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::marker;
use crate::records::{KnownLayer, Records, SignedImage};
use crate::source::{BlobPlace, Found, LayerDescriptor, Source, SourceError};

use assemble::Assembled;
use chunks::{ChunkWriter, Compression};
use damage::ReadBack;
use error::{ImportError, LayerFault};
pub(crate) use progress::Progress;
use proofs::{Proofs, QUESTIONS_AT_ONCE, source_of};
use records::LayerFacts;

/// The most images that can be imported at the same time.
const IMAGES_MAX: u32 = 10_000;
/// How much more than the budget for records of distinct layers may be merged in all, where a manifest names layers more than once.
const REPEATS_MAX: u64 = 8;

/// That one more image may be imported, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held, not looked at")] OwnedSemaphorePermit);

/// Imports images, within limits that all imports share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Importer {
    records: Records,
    instance: Arc<str>,
    scan: ScanLimits,
    /// Bytes, of each image.
    image_records: u64,
    compression: Compression,
    images: Arc<Semaphore>,
    images_at_once: u32,
    layers: Arc<Semaphore>,
    /// Where copies of layers stay that were read.
    copies: Option<Arc<Path>>,
    pub(crate) proofs: Arc<Proofs>,
    tasks: TaskTracker,
}

/// What is to be imported.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The image's name; also how messages call it.
    pub(crate) image: String,
    pub(crate) project: ProjectStore,
    pub(crate) source: Source,
    pub(crate) place: BlobPlace,
    /// The caller may read all of it: a grant says so.
    pub(crate) proven: bool,
    pub(crate) found: Found,
    /// How it was asked for, without the credential: for a repair that nobody waits for.
    pub(crate) origin: ResolveRequest,
    /// Read back what the store holds of the image, and bring back what is damaged.
    pub(crate) repair: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Imported {
    pub(crate) image: SignedImage,
    pub(crate) summary: ImportSummary,
    /// Chunks and indexes that a repair brought back.
    pub(crate) restored: u64,
}

/// The distinct layers of an order, in the image's order; `known` are those that need no download.
struct Layers<'a> {
    distinct: Vec<&'a LayerDescriptor>,
    known: Vec<Option<LayerFacts>>,
    /// Where each was read before.
    sources: Vec<Vec<LayerSource>>,
    corrupt: HashSet<Digest>,
}

impl Importer {
    pub(crate) fn new(config: &Config, records: Records, instance: &str, tasks: TaskTracker) -> Importer {
        let limits = &config.limits;
        let images_at_once = u32::try_from(limits.imports_at_once).unwrap_or(u32::MAX).clamp(1, IMAGES_MAX);
        let permits = |wanted: usize| Arc::new(Semaphore::new(wanted.clamp(1, Semaphore::MAX_PERMITS)));
        Importer {
            records,
            instance: instance.into(),
            scan: ScanLimits {
                plain_max: limits.layer_plain_max.as_u64(),
                entries_max: limits.layer_entries_max,
            },
            image_records: limits.image_records.as_u64(),
            compression: Compression::new(config.zstd_level, limits.chunk_memory.as_u64()),
            images: permits(images_at_once as usize),
            images_at_once,
            layers: permits(limits.layers_at_once),
            copies: config.layer_copies.as_deref().map(Arc::from),
            proofs: Arc::default(),
            tasks,
        }
    }

    /// Waits until an image may be imported; `alone`, until no other is, and none begins meanwhile.
    pub(crate) async fn turn(
        &self,
        order: &Order,
        alone: bool,
        progress: &Progress,
    ) -> Result<Turn, ImportError> {
        let stopped = |_| ImportError::Stopped { image: order.image.clone() };
        let wanted = if alone { self.images_at_once } else { 1 };
        if let Ok(turn) = self.images.clone().try_acquire_many_owned(wanted) {
            return Ok(Turn(turn));
        }
        progress.queued(true);
        let turn = self.images.clone().acquire_many_owned(wanted).await.map_err(stopped)?;
        progress.queued(false);
        Ok(Turn(turn))
    }

    /// Imports or repairs an image. Dropped in the middle, it leaves what the next one goes on from.
    pub(crate) async fn import(
        &self,
        order: &Order,
        progress: &Progress,
        _turn: Turn,
    ) -> Result<Imported, ImportError> {
        let marker = marker::importing(&order.project, &self.tasks).await;
        let marker = marker.map_err(|cause| ImportError::Busy { image: order.image.clone(), cause })?;
        let imported = self.import_marked(order, progress).await;
        marker.release().await;
        imported
    }

    async fn import_marked(&self, order: &Order, progress: &Progress) -> Result<Imported, ImportError> {
        let begun = Instant::now();
        let budget = RecordBudget::new(self.image_records);
        let layers = self.known_layers(order, &budget).await?;
        let known = layers.known.iter().map(Option::is_some);
        progress.begin(layers.distinct.iter().copied().zip(known));
        let corrupt = layers.corrupt.len() as u64;
        let chunks =
            ChunkWriter::new(self.compression.clone(), order.project.clone(), layers.corrupt.clone());

        let facts = self.read_unknown(order, &layers, &chunks, progress, &budget).await?;
        check_repeats(order, &layers, &facts, budget.max())?;
        let assembled = assemble::assemble(&self.records, order, &layers.distinct, budget.max()).await?;
        let record = self.record(order, &layers, &facts, &assembled).await?;
        let origin = order.origin.encode_to_vec().into();
        order.project.put_source(&order.found.manifest_digest, origin).await.map_err(store_error(order))?;
        let image = self.records.put_image(&order.project, record).await.map_err(store_error(order))?;

        let summary = summary(&layers, &facts, &chunks, begun);
        tracing::info!(
            image = order.image,
            project = order.project.name(),
            manifest = order.found.manifest_digest,
            layers_read = summary.layers_read,
            layers_known = summary.layers_known,
            plain_bytes = summary.plain_bytes,
            milliseconds = summary.milliseconds,
            "imported"
        );
        metrics::counter!("sluice_fetcher_imports_total").increment(1);
        metrics::counter!("sluice_fetcher_compressed_bytes_total").increment(summary.compressed_bytes);
        metrics::counter!("sluice_fetcher_plain_bytes_total").increment(summary.plain_bytes);
        metrics::counter!("sluice_fetcher_chunks_written_total").increment(summary.chunks_written);
        Ok(Imported { image, summary, restored: corrupt + assembled.replaced })
    }

    /// Which layers need no download.
    async fn known_layers<'a>(
        &self,
        order: &'a Order,
        budget: &RecordBudget,
    ) -> Result<Layers<'a>, ImportError> {
        let mut seen = HashSet::new();
        let distinct: Vec<&LayerDescriptor> =
            order.found.layers.iter().filter(|layer| seen.insert(layer.diff_id.as_str())).collect();
        let (mut found, mut sources) = (Vec::new(), Vec::new());
        let mut read_back = ReadBack::new(&order.project);
        let mut looked = pin!(records::read(&self.records, order, &distinct));
        while let Some((_, layer)) = looked.try_next().await? {
            let Some(KnownLayer { record, sources: read_from }) = layer else {
                found.push(None);
                sources.push(Vec::new());
                continue;
            };
            sources.push(read_from);
            // What a repair is to bring back it looks for in all that there is.
            if order.repair && read_back.finds_damage(&record).await.map_err(store_error(order))? {
                found.push(None);
                continue;
            }
            let measure = move |_: &str| Ok(LayerFacts::of(&record));
            found.push(Some(on_thread(&order.image, measure).await?));
        }
        let known = self.usable(order, &distinct, found, &sources, budget).await?;
        Ok(Layers { distinct, known, sources, corrupt: read_back.into_damaged() })
    }

    /// Of the layers that were found, those that are known for this image too. What their records take in memory is counted.
    async fn usable(
        &self,
        order: &Order,
        distinct: &[&LayerDescriptor],
        found: Vec<Option<LayerFacts>>,
        sources: &[Vec<LayerSource>],
        budget: &RecordBudget,
    ) -> Result<Vec<Option<LayerFacts>>, ImportError> {
        let look = |at: usize, found: Option<LayerFacts>| async move {
            let (layer, Some(facts)) = (distinct[at], found) else { return Ok(None) };
            if !order.proven
                && !self.proofs.is_known(&order.source, &order.place, layer, &sources[at]).await?
            {
                return Ok(None);
            }
            budget.take(facts.bytes).map_err(|error| layer_error(order, layer, error.into()))?;
            Ok::<_, ImportError>(Some(facts))
        };
        let looks: Vec<_> = found.into_iter().enumerate().map(|(at, found)| look(at, found)).collect();
        stream::iter(looks).buffered(QUESTIONS_AT_ONCE).try_collect().await
    }

    /// Reads all layers that are not known; the largest first, for the others to fill the gaps. What
    /// is known of all of them then.
    async fn read_unknown(
        &self,
        order: &Order,
        layers: &Layers<'_>,
        chunks: &ChunkWriter,
        progress: &Progress,
        budget: &RecordBudget,
    ) -> Result<Vec<LayerFacts>, ImportError> {
        let mut unknown: Vec<usize> =
            (0..layers.known.len()).filter(|at| layers.known[*at].is_none()).collect();
        unknown.sort_by_key(|at| std::cmp::Reverse(layers.distinct[*at].size));
        let read = |at: usize| async move {
            let layer = layers.distinct[at];
            let read =
                self.read_layer(order, (layer, &layers.sources[at]), chunks, progress, at, budget).await;
            Ok::<_, ImportError>((at, read.map_err(|fault| layer_error(order, layer, fault))?))
        };
        let reads: Vec<_> = unknown.into_iter().map(read).collect();
        let mut read: Vec<(usize, LayerFacts)> =
            stream::iter(reads).buffer_unordered(image::limits::LAYERS_MAX).try_collect().await?;
        read.extend(layers.known.iter().enumerate().filter_map(|(at, known)| Some((at, (*known)?))));
        read.sort_by_key(|(at, _)| *at);
        Ok(read.into_iter().map(|(_, facts)| facts).collect())
    }

    async fn read_layer(
        &self,
        order: &Order,
        (layer, sources): (&LayerDescriptor, &[LayerSource]),
        chunks: &ChunkWriter,
        progress: &Progress,
        at: usize,
        budget: &RecordBudget,
    ) -> Result<LayerFacts, LayerFault> {
        let _turn = self.layers.acquire().await.map_err(|error| LayerFault::Internal(error.to_string()))?;
        let (meter, chunks) = (progress.layer(at), chunks.layer());
        let (limits, copies) = ((self.scan, budget.clone()), self.copies.as_deref());
        let record =
            layer::read(&order.source, layer, copies, limits, chunks, meter, progress.clone()).await?;
        let mut sources = sources.to_vec();
        let here = source_of(&order.place, layer);
        sources.retain(|source| *source != here);
        sources.push(here);
        self.records.put_layer(&order.project, &record, sources).await?;
        Ok(LayerFacts::of(&record))
    }

    async fn record(
        &self,
        order: &Order,
        layers: &Layers<'_>,
        facts: &[LayerFacts],
        assembled: &Assembled,
    ) -> Result<ImageRecord, ImportError> {
        let found = &order.found;
        let earlier =
            self.records.image(&order.project, &found.manifest_digest).await.map_err(store_error(order))?;
        let mut references = earlier.map(|image| image.record.references).unwrap_or_default();
        add_reference(&mut references, &order.image);
        let layer_ref = |layer: &LayerDescriptor| LayerRef {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            media_type: layer.media_type.clone(),
            size: layer.size,
            entries: position(layers, layer).map_or(0, |at| facts[at].entries),
        };
        Ok(ImageRecord {
            project: order.project.name().to_owned(),
            manifest_digest: found.manifest_digest.clone(),
            references,
            config: found.config.to_vec(),
            tree: assembled.tree,
            map: assembled.map,
            layers: found.layers.iter().map(layer_ref).collect(),
            files: assembled.files,
            plain_bytes: assembled.plain_bytes,
            stored_bytes: assembled.stored_bytes,
            imported_unix: unix_now(),
            imported_by: self.instance.to_string(),
        })
    }
}

/// Notes one more name of an image; the list stays sorted, and no longer than it may be.
pub(crate) fn add_reference(references: &mut Vec<String>, reference: &str) -> bool {
    match references.binary_search_by(|known| known.as_str().cmp(reference)) {
        Err(at) if references.len() < image::limits::REFERENCES_MAX => {
            references.insert(at, reference.to_owned());
            true
        }
        _ => false,
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn position(layers: &Layers<'_>, layer: &LayerDescriptor) -> Option<usize> {
    layers.distinct.iter().position(|distinct| distinct.diff_id == layer.diff_id)
}

/// A manifest may name one layer a thousand times, and each time it is applied: applying it twice is not always the same as once.
fn check_repeats(
    order: &Order,
    layers: &Layers<'_>,
    facts: &[LayerFacts],
    records_max: u64,
) -> Result<(), ImportError> {
    let bytes = |layer: &LayerDescriptor| position(layers, layer).map_or(0, |at| facts[at].bytes);
    let all: u64 = order.found.layers.iter().map(bytes).fold(0, u64::saturating_add);
    if all <= records_max.saturating_mul(REPEATS_MAX) {
        return Ok(());
    }
    let reason = format!(
        "it names layers again and again: {all} bytes of records would be merged (at most {REPEATS_MAX} times fetcher.limits.image_records)"
    );
    Err(SourceError::unsupported(&order.image, reason).into())
}

fn layer_error(order: &Order, layer: &LayerDescriptor, fault: LayerFault) -> ImportError {
    ImportError::Layer { image: order.image.clone(), layer: layer.digest.clone(), fault: Box::new(fault) }
}

fn store_error(order: &Order) -> impl Fn(StoreError) -> ImportError {
    |cause| ImportError::Store { image: order.image.clone(), cause }
}

fn internal(image: &str, error: impl std::fmt::Display) -> ImportError {
    ImportError::Internal { image: image.to_owned(), reason: error.to_string() }
}

/// Work on the records of an image, which may take seconds: on a thread of its own.
async fn on_thread<T: Send + 'static>(
    image: &str,
    work: impl FnOnce(&str) -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    let name = image.to_owned();
    spawn_blocking(move || work(&name)).await.map_err(|error| internal(image, error))?
}

fn summary(layers: &Layers<'_>, facts: &[LayerFacts], chunks: &ChunkWriter, begun: Instant) -> ImportSummary {
    let read: Vec<usize> = (0..layers.known.len()).filter(|at| layers.known[*at].is_none()).collect();
    ImportSummary {
        layers_read: read.len() as u32,
        layers_known: (layers.known.len() - read.len()) as u32,
        compressed_bytes: read.iter().map(|at| layers.distinct[*at].size).sum(),
        plain_bytes: read.iter().map(|at| facts[*at].tar_len).sum(),
        chunks_written: chunks.written(),
        chunks_present: chunks.present(),
        milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}
