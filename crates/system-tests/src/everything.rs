//! An image of four layers in which everything is that a layer can hold, and everything that one does to those below.

use std::path::Path;

use testkit::{Compression, ImageSpec};

use crate::builders::shell;

/// The lowest layer, made in the folder that it is to fill.
const BASE: &str = r#"
mkdir -p removed-folder/inner opaque/inner emptied folder-becomes-file folder-becomes-link links/one links/two modes \
    owners names times devices symlinks sizes attributes unmentioned/deep re-owned twice
for path in removed-file removed-folder/inner/file opaque/old opaque/inner/old emptied/only folder-becomes-file/inside \
    file-becomes-folder file-becomes-fifo folder-becomes-link/inside unmentioned/deep/old re-owned/kept twice/removed \
    fifo-becomes-file-not-yet; do echo "$path" > $path; done
mv fifo-becomes-file-not-yet twice/again
mkfifo fifo-becomes-file
ln -s opaque link-becomes-folder

echo linked > links/one/a && ln links/one/a links/two/b && ln links/one/a links/c
echo pair > links/one/stays && ln links/one/stays links/two/goes
echo other > links/one/replaced && ln links/one/replaced links/two/old
mkfifo links/fifo && ln links/fifo links/one/fifo
ln -s nowhere links/symlink && ln links/symlink links/two/symlink

for mode in 0000 0400 0644 0755 1644 2755 4755 6711 7777; do echo $mode > modes/$mode && chmod $mode modes/$mode; done
for mode in 0000 0700 1777 2775 7755; do mkdir modes/folder-$mode && chmod $mode modes/folder-$mode; done
for owner in 0:5 12:34 65534:65534 1234567:7654321 2147483653:4294967294; do
    echo $owner > owners/file-$owner && chown $owner owners/file-$owner
    ln -s x owners/link-$owner && chown -h $owner owners/link-$owner
    mkdir owners/folder-$owner && chown $owner owners/folder-$owner
done

for name in ' leading' 'new
line' "$(printf 'caf\303\251')" "$(printf 'not \377\376 utf-8')" 'back\slash' 'a:colon,comma' '*' '-dash' .hidden \
    "$(head -c 255 /dev/zero | tr '\0' n)"; do echo "$name" > "names/$name"; done
mkdir "$(printf 'names/folder \200')" && echo inside > "$(printf 'names/folder \200/\201')"

mknod devices/null c 1 3 && mknod devices/large-minor c 240 300000 && mknod devices/loop b 7 5 && mkfifo devices/fifo
chmod 640 devices/loop && chown 7:8 devices/fifo

ln -s self symlinks/self && ln -s two symlinks/one && ln -s one symlinks/two && ln -s ../symlinks symlinks/up
ln -s /absolute/nowhere symlinks/dangling && ln -s ../../../../../etc symlinks/out
ln -s "$(head -c 3000 /dev/zero | tr '\0' l)" symlinks/long

: > sizes/empty && printf x > sizes/one
for size in 511 512 513 4096 65537 9000000; do head -c $size /dev/urandom > sizes/$size; done
truncate -s 20M sizes/sparse && printf data | dd of=sizes/sparse bs=1 seek=7000001 conv=notrunc status=none
truncate -s 3M sizes/hole

cp sizes/513 attributes/capable && setcap cap_net_raw,cap_net_admin+ep attributes/capable
echo x > attributes/coloured && setfattr -n user.colour -v blue attributes/coloured
setfattr -n user.empty attributes/coloured && setfattr -n user.binary -v 0x00ff0a3d00 attributes/coloured
mkdir attributes/folder && setfattr -n user.of-a-folder -v yes attributes/folder
setfattr -n user.large -v "$(head -c 2000 /dev/zero | tr '\0' v)" attributes/folder

find . -depth -exec touch -h -d '2001-02-03 04:05:06.25 UTC' {} +
for time in '1901-12-14 00:00:00' '1969-12-31 23:59:58.75' '1970-01-01 00:00:00' '2011-11-11 11:11:11.123456789' \
    '2038-01-19 03:14:08' '2099-01-01 00:00:00'; do
    : > "times/$time" && touch -d "$time UTC" "times/$time"
    mkdir "times/folder $time" && touch -d "$time UTC" "times/folder $time"
done
touch -d '2002-02-02 UTC' times
"#;

/// What the second layer does to it.
const CHANGES: &str = r#"
mkdir -p opaque emptied file-becomes-folder link-becomes-folder links/one links/two re-owned twice new-and-opaque
touch .wh.removed-file .wh.removed-folder opaque/.wh..wh..opq emptied/.wh.only links/two/.wh.goes twice/.wh.removed \
    new-and-opaque/.wh..wh..opq
echo new > opaque/new
echo file > folder-becomes-file
echo inside > file-becomes-folder/inside
echo inside > link-becomes-folder/inside
ln -s opaque folder-becomes-link
mkfifo file-becomes-fifo
echo file > fifo-becomes-file
echo own > links/one/replaced
echo more > links/one/d && ln links/one/d links/two/d
echo inside > new-and-opaque/inside
chmod 2711 re-owned && chown 55:66 re-owned && setfattr -n user.re-owned -v yes re-owned
find . -depth -exec touch -h -d '2003-03-03 03:03:03.5 UTC' {} +
"#;

/// What the third one does to both.
const MORE_CHANGES: &str = r#"
mkdir -p removed-folder file-becomes-folder opaque twice emptied
echo again > removed-file
echo fresh > removed-folder/fresh
touch file-becomes-folder/.wh.inside opaque/.wh.new twice/.wh.again
echo again > twice/removed
mkdir emptied/only && echo inside > emptied/only/inside
echo folder > folder-becomes-link
head -c 70000 /dev/urandom > sizes-are-here-too
find . -depth -exec touch -h -d '2004-04-04 04:04:04 UTC' {} +
"#;

/// And the fourth, which has no entries for the folders that it writes into.
const INTO_FOLDERS_OF_OTHERS: &str = r#"
mkdir -p unmentioned/deep modes/folder-7755
echo new > unmentioned/deep/new
echo new > modes/folder-7755/new
find . -depth -exec touch -h -d '2005-05-05 05:05:05 UTC' {} +
"#;

/// Folders into which the highest layer writes without a word on them. Where it is unpacked they get the time of that; in a
/// tree they keep that of the layer which says how they are.
pub const WRITTEN_INTO: [&str; 5] = ["", "modes", "modes/folder-7755", "unmentioned", "unmentioned/deep"];

/// Files that a higher layer leaves no other name. A file of an unpacked layer is still counted twice, as overlayfs has no
/// index of links there.
pub const WITHOUT_OTHER_NAMES: [&str; 2] = ["links/one/stays", "links/two/old"];

/// Makes the layers in the folder `work`.
pub fn image(work: &Path) -> anyhow::Result<ImageSpec> {
    let layers = [
        (BASE, "--sparse .", Compression::Gzip),
        (CHANGES, ".", Compression::None),
        (MORE_CHANGES, ".", Compression::Zstd),
        (INTO_FOLDERS_OF_OTHERS, "unmentioned/deep/new modes/folder-7755/new", Compression::Gzip),
    ];
    let mut spec = ImageSpec::default();
    for (number, (script, members, compression)) in layers.into_iter().enumerate() {
        let (root, archive) =
            (work.join(format!("layer-{number}")), work.join(format!("layer-{number}.tar")));
        std::fs::create_dir_all(&root)?;
        shell(&root, script)?;
        let options = "--format=pax --numeric-owner --xattrs --xattrs-include='*'";
        shell(&root, &format!("tar {options} -cf {} {members}", archive.display()))?;
        spec.layers.push((std::fs::read(&archive)?, Some(compression)));
    }
    Ok(spec)
}
