//! A blob as one unbroken stream, over connections that break.
//!
//! State: `position`, the bytes delivered so far. A connection that breaks or stalls is replaced
//! by one that begins there; a server that ignores the range is read from the start and skipped.
//! Tries are counted anew whenever [`PROGRESS`] bytes have arrived, so that a long layer survives
//! a bad link, while one that goes nowhere ends. Asking the registry again, and not the storage
//! that it redirected to, means that an expired redirect is no problem either.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::{StreamExt, stream};
use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;

use crate::repository::Repository;
use crate::retry::Retry;
use crate::{BlobDigest, ByteStream, Error};

/// So many bytes are worth a new set of tries.
const PROGRESS: u64 = 1024 * 1024;

pub(super) async fn open(
    repository: Arc<Repository>,
    digest: BlobDigest,
    size: u64,
    from: u64,
) -> Result<ByteStream, Error> {
    let retry = Retry::new(&repository.transfer.config.retry);
    let mut reader =
        Reader { repository, digest, size, position: from, counted: from, retry, connection: None };
    if from < size {
        // Now, so that a missing blob is an error of the opening.
        reader.connect().await?;
    }
    let stream = stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next().await?.map(|bytes| (bytes, reader)))
    });
    Ok(stream.boxed())
}

struct Reader {
    repository: Arc<Repository>,
    digest: BlobDigest,
    size: u64,
    position: u64,
    /// Where the tries were last counted anew.
    counted: u64,
    retry: Retry,
    connection: Option<Connection>,
}

struct Connection {
    response: Response,
    host: String,
    /// Bytes that come before `position`, because the server ignored the range.
    skip: u64,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.position < self.size {
            let Some(connection) = &mut self.connection else {
                self.connect().await?;
                continue;
            };
            let reason = match self.repository.transfer.chunk(&mut connection.response).await {
                Ok(Some(bytes)) => match self.take(bytes)? {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => continue,
                },
                Ok(None) => "it ended the transfer".to_owned(),
                Err(failure) => failure.reason(),
            };
            self.broken(reason).await?;
        }
        Ok(None)
    }

    /// What of these bytes is new.
    fn take(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, Error> {
        if let Some(connection) = &mut self.connection {
            let skipped = connection.skip.min(bytes.len() as u64);
            connection.skip -= skipped;
            // At most the length of the bytes themselves.
            bytes.advance(usize::try_from(skipped).unwrap_or(bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() as u64 > self.size - self.position {
            return Err(
                self.corrupt(format!("it has more than the {} bytes that the manifest says", self.size))
            );
        }
        self.position += bytes.len() as u64;
        if self.position - self.counted >= PROGRESS {
            self.counted = self.position;
            self.retry.reset();
        }
        Ok(Some(bytes))
    }

    async fn broken(&mut self, reason: String) -> Result<(), Error> {
        let host = self.connection.take().map(|connection| connection.host).unwrap_or_default();
        let (position, size) = (self.position, self.size);
        let Some(pause) = self.retry.pause(None) else {
            let reason = format!("layer {} broke off at byte {position} of {size}: {reason}", self.digest);
            return Err(self.repository.unreachable(&host, reason));
        };
        tracing::debug!(host, layer = %self.digest, position, size, reason, "a transfer broke: resuming");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let (response, host) = self.repository.stream(&self.digest, self.position).await?;
        let left = self.size - self.position;
        let (skip, promised) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(&response);
                if range.is_none_or(|range| range.start != self.position) {
                    return Err(self.corrupt(format!("{host} answers with another range than asked for")));
                }
                (0, range.and_then(|range| range.total).map(|total| total.saturating_sub(self.position)))
            }
            _ => (self.position, response.content_length().map(|len| len.saturating_sub(self.position))),
        };
        if let Some(promised) = promised.filter(|promised| *promised != left) {
            let total = self.position.saturating_add(promised);
            return Err(
                self.corrupt(format!("{host} has {total} bytes of it, the manifest says {}", self.size))
            );
        }
        self.connection = Some(Connection { response, host, skip });
        Ok(())
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::corrupt(&self.repository.image, format!("layer {}", self.digest), reason)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    total: Option<u64>,
}

/// `bytes 5-9/10` or `bytes 5-9/*`
fn content_range(response: &Response) -> Option<ContentRange> {
    parse_content_range(response.headers().get(CONTENT_RANGE)?.to_str().ok()?)
}

fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some(ContentRange { start: start.parse().ok()?, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        let range = |start, total| Some(ContentRange { start, total });
        assert_eq!(parse_content_range("bytes 5-9/10"), range(5, Some(10)));
        assert_eq!(parse_content_range("bytes 5-9/*"), range(5, None));
        for wrong in
            ["", "bytes */10", "bytes 5-9", "bytes -9/10", "items 5-9/10", "bytes 5-9/99999999999999999999"]
        {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }
}
