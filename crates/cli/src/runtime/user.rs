//! Who the container runs as: names are looked up in the image's own passwd and group files.
//!
//! The image's files are read with the root as the boundary of every symlink (`openat2`, `RESOLVE_IN_ROOT`), and only
//! when the answer needs them: an image that runs as root is not read at all.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A passwd or group file larger than this is not one, in bytes.
const DATABASE_MAX: u64 = 4 * 1024 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// The files of an image's root that know users and groups.
pub trait Databases {
    /// The text of a file; empty when it does not exist.
    fn read(&self, path: &str) -> anyhow::Result<String>;
}

/// Resolves `user` as the image specification says: `user`, `uid`, `user:group`, `uid:gid`, and mixtures.
pub fn identity(user: &str, databases: &impl Databases) -> anyhow::Result<Identity> {
    if matches!(user, "" | "0" | "root" | "0:0") {
        return Ok(Identity::default());
    }
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let passwd = databases.read("etc/passwd")?;
    let groups = databases.read("etc/group")?;
    let account = passwd.lines().filter_map(Account::parse).find(|account| account.is(user));
    let uid = match (&account, user.parse()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => bail!("the image's /etc/passwd has no user {user:?}"),
    };
    let (gid, additional_gids) = match group {
        Some(group) => (group_id(group, &groups)?, Vec::new()),
        None => {
            let gid = account.as_ref().map_or(0, |account| account.gid);
            let name = account.as_ref().map(|account| account.name);
            (gid, name.map(|name| memberships(name, &groups)).unwrap_or_default())
        }
    };
    Ok(Identity { uid, gid, additional_gids })
}

fn group_id(group: &str, groups: &str) -> anyhow::Result<u32> {
    let named = groups.lines().filter_map(Group::parse).find(|entry| entry.name == group);
    match (named, group.parse()) {
        (Some(entry), _) => Ok(entry.gid),
        (None, Ok(gid)) => Ok(gid),
        (None, Err(_)) => bail!("the image's /etc/group has no group {group:?}"),
    }
}

fn memberships(name: &str, groups: &str) -> Vec<u32> {
    let member = |group: &Group<'_>| group.members.split(',').any(|member| member == name);
    let mut gids: Vec<u32> = groups.lines().filter_map(Group::parse).filter(member).map(|g| g.gid).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// `name:password:uid:gid:…`
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Account<'a>> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    }

    fn is(&self, user: &str) -> bool {
        self.name == user || user.parse() == Ok(self.uid)
    }
}

/// `name:password:gid:member,member`
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Group<'a>> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    }
}

/// A mounted root file system.
#[derive(Clone, Copy, Debug)]
pub struct RootDir<'a>(pub &'a Path);

impl Databases for RootDir<'_> {
    fn read(&self, path: &str) -> anyhow::Result<String> {
        let context = || format!("read /{path} of the image");
        let directory = File::open(self.0).with_context(context)?;
        // Not blocking: an image may have put a FIFO there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat2(&directory, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
            Err(error) => return Err(error).with_context(context),
        };
        if !file.metadata().with_context(context)?.is_file() {
            bail!("/{path} of the image is not a file");
        }
        let mut bytes = Vec::new();
        file.take(DATABASE_MAX).read_to_end(&mut bytes).with_context(context)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image;

    impl Databases for Image {
        fn read(&self, path: &str) -> anyhow::Result<String> {
            Ok(match path {
                "etc/passwd" => {
                    "root:x:0:0:root:/root:/bin/sh\nbroken line\nwww:x:33:34::/:/bin/false\n5:x:7:8::/:"
                }
                "etc/group" => "root:x:0:\nwww:x:34:\nlog:x:50:www,root\nssl:x:40:www\n",
                _ => "",
            }
            .to_owned())
        }
    }

    #[test]
    fn resolves_every_form() {
        let cases: &[(&str, u32, u32, &[u32])] = &[
            ("", 0, 0, &[]),
            ("root", 0, 0, &[]),
            ("www", 33, 34, &[40, 50]),
            ("33", 33, 34, &[40, 50]),
            ("www:log", 33, 50, &[]),
            ("www:99", 33, 99, &[]),
            ("1000", 1000, 0, &[]),
            ("1000:1001", 1000, 1001, &[]),
            ("5", 7, 8, &[]),
        ];
        for &(user, uid, gid, additional) in cases {
            let expected = Identity { uid, gid, additional_gids: additional.to_vec() };
            assert_eq!(identity(user, &Image).unwrap(), expected, "{user:?}");
        }
        assert!(identity("nobody", &Image).unwrap_err().to_string().contains("nobody"));
        assert!(identity("www:nogroup", &Image).unwrap_err().to_string().contains("nogroup"));
    }

    #[test]
    fn an_image_cannot_point_outside_its_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "me:x:1:1::/:").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), root.path().join("etc/passwd")).unwrap();
        assert_eq!(RootDir(root.path()).read("etc/passwd").unwrap(), "");
        std::fs::write(root.path().join("etc/group"), "g:x:5:").unwrap();
        assert_eq!(RootDir(root.path()).read("etc/group").unwrap(), "g:x:5:");
        assert_eq!(RootDir(root.path()).read("etc/none").unwrap(), "");
    }
}
