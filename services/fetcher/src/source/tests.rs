//! Sources against real peers: an HTTP server that misbehaves on purpose, the reference registry,
//! and the tools that write layouts and archives.

mod auth;
mod fake;
mod local;
mod peers;
mod platforms;
mod transfers;

use std::time::Duration;

use futures::TryStreamExt;
use names::ImageName;
use proto::Platform;

use super::{Access, LayerDescriptor, Source, SourceConfig, SourceError, Sources};
use registry::RetryConfig;

/// Pauses too short to notice, and no config of whoever runs the tests.
fn config() -> SourceConfig {
    SourceConfig {
        docker_config: Some("/nonexistent".into()),
        retry: RetryConfig {
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(2),
            ..RetryConfig::default()
        },
        ..SourceConfig::default()
    }
}

fn plain_http() -> Access {
    Access { plain_http: true, ..Access::default() }
}

async fn open(config: &SourceConfig, name: &str, access: Access) -> Result<Source, SourceError> {
    let name: ImageName = name.parse().unwrap();
    Sources::new(config.clone()).unwrap().open(&name, access).await
}

fn amd64() -> Platform {
    Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }
}

async fn read(source: &Source, layer: &LayerDescriptor, from: u64) -> Result<Vec<u8>, SourceError> {
    let parts: Vec<_> = source.blob(layer, from).await?.try_collect().await?;
    Ok(parts.concat())
}
