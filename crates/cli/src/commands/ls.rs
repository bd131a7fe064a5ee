//! `sluice ls`: the images that the store holds.

use std::process::ExitCode;

use anyhow::Context as _;
use proto::{ImageSummary, ListRequest};
use serde::Serialize;

use super::Context;
use crate::render;
use crate::session;

/// `--json`.
#[derive(Debug, Serialize)]
struct Images {
    images: Vec<Image>,
    /// Records that are not believed: what they name cannot be said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Refused {
    digest: String,
    reason: String,
}

/// Also in `inspect`.
#[derive(Debug, Serialize)]
pub struct Image {
    pub references: Vec<String>,
    pub manifest_digest: String,
    /// BLAKE3 of the tree.
    pub tree: String,
    pub files: u64,
    pub layers: u64,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    pub imported_unix: u64,
}

impl From<ImageSummary> for Image {
    fn from(image: ImageSummary) -> Image {
        Image {
            references: image.references,
            manifest_digest: image.manifest_digest,
            tree: hex::encode(image.tree),
            files: image.files,
            layers: image.layers,
            plain_bytes: image.plain_bytes,
            stored_bytes: image.stored_bytes,
            imported_unix: image.imported_unix,
        }
    }
}

pub async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let listed = match context.session().await? {
        Some(session) => {
            let request = ListRequest { project: context.settings.project.to_string() };
            let reply = session.call(request, session::ASK).await.context("list images")?;
            session.close().await;
            let refused = reply
                .refused
                .into_iter()
                .map(|it| Refused { digest: it.digest, reason: it.reason })
                .collect();
            Images { images: reply.images.into_iter().map(Image::from).collect(), refused }
        }
        None => {
            context.progress().note(&super::no_store(context));
            Images { images: Vec::new(), refused: Vec::new() }
        }
    };
    match context.global.json {
        true => render::json(&listed)?,
        false => render::line(list(&listed.images, render::now_unix()).trim_end())?,
    }
    for Refused { digest, reason } in &listed.refused {
        context.progress().note(&format!("the record of {digest} is not believed: {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// One row for each reference; an image without one is listed by its digest alone.
fn list(images: &[Image], now_unix: u64) -> String {
    let mut rows = Vec::new();
    for image in images {
        let unnamed = ["-".to_owned()];
        let references = if image.references.is_empty() { &unnamed[..] } else { &image.references[..] };
        for reference in references {
            rows.push(vec![
                reference.clone(),
                render::short(&image.manifest_digest).to_owned(),
                image.files.to_string(),
                render::bytes(image.plain_bytes),
                render::bytes(image.stored_bytes),
                render::age(image.imported_unix, now_unix),
            ]);
        }
    }
    render::table(&["image", "manifest", "files", "size", "stored", "imported"], &[2, 3, 4], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_each_reference_of_an_image() {
        let image = Image::from(ImageSummary {
            references: vec!["app:1".to_owned(), "app:latest".to_owned()],
            manifest_digest: "sha256:0123456789abcdef".to_owned(),
            files: 12,
            plain_bytes: 2_000_000,
            stored_bytes: 900_000,
            imported_unix: 1_000,
            ..ImageSummary::default()
        });
        let text = list(&[image], 1_060);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("app:latest  0123456789ab     12  2.0 MB  900.0 kB  1 minute ago"), "{text}");
    }
}
