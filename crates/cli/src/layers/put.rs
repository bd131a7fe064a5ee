//! One blob into containerd's content store. What an earlier attempt wrote is gone on with; containerd hashes it all, and refuses
//! what is not what it should be.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fetcher::source::ByteStream;
use futures::StreamExt as _;
use proto::containerd::content::content_client::ContentClient;
use proto::containerd::content::{AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::install::client::{Client, InNamespace};
use crate::install::images::Layer;

/// Bytes in one message; containerd takes no more than 16 MiB.
const PART_MAX: usize = 1 << 20;
/// How long containerd may take to write one down; for the last one it makes sure that all is on the disk.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// One write that is under way.
struct Writing {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    name: String,
    total: i64,
    expected: String,
}

/// Puts a layer there, with labels; one that is there already stays. `read`: its bytes from one on.
pub(super) async fn put<R: Future<Output = anyhow::Result<ByteStream>>>(
    client: &Client,
    layer: &Layer,
    labels: &HashMap<String, String>,
    read: impl FnOnce(u64) -> R,
) -> anyhow::Result<()> {
    let mut content = client.content();
    let name = format!("sluice-{}", layer.digest);
    match written(&mut content, &name, layer, labels, read).await {
        Err(error) if code_of(&error) == Some(Code::AlreadyExists) => Ok(()),
        // What it has of it is wrong.
        Err(error) if code_of(&error) == Some(Code::FailedPrecondition) => {
            content.abort(AbortRequest { r#ref: name }).await.ok();
            Err(error)
        }
        ended => ended,
    }
}

async fn written<R: Future<Output = anyhow::Result<ByteStream>>>(
    content: &mut ContentClient<InNamespace>,
    name: &str,
    layer: &Layer,
    labels: &HashMap<String, String>,
    read: impl FnOnce(u64) -> R,
) -> anyhow::Result<()> {
    let total = i64::try_from(layer.size).context("a layer larger than any disk")?;
    let (requests, stream) = mpsc::channel(1);
    let first = request(WriteAction::Stat, name, total, &layer.digest);
    requests.send(first).await.context("begin")?;
    let answers = within(content.write(ReceiverStream::new(stream))).await?.into_inner();
    let mut writing =
        Writing { requests, answers, name: name.to_owned(), total, expected: layer.digest.clone() };
    let mut offset = writing.answer().await?;
    if offset < total {
        let from = u64::try_from(offset).context("an offset below zero")?;
        let mut bytes = read(from).await?;
        while let Some(part) = bytes.next().await {
            let mut part = part?;
            while !part.is_empty() {
                let data = part.split_to(part.len().min(PART_MAX));
                let next = offset + i64::try_from(data.len())?;
                offset = writing.ask(WriteAction::Write, offset, data.into(), HashMap::new()).await?;
                ensure!(offset == next, "containerd has {offset} bytes of it, and not {next}");
            }
        }
    }
    writing.ask(WriteAction::Commit, total, Vec::new(), labels.clone()).await?;
    Ok(())
}

impl Writing {
    /// What containerd has when it has done it.
    async fn ask(
        &mut self,
        action: WriteAction,
        offset: i64,
        data: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<i64> {
        let request = WriteContentRequest {
            offset,
            data,
            labels,
            ..request(action, &self.name, self.total, &self.expected)
        };
        if self.requests.send(request).await.is_err() {
            // Its answer says why it hears no more.
            tracing::debug!(write = self.name, "containerd ended the write");
        }
        self.answer().await
    }

    async fn answer(&mut self) -> anyhow::Result<i64> {
        let answer = within(self.answers.message()).await?;
        Ok(answer.context("containerd ended the write without an answer")?.offset)
    }
}

fn request(action: WriteAction, name: &str, total: i64, expected: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: name.to_owned(),
        total,
        expected: expected.to_owned(),
        ..WriteContentRequest::default()
    }
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> anyhow::Result<T> {
    let answer = timeout(ANSWER_MAX, call).await;
    let answer = answer.with_context(|| format!("containerd did not answer within {ANSWER_MAX:?}"))?;
    answer.context("write into containerd's store")
}

fn code_of(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<Status>()).map(Status::code)
}
