#!/usr/bin/env bash
# Writes the seed corpora anew: archives by GNU tar in all its formats, and what is made of them.
# Needs root (devices, owners, trusted attributes) and setfattr.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir -p "$tree/dir" "$work/long"
printf 'small' >"$tree/dir/small"
seq 400 >"$tree/dir/object"
ln "$tree/dir/small" "$tree/hard"
ln -s ../dir/small "$tree/soft"
touch "$tree/dir/.wh.gone" "$tree/dir/.wh..wh..opq"
mkfifo "$tree/fifo"
mknod "$tree/null" c 1 3
# Long enough to keep its holes.
truncate -s 400000 "$tree/sparse"
printf 'data' | dd of="$tree/sparse" bs=1 seek=200000 conv=notrunc status=none
touch -d '1969-12-31 23:59:58.5 UTC' "$tree/dir/small"
setfattr -n user.note -v text "$tree/dir/object"

long=$(printf 'd%.0s' {1..120})
mkdir "$work/long/$long"
printf 'deep' >"$work/long/$long/$long"
ln -s "$long/$long" "$work/long/soft"

write() { # NAME FOLDER OPTION...
    tar --create --sort=name --mtime='2001-02-03 04:05:06.789 UTC' --numeric-owner --blocking-factor=1 \
        --file="$work/$1.tar" --directory="$work/$2" "${@:3}" .
}
for format in oldgnu gnu ustar pax; do write "$format" tree --format=$format --exclude=./sparse; done
write v7 tree --format=v7 --exclude=./sparse --exclude=./fifo --exclude=./null
for format in oldgnu gnu; do write "$format-sparse" tree --format=$format --sparse; done
for version in 0.0 0.1 1.0; do write "pax-sparse-$version" tree --format=pax --sparse --sparse-version=$version; done
write pax-xattrs tree --format=pax --xattrs --exclude=./sparse
for format in gnu pax; do write "$format-long" long --format=$format; done

rm -rf corpus
cargo run --quiet --example seeds -- corpus "$work"/*.tar
