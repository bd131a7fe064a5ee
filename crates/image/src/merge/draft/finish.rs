//! From the draft to the table.

use super::{Draft, DraftInode, Name, ROOT};
use crate::merge::tree::{Child, FileTree, Inode, InodeId};

impl Draft {
    /// Takes over what can be reached from the root, in the order that [`FileTree`] promises.
    pub(in crate::merge) fn finish(mut self) -> FileTree {
        let (order, numbers) = self.order();
        debug_assert_eq!(order.len() + self.free.len(), self.inodes.len(), "each is reached or gone");
        let mut inodes = Vec::with_capacity(order.len());
        for old in order {
            let DraftInode { meta, node, .. } = self.inodes[old].take();
            let node = node.map_directory(|names| {
                let child =
                    |(name, found): (Box<[u8]>, Name)| Child { name, id: InodeId(numbers[found.inode]) };
                names.into_iter().map(child).collect()
            });
            inodes.push(Inode { meta, nlink: 0, node });
        }
        FileTree::new(inodes)
    }

    /// The old numbers of all reachable inodes in their new order, and the new number of each old one.
    fn order(&self) -> (Vec<usize>, Vec<u32>) {
        const UNSEEN: u32 = u32::MAX;
        let mut numbers = vec![UNSEEN; self.inodes.len()];
        let mut order = vec![ROOT];
        numbers[ROOT] = 0;
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let first = pending.len();
            for name in self.names(directory).into_iter().flat_map(|names| names.values()) {
                if numbers[name.inode] == UNSEEN {
                    // Fits: `add` bounds the inodes far below 2^32.
                    numbers[name.inode] = order.len() as u32;
                    order.push(name.inode);
                    if self.names(name.inode).is_some() {
                        pending.push(name.inode);
                    }
                }
            }
            pending[first..].reverse();
        }
        (order, numbers)
    }
}
