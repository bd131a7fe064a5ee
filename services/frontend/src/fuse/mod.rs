//! The file system of remote objects: `/ab/<62 hex>`, one for all images of the node.
//!
//! ```text
//! inode 1          the root
//! inode 2..=257    the shards 00 ..= ff
//! inode 258        an empty file, `/probe`: by it the kernel learns what it need not ask
//! inode >= 1024    an object: the first 8 bytes of its digest, big endian
//! ```
//!
//! Nothing is remembered between two requests: there are no handles (`open` is answered "not
//! implemented", after which the kernel no longer asks, and keeps its cache), and a forgotten inode is
//! found again from its number. So the server can be replaced at any moment.
//!
//! Concurrency: fuser's threads decode and answer metadata at once; a read moves its reply into a task
//! of the runtime and is answered when its bytes are here, in any order. After a restart, what is unknown is waited for as long as
//! images that containers read are still being opened.

pub(crate) mod holder;
mod registry;
mod session;
mod takeover;

use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::downloads::{Downloads, ReadError, Seek};
use crate::seldom::Seldom;
pub(crate) use registry::{Awaited, Known, NotAdded, Registry};
pub(crate) use session::{Hold, Session};

/// Objects never change and names never move: the kernel may remember them for as long as it likes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Reads that may wait at once. One costs about 1 KiB while it waits; the kernel blocks the readers of more.
const READS_IN_FLIGHT: usize = 1024;
/// Until an object of an image that is being opened is looked for again.
const OPENING_PAUSE: Duration = Duration::from_millis(50);
/// Read-ahead requests that the kernel may have open: beyond it readers would wait for strangers' data.
const BACKGROUND_MAX: u16 = 256;
/// Only decides how many pages one request may have; nothing is ever written. In bytes.
const REQUEST_MAX: u32 = 1024 * 1024;

const ROOT: u64 = 1;
const FIRST_SHARD: u64 = 2;
const LAST_SHARD: u64 = FIRST_SHARD + 255;
const PROBE: u64 = LAST_SHARD + 1;
const PROBE_NAME: &str = "probe";
const BLOCK: u64 = 512;
/// As Linux numbers them.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The door: finds the object, asks for its bytes, replies.
#[derive(Debug)]
pub(crate) struct Remote {
    known: Arc<Registry>,
    downloads: Downloads,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
    /// How long what is unknown is waited for.
    patience: Duration,
    /// Of reads that fail: a process may try them again as fast as it can.
    failures: Arc<Seldom>,
}

impl Remote {
    pub(crate) fn new(
        known: Arc<Registry>,
        downloads: Downloads,
        runtime: Handle,
        patience: Duration,
    ) -> Remote {
        let in_flight = Arc::new(Semaphore::new(READS_IN_FLIGHT));
        Remote { known, downloads, runtime, in_flight, patience, failures: Arc::default() }
    }

    /// Answers with what `look` finds: at once, or once the images that are awaited are known.
    fn answer<R: Send + 'static>(
        &self,
        reply: R,
        look: impl Fn(&Registry) -> Option<Known> + Send + Sync + 'static,
        answer: impl FnOnce(R, Option<Known>) + Send + 'static,
    ) {
        let found = look(&self.known);
        if found.is_some() || !self.known.awaits() {
            return answer(reply, found);
        }
        let (known, patience) = (self.known.clone(), self.patience);
        let reply = ManuallyDrop::new(reply);
        self.runtime.spawn(async move {
            let found = timeout(patience, known.found(|| look(&known))).await;
            answer(ManuallyDrop::into_inner(reply), found.unwrap_or(None));
        });
    }
}

impl Filesystem for Remote {
    fn init(&mut self, _request: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        // Each is a wish: an older kernel without one of them only asks more often.
        for wish in [
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HAS_RESEND,
        ] {
            if let Err(missing) = kernel.add_capabilities(wish) {
                tracing::debug!(?missing, "the kernel's fuse lacks a capability");
            }
        }
        kernel.set_max_write(REQUEST_MAX).ok();
        kernel.set_max_background(BACKGROUND_MAX).ok();
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = |reply: ReplyEntry, found: Option<(FileAttr, Generation)>| match found {
            Some((attributes, generation)) => reply.entry(&FOREVER, &attributes, generation),
            // Not cached by the kernel: the image that knows the object may be mounted next.
            None => reply.error(Errno::ENOENT),
        };
        match parent.0 {
            ROOT if name == PROBE_NAME => {
                answer(reply, Some((attributes(PROBE, FileType::RegularFile, 0o444, 0), Generation(0))))
            }
            ROOT => answer(reply, shard_of(name).map(directory)),
            FIRST_SHARD..=LAST_SHARD => {
                let (shard, name) = ((parent.0 - FIRST_SHARD) as u8, name.to_owned());
                let look = move |known: &Registry| known.by_name(shard, &name);
                self.answer(reply, look, move |reply, known| answer(reply, known.as_ref().map(file)))
            }
            _ => answer(reply, None),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match inode.0 {
            ROOT..=LAST_SHARD => reply.attr(&FOREVER, &directory(inode.0).0),
            PROBE => reply.attr(&FOREVER, &attributes(PROBE, FileType::RegularFile, 0o444, 0)),
            other => self.answer(
                reply,
                move |known| known.by_inode(other),
                |reply, known| match known {
                    Some(known) => reply.attr(&FOREVER, &file(&known).0),
                    None => reply.error(Errno::ENOENT),
                },
            ),
        }
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // Attributes stand in the tree; "not implemented" keeps the kernel from ever asking again.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _inode: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        // The shards are listed for whoever looks; objects are not: nobody needs a million names.
        let shards = if inode.0 == ROOT { 256 } else { 0 };
        for position in offset..2 + shards {
            let (entry, name) = match position {
                0 => (inode.0, ".".to_owned()),
                1 => (ROOT, "..".to_owned()),
                shard => (FIRST_SHARD + shard - 2, format!("{:02x}", shard - 2)),
            };
            if reply.add(INodeNo(entry), position + 1, FileType::Directory, name) {
                break;
            }
        }
        reply.ok();
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let (Some(seek), Ok(offset)) = (seek_of(whence), u64::try_from(offset)) else {
            return reply.error(Errno::EINVAL);
        };
        let (downloads, runtime) = (self.downloads.clone(), self.runtime.clone());
        self.answer(
            reply,
            move |known| known.by_inode(inode.0),
            move |reply, known| {
                let Some(known) = known else { return reply.error(Errno::ESTALE) };
                let reply = ManuallyDrop::new(reply);
                runtime.spawn(async move {
                    let found = downloads.seek(known.digest, offset, seek).await;
                    if matches!(found, Err(ReadError::Stopped(_))) {
                        return;
                    }
                    let reply = ManuallyDrop::into_inner(reply);
                    match found {
                        Ok(found) if found < known.len || seek == Seek::Hole && offset < known.len => {
                            reply.offset(found.cast_signed())
                        }
                        Ok(_) => reply.error(Errno::ENXIO),
                        Err(error) => reply.error(errno(&error)),
                    }
                });
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (registry, downloads, patience) = (self.known.clone(), self.downloads.clone(), self.patience);
        let (in_flight, failures) = (self.in_flight.clone(), self.failures.clone());
        // Dropped, it would be an answer: an I/O error. What ends with this process is not answered, and the kernel asks
        // the next one again.
        let reply = ManuallyDrop::new(reply);
        self.runtime.spawn(async move {
            let _turn = in_flight.acquire_owned().await;
            let known = timeout(patience, registry.found(|| registry.by_inode(inode.0))).await;
            let Ok(Some(known)) = known else {
                if let Some(unsaid) = failures.due() {
                    tracing::warn!(
                        inode = inode.0,
                        unsaid,
                        "read of an object that no image of this node names"
                    );
                }
                return ManuallyDrop::into_inner(reply).error(Errno::ESTALE);
            };
            let mut read = downloads.read(known.digest, offset, size as usize).await;
            // Its image is being opened: its download begins a moment after its objects are known.
            let asked = Instant::now();
            while matches!(read, Err(ReadError::Unknown(_))) && registry.awaits() && asked.elapsed() < patience {
                sleep(OPENING_PAUSE).await;
                read = downloads.read(known.digest, offset, size as usize).await;
            }
            if matches!(read, Err(ReadError::Stopped(_))) {
                return;
            }
            let reply = ManuallyDrop::into_inner(reply);
            match read {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    if let Some(unsaid) = failures.due() {
                        let path = known.digest.path();
                        tracing::error!(path, offset, size, unsaid, error = %error, "read of a remote object failed");
                    }
                    reply.error(errno(&error));
                }
            }
        });
    }
}

/// Where data, or a hole, is looked for; none for a seek that the kernel does by itself.
fn seek_of(whence: i32) -> Option<Seek> {
    match whence {
        SEEK_DATA => Some(Seek::Data),
        SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

/// What a process is told. `EIO` only when every retry within the bound was used up.
fn errno(error: &ReadError) -> Errno {
    match error {
        ReadError::Unknown(_) => Errno::ESTALE,
        _ => Errno::EIO,
    }
}

/// The shard's inode of a name of two lower-case hexadecimal digits.
fn shard_of(name: &OsStr) -> Option<u64> {
    let name = name
        .to_str()
        .filter(|name| name.len() == 2 && !name.bytes().any(|byte| byte.is_ascii_uppercase()))?;
    let mut shard = [0];
    hex::decode_to_slice(name, &mut shard).ok()?;
    Some(FIRST_SHARD + u64::from(shard[0]))
}

fn directory(inode: u64) -> (FileAttr, Generation) {
    (attributes(inode, FileType::Directory, 0o555, 0), Generation(0))
}

/// The generation is more of the digest: should the kernel still remember another object of this
/// inode number, one that was long evicted, it sees that this is not the same.
fn file(known: &Known) -> (FileAttr, Generation) {
    let bytes = known.digest.as_bytes();
    let generation = u32::from_be_bytes([0, bytes[8], bytes[9], bytes[10]]);
    let attributes = attributes(registry::inode(&known.digest), FileType::RegularFile, 0o444, known.len);
    (FileAttr { blocks: known.data_len.div_ceil(BLOCK), ..attributes }, Generation(generation.into()))
}

fn attributes(inode: u64, kind: FileType, perm: u16, size: u64) -> FileAttr {
    let epoch: SystemTime = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(BLOCK),
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
