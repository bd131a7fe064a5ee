//! How a snapshot is mounted: what containerd, or the shim of a container, gives to mount(2).
//!
//! ```text
//! nothing below, writable           bind, rw
//! nothing below, read-only          bind, ro, of its own empty folder
//! one layer, read-only              bind, ro
//! layers                            overlay  lowerdir=TOP:…:LOWEST
//! … of an image that streams        the same: all its layers are one, in the folder where they are merged
//! … for a container                 overlay  …,metacopy=on,redirect_dir=on
//! ```
//!
//! Those two options let a container give files other attributes, and folders other names, without copying what may not even be here.
//! Only containers get them: a client of another kind looks into upper folders by itself, or adds options that exclude these, as
//! `BuildKit` does (`redirect_dir=off`).

use std::path::{Path, PathBuf};

use proto::containerd::types::Mount;

/// containerd splits options at commas and, here and there, lower layers at colons.
const SEPARATORS: [char; 2] = [',', ':'];
/// Digits of the names that CRI, Docker and nerdctl give to containers, and to their snapshots.
const CONTAINER_NAME: usize = 64;
/// How containerd calls the snapshot in which it gives the files of an image other owners.
const REMAPPED: &str = "-remap";

/// What a snapshot stands on.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// From the top.
    pub(super) layers: Vec<PathBuf>,
    /// Whether the lowest is an image that streams.
    pub(super) streams: bool,
}

/// The two folders of a snapshot; one that is not writable has no use for the second.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) content: PathBuf,
    pub(super) work: PathBuf,
    /// Whether every file in it is to have its data.
    pub(super) whole: bool,
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
        self.layers.first().map(PathBuf::as_path)
    }
}

/// Whether the snapshot of this key may have files without data of their own: a container's, or one of nothing but other owners. A
/// key has the namespace and a number of containerd's before it.
pub(super) fn may_lack_data(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or(key);
    let is_container = name.len() == CONTAINER_NAME && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_container || name.ends_with(REMAPPED)
}

/// The mount of a snapshot of these folders. `index_off`: the kernel has overlayfs's index, which would refuse a layer that was
/// moved.
pub(super) fn mount(below: &Below, own: &Folder, writable: bool, index_off: bool) -> Mount {
    match (below.layers.as_slice(), writable) {
        ([], true) => bind(&own.content, "rw"),
        ([], false) => bind(&own.content, "ro"),
        ([only], false) => bind(only, "ro"),
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
    let lower: Vec<String> = below.layers.iter().map(|folder| text(folder)).collect();
    let mut options = Vec::new();
    if index_off {
        options.push("index=off".to_owned());
    }
    if let Some(writable) = writable {
        if below.streams && !writable.whole {
            options.extend(["metacopy=on".to_owned(), "redirect_dir=on".to_owned()]);
        }
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

    fn own(whole: bool) -> Folder {
        Folder { content: "/s/9/fs".into(), work: "/s/9/work".into(), whole }
    }

    fn below(layers: &[&str], streams: bool) -> Below {
        Below { layers: layers.iter().map(PathBuf::from).collect(), streams }
    }

    #[test]
    fn one_layer_is_bound_and_more_are_stacked() {
        let none = Below::default();
        assert_eq!(mount(&none, &own(false), true, true).options, ["rbind", "rw"]);
        assert_eq!(mount(&none, &own(false), false, true), bind(Path::new("/s/9/fs"), "ro"));
        for streams in [true, false] {
            let one = below(&["/s/1/fs"], streams);
            assert_eq!(mount(&one, &own(false), false, true), bind(Path::new("/s/1/fs"), "ro"));
        }
        let two = below(&["/s/2/fs", "/s/1/fs"], false);
        let stacked = mount(&two, &own(false), true, true);
        assert_eq!(
            (stacked.r#type.as_str(), stacked.options.join(",").as_str()),
            ("overlay", "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/2/fs:/s/1/fs")
        );
        assert_eq!(two.top(), Some(Path::new("/s/2/fs")));
        assert_eq!(mount(&two, &own(false), false, false).options, ["lowerdir=/s/2/fs:/s/1/fs", "ro"]);
    }

    #[test]
    fn over_an_image_that_streams_no_option_is_unusual_but_for_containers() {
        let over = below(&["/s/1/fs", "/m"], true);
        let options = |whole, writable| mount(&over, &own(whole), writable, false).options.join(",");
        let common = "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs:/m";
        assert_eq!(options(true, true), common);
        assert_eq!(options(false, true), format!("metacopy=on,redirect_dir=on,{common}"));
        assert_eq!(options(false, false), "lowerdir=/s/1/fs:/m,ro");
    }

    #[test]
    fn containers_are_told_from_others_by_their_names() {
        let container = "0123456789abcdef".repeat(4);
        assert!(may_lack_data(&format!("k8s.io/17/{container}")) && may_lack_data(&container));
        assert!(may_lack_data("k8s.io/18/sha256:abc-remap"));
        for other in
            ["moby/3/pqv1k0z2m4c8x7w6t5y9a1b2c", "default/4/one", &format!("moby/5/{container}-init-key"), ""]
        {
            assert!(!may_lack_data(other), "{other}");
        }
    }

    #[test]
    fn a_folder_that_options_cannot_hold_is_refused() {
        check(Path::new("/var/lib/sluice")).unwrap();
        assert!(check(Path::new("/var/lib/a,b")).is_err());
        assert!(check(Path::new("/var/lib/a:b")).is_err());
    }
}
