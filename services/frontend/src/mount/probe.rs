//! What the machine must be able to do, looked at before anything is mounted.
//!
//! Each refusal says what is missing and what to do about it.

use std::fs;
use std::path::Path;

use rustix::thread::CapabilitySet;

/// Overlay layers given one by one, with data-only ones among them (`lowerdir+`, `datadir+`).
const KERNEL_MIN: (u32, u32) = (6, 8);
const FILESYSTEMS: &str = "/proc/filesystems";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    #[error(
        "Linux {found} is too old: streaming needs {}.{} or newer, for overlayfs with data-only layers; \
         update the kernel, or pull images normally on this node", KERNEL_MIN.0, KERNEL_MIN.1
    )]
    Kernel { found: String },
    #[error(
        "this process may not mount: it needs the capability CAP_SYS_ADMIN; run it as root, or in a container as privileged"
    )]
    Capability,
    #[error("/dev/fuse is missing: load the module with `modprobe fuse`, or give the container that device")]
    Fuse,
    #[error("the kernel does not know the file system {0}: load it with `modprobe {0}`")]
    FileSystem(&'static str),
}

/// Checks this machine.
pub(crate) fn check() -> Result<(), Missing> {
    check_kernel(&rustix::system::uname().release().to_string_lossy())?;
    let capable = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if !capable {
        return Err(Missing::Capability);
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(Missing::Fuse);
    }
    let known = fs::read_to_string(FILESYSTEMS).unwrap_or_default();
    ["overlay", "erofs"].into_iter().try_for_each(|kind| check_file_system(kind, &known))
}

fn check_kernel(release: &str) -> Result<(), Missing> {
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < KERNEL_MIN {
        return Err(Missing::Kernel { found: release.to_owned() });
    }
    Ok(())
}

/// Mounting one makes the kernel load its module: so not being listed only counts when that fails too.
fn check_file_system(kind: &'static str, known: &str) -> Result<(), Missing> {
    let listed = known.lines().any(|line| line.split_whitespace().last() == Some(kind));
    if listed || rustix::mount::fsopen(kind, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_ok() {
        return Ok(());
    }
    Err(Missing::FileSystem(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_kernels_by_number() {
        for good in ["6.8.0-31-generic", "6.12", "6.18.44-fc-v595", "7.0.0-rc1"] {
            assert_eq!(check_kernel(good), Ok(()), "{good}");
        }
        for old in ["6.7.9", "6.1.0-18-amd64", "5.15.0", ""] {
            assert!(check_kernel(old).is_err(), "{old}");
        }
    }

    #[test]
    fn an_unknown_file_system_is_named() {
        assert_eq!(
            check_file_system("nosuchfs", "nodev\tproc\n\text4\n"),
            Err(Missing::FileSystem("nosuchfs"))
        );
        assert_eq!(check_file_system("ext4", "nodev\tproc\n\text4\n"), Ok(()));
    }

    #[test]
    fn this_machine_can() {
        assert_eq!(check(), Ok(()));
    }
}
