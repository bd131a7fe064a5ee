//! An image of many files whose bytes follow from their numbers, so that anybody can check them.

use std::ops::Range;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use testkit::{ImageSpec, Tarball};

use crate::kubernetes::{Node, busybox};
use crate::noise;

/// `/data/N` is noise, `/sums/N` what `sha256sum -c` wants to know of it.
#[derive(Clone, Debug)]
pub struct Numbered {
    pub files: u64,
    pub len: usize,
    /// Images of different seeds share nothing but their busybox.
    pub seed: u64,
}

impl Numbered {
    pub fn bytes(&self, number: u64) -> Vec<u8> {
        noise(self.seed * 1000 + number, self.len)
    }

    pub fn image(&self) -> anyhow::Result<ImageSpec> {
        let empty = Tarball::new().directory("data").directory("sums");
        let data = (0..self.files).fold(empty, |tar, number| {
            let bytes = self.bytes(number);
            let line = format!("{}  /data/{number}\n", hex::encode(Sha256::digest(&bytes)));
            tar.file(&format!("data/{number}"), &bytes).file(&format!("sums/{number}"), line.as_bytes())
        });
        Ok(ImageSpec::new([busybox()?.finish(), data.finish()]))
    }

    /// Pushes and pulls it; its reference.
    pub fn pull(&self, node: &Node, name: &str) -> anyhow::Result<String> {
        let image = node.push(name, &self.image()?)?;
        node.cri.pull(&image)?;
        Ok(image)
    }

    /// Reads files inside a container, which must have the right bytes.
    pub fn read_inside(&self, node: &Node, container: &str, numbers: Range<u64>) -> anyhow::Result<()> {
        let lists: Vec<String> = numbers.map(|number| format!("/sums/{number}")).collect();
        let script = format!("for list in {}; do sha256sum -c $list; done", lists.join(" "));
        node.cri.exec(container, &["/bin/sh", "-euc", &script])?;
        Ok(())
    }

    /// Reads files below a root, which must have the right bytes.
    pub fn read(&self, root: &Path, numbers: Range<u64>) -> anyhow::Result<()> {
        for number in numbers {
            let bytes = std::fs::read(root.join(format!("data/{number}")))?;
            anyhow::ensure!(bytes == self.bytes(number), "file {number} has wrong bytes");
        }
        Ok(())
    }
}
