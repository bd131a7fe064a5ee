//! The records of an image's layers, read from the store: one is in memory at a time, however many
//! layers there are and however large each is.

use std::pin::pin;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use image::LayerRecord;
use image::scan::record_bytes;

use super::error::{ImportError, LayerFault};
use super::{Order, layer_error, on_thread, store_error};
use crate::records::{KnownLayer, Records};
use crate::source::LayerDescriptor;

/// Records that are fetched ahead, as they are stored: several times smaller than in memory.
const AHEAD: usize = 4;

/// What an import remembers of a layer whose record is in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerFacts {
    pub(super) entries: u64,
    pub(super) tar_len: u64,
    /// Of the record in memory.
    pub(super) bytes: u64,
}

impl LayerFacts {
    pub(super) fn of(record: &LayerRecord) -> LayerFacts {
        let bytes = record_bytes(record);
        LayerFacts { entries: record.entries.len() as u64, tar_len: record.tar_len, bytes }
    }
}

/// The layers with the records that they have, in the order given. The next one is opened when it is
/// asked for: who drops one before that holds one.
pub(super) fn read<'a>(
    records: &'a Records,
    order: &'a Order,
    layers: &[&'a LayerDescriptor],
) -> impl Stream<Item = Result<(&'a LayerDescriptor, Option<KnownLayer>), ImportError>> + Send + use<'a> {
    let fetch =
        |layer: &'a LayerDescriptor| async move { (layer, order.project.layer(&layer.diff_id).await) };
    let fetches: Vec<_> = layers.iter().copied().map(fetch).collect();
    stream::iter(fetches).buffered(AHEAD).then(move |(layer, fetched)| async move {
        let record = records.layer_of(&order.project, &layer.diff_id, fetched).await;
        Ok((layer, record.map_err(store_error(order))?))
    })
}

/// Takes one step with each layer's record, in the order given; on threads made for it. The outer
/// error is of reading them.
pub(super) async fn fold<T, E>(
    records: &Records,
    order: &Order,
    layers: &[&LayerDescriptor],
    mut state: T,
    step: fn(&mut T, LayerRecord) -> Result<(), E>,
) -> Result<Result<T, E>, ImportError>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let mut layers = pin!(read(records, order, layers));
    while let Some((layer, record)) = layers.try_next().await? {
        let KnownLayer { record, .. } = record.ok_or_else(|| layer_error(order, layer, gone()))?;
        let step = move |_: &str| Ok(step(&mut state, record).map(|()| state));
        state = match on_thread(&order.image, step).await? {
            Ok(state) => state,
            Err(error) => return Ok(Err(error)),
        };
    }
    Ok(Ok(state))
}

fn gone() -> LayerFault {
    LayerFault::Internal(
        "its record went away, or is believed no longer, while the image was imported".into(),
    )
}
