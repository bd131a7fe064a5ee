//! `sluice layers`: whether Docker's images have their layers on this machine.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use names::Reference;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::install::client::Client;
use crate::install::docker::NAMESPACE;
use crate::install::images::lacking;
use crate::render;

/// How often it is looked while somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Shorter beginnings of an image's id mean nothing.
const ID_MIN: usize = 4;

/// Say whether Docker's images have their layers on this machine
///
/// Containers need none of them. But `docker save` and `docker push` pass over what is missing without a word, so ask, or wait, before:
/// this ends with an error as long as an image lacks layers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice layers
  sluice layers --wait 10m app:1 && docker save app:1 -o app.tar")]
pub struct LayersArgs {
    /// Names or ids of images, as Docker knows them [default: all]
    images: Vec<String>,
    /// Wait until all are there, for at most so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct Image {
    names: Vec<String>,
    digest: String,
    layers_missing: usize,
    bytes_missing: u64,
}

pub async fn run(context: &Context, args: LayersArgs) -> anyhow::Result<ExitCode> {
    let socket = context.settings.docker.containerd.as_deref().context(
        "no Docker engine of this machine uses sluice, as docker.containerd is not set: `sluice install --docker` does it",
    )?;
    let began = Instant::now();
    let images = loop {
        let images = look(&mut Client::connect(socket, NAMESPACE).await?, &args.images).await?;
        let done = images.iter().all(|image| image.layers_missing == 0);
        if done || args.wait.is_none_or(|wait| began.elapsed() >= wait) {
            break images;
        }
        sleep(LOOK_EVERY).await;
    };
    match context.global.json {
        true => render::json(&images)?,
        false => render::line(table(&images).trim_end())?,
    }
    let lacking = images.iter().filter(|image| image.layers_missing > 0).count();
    ensure!(
        lacking == 0,
        "{lacking} images lack layers, which `docker save` and `docker push` would leave out without a word: they are on their way, \
         unless docker.layers is off or the log of sluice says why not"
    );
    Ok(ExitCode::SUCCESS)
}

/// What is there of the images that are asked for.
async fn look(client: &mut Client, asked: &[String]) -> anyhow::Result<Vec<Image>> {
    let mut images: Vec<Image> = Vec::new();
    for (name, digest) in client.images().await? {
        match images.iter_mut().find(|image| image.digest == digest) {
            Some(image) => image.names.push(name),
            None => images.push(Image { names: vec![name], digest, layers_missing: 0, bytes_missing: 0 }),
        }
    }
    for wanted in asked {
        ensure!(
            images.iter().any(|image| is_meant(image, wanted)),
            "Docker has no image {wanted:?}: `docker images` lists them"
        );
    }
    images.retain(|image| asked.is_empty() || asked.iter().any(|wanted| is_meant(image, wanted)));
    for image in &mut images {
        if let Some(lacking) = lacking(client, &image.digest).await? {
            image.layers_missing = lacking.layers.len();
            image.bytes_missing = lacking.layers.iter().map(|layer| layer.size).sum();
        }
    }
    Ok(images)
}

/// By name, short or in full, or by the beginning of the id.
fn is_meant(image: &Image, wanted: &str) -> bool {
    let in_full = |name: &str| Reference::parse(name).map(|reference| reference.to_string());
    let wanted_in_full = in_full(wanted);
    let named = image
        .names
        .iter()
        .any(|name| name == wanted || (wanted_in_full.is_some() && in_full(name) == wanted_in_full));
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let of_digest = image.digest.strip_prefix("sha256:").is_some_and(|digest| digest.starts_with(hex));
    named || (hex.len() >= ID_MIN && of_digest)
}

fn table(images: &[Image]) -> String {
    let row = |image: &Image| {
        let bytes = render::bytes(image.bytes_missing);
        vec![
            image.names.join(", "),
            render::short(&image.digest).to_owned(),
            image.layers_missing.to_string(),
            if image.layers_missing == 0 { "-".to_owned() } else { bytes },
        ]
    };
    render::table(&["image", "id", "missing", "size"], &[2, 3], images.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_meant_as_docker_means_them() {
        let digest = format!("sha256:0123abcd{}", "0".repeat(56));
        let names = vec!["docker.io/library/app:latest".to_owned(), "moby-dangling@sha256:0".to_owned()];
        let image = Image { names, digest: digest.clone(), layers_missing: 0, bytes_missing: 0 };
        for wanted in ["app", "app:latest", "docker.io/library/app", "0123abcd", "0123", digest.as_str()] {
            assert!(is_meant(&image, wanted), "{wanted}");
        }
        for wanted in ["app:1", "012", "other", "123a", ""] {
            assert!(!is_meant(&image, wanted), "{wanted}");
        }
    }
}
