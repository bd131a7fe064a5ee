//! How a snapshot is mounted: what containerd, or the shim of a container, gives to mount(2).
//!
//! ```text
//! nothing below, writable           bind, rw
//! nothing below, read-only          bind, ro, of its own empty folder
//! one ordinary layer, read-only     bind, ro
//! ordinary layers                   overlay  lowerdir=TOP:…:LOWEST
//! … over an image that streams      overlay  lowerdir=TOP:…:TREE::LOCAL::REMOTE,metacopy=on,redirect_dir=on
//! … to unpack a layer into          overlay  lowerdir=TOP:…:TREE
//! ```

use std::path::{Path, PathBuf};

use proto::containerd::types::Mount;

use crate::mount::Layers;

/// containerd splits options at commas and, here and there, lower layers at colons.
const SEPARATORS: [char; 2] = [',', ':'];

/// What a snapshot stands on, from the top.
#[derive(Debug, Default)]
pub(super) struct Below {
    pub(super) ordinary: Vec<PathBuf>,
    pub(super) streamed: Option<Layers>,
}

/// The two folders of a snapshot; one that is not writable has no use for the second.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) content: PathBuf,
    pub(super) work: PathBuf,
}

/// A state folder whose paths cannot stand in mount options.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the path {} has a comma or a colon, which mount options cannot hold: choose another state folder", .0.display())]
pub(crate) struct Unmountable(PathBuf);

/// Refuses a folder that no snapshot below it could be mounted from.
pub(super) fn check(folder: &Path) -> Result<(), Unmountable> {
    let fine = folder.to_str().is_some_and(|path| !path.contains(SEPARATORS));
    if fine { Ok(()) } else { Err(Unmountable(folder.to_owned())) }
}

impl Below {
    /// Where the merged root's own attributes stand, from the top.
    pub(super) fn top(&self) -> Option<&Path> {
        self.ordinary.first().or(self.streamed.as_ref().map(|stack| &stack.tree)).map(PathBuf::as_path)
    }

    /// The same to unpack a layer over. containerd mounts nothing then: it writes into the upper folder, and looks at the
    /// lower ones for the attributes of folders that the layer does not mention. It splits them at every colon, and the
    /// empty path between two would be this machine's own root. Data layers have no attributes to look at.
    pub(super) fn attributes_only(mut self) -> Below {
        self.ordinary.extend(self.streamed.take().map(|stack| stack.tree));
        self
    }
}

/// The mount of a snapshot of these folders. `index_off`: the kernel has overlayfs's index, which would refuse a layer that was
/// moved.
pub(super) fn mount(below: &Below, own: &Folder, writable: bool, index_off: bool) -> Mount {
    match (below.ordinary.as_slice(), &below.streamed, writable) {
        ([], None, true) => bind(&own.content, "rw"),
        ([], None, false) => bind(&own.content, "ro"),
        ([only], None, false) => bind(only, "ro"),
        _ => overlay(below, writable.then_some(own), index_off),
    }
}

fn bind(folder: &Path, mode: &str) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: text(folder),
        target: String::new(),
        options: vec!["rbind".to_owned(), mode.to_owned()],
    }
}

fn overlay(below: &Below, writable: Option<&Folder>, index_off: bool) -> Mount {
    let mut lower: Vec<String> = below.ordinary.iter().map(|folder| text(folder)).collect();
    let mut options = Vec::new();
    if index_off {
        options.push("index=off".to_owned());
    }
    if let Some(stack) = &below.streamed {
        let [tree, local, remote] = [&stack.tree, &stack.local, &stack.remote].map(|path| text(path));
        lower.push(format!("{tree}::{local}::{remote}"));
        options.extend(["metacopy=on".to_owned(), "redirect_dir=on".to_owned()]);
    }
    if let Some(writable) = writable {
        options.push(format!("workdir={}", text(&writable.work)));
        options.push(format!("upperdir={}", text(&writable.content)));
    }
    options.push(format!("lowerdir={}", lower.join(":")));
    if writable.is_none() {
        options.push("ro".to_owned());
    }
    Mount { r#type: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }
}

/// Checked by [`check`] to be one, at the start.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Folder {
        Folder { content: "/s/9/fs".into(), work: "/s/9/work".into() }
    }

    fn stack() -> Layers {
        Layers { tree: "/t".into(), local: "/l".into(), remote: "/r".into() }
    }

    #[test]
    fn one_layer_is_bound_and_more_are_stacked() {
        let none = Below::default();
        assert_eq!(mount(&none, &own(), true, true).options, ["rbind", "rw"]);
        assert_eq!(mount(&none, &own(), false, true), bind(Path::new("/s/9/fs"), "ro"));
        let one = Below { ordinary: vec!["/s/1/fs".into()], streamed: None };
        assert_eq!(mount(&one, &own(), false, true), bind(Path::new("/s/1/fs"), "ro"));
        let two = Below { ordinary: vec!["/s/2/fs".into(), "/s/1/fs".into()], streamed: None };
        let stacked = mount(&two, &own(), true, true);
        assert_eq!(
            (stacked.r#type.as_str(), stacked.options.join(",").as_str()),
            ("overlay", "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/2/fs:/s/1/fs")
        );
        assert_eq!(mount(&two, &own(), false, false).options, ["lowerdir=/s/2/fs:/s/1/fs", "ro"]);
    }

    #[test]
    fn an_image_that_streams_is_the_lowest() {
        let below = Below { ordinary: vec!["/s/1/fs".into()], streamed: Some(stack()) };
        let options = mount(&below, &own(), true, false).options.join(",");
        assert_eq!(
            options,
            "metacopy=on,redirect_dir=on,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs:/t::/l::/r"
        );
        assert_eq!(below.top(), Some(Path::new("/s/1/fs")));
        let alone = Below { ordinary: Vec::new(), streamed: Some(stack()) };
        assert_eq!(
            mount(&alone, &own(), false, false).options,
            ["metacopy=on", "redirect_dir=on", "lowerdir=/t::/l::/r", "ro"]
        );
        assert_eq!(alone.top(), Some(Path::new("/t")));
    }

    #[test]
    fn a_layer_is_unpacked_over_attributes_alone() {
        let below = Below { ordinary: vec!["/s/1/fs".into()], streamed: Some(stack()) }.attributes_only();
        let options = mount(&below, &own(), true, false).options.join(",");
        assert_eq!(options, "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs:/t");
        let alone = Below { ordinary: Vec::new(), streamed: Some(stack()) }.attributes_only();
        assert_eq!(alone.top(), Some(Path::new("/t")));
    }

    #[test]
    fn a_folder_that_options_cannot_hold_is_refused() {
        check(Path::new("/var/lib/sluice")).unwrap();
        assert!(check(Path::new("/var/lib/a,b")).is_err());
        assert!(check(Path::new("/var/lib/a:b")).is_err());
    }
}
