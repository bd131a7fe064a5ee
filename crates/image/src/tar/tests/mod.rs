use super::*;

pub(crate) mod archive;
mod forms;
mod gnu;
mod hostile;

/// A member with its content, holes as zeros.
#[derive(Debug, PartialEq)]
pub(crate) struct Unpacked {
    pub member: Member,
    pub content: Vec<u8>,
}

impl Unpacked {
    fn path(&self) -> String {
        String::from_utf8_lossy(&self.member.path).into_owned()
    }

    fn xattr(&self, name: &str) -> Option<&[u8]> {
        let xattrs = &self.member.meta.xattrs;
        xattrs.iter().find(|xattr| xattr.name == name.as_bytes()).map(|xattr| &xattr.value[..])
    }
}

/// Reads an archive that is pushed in pieces of `piece` bytes.
fn unpack(archive: &[u8], piece: usize) -> Result<Vec<Unpacked>, TarError> {
    let mut reader = Reader::new();
    let mut members: Vec<Unpacked> = Vec::new();
    let mut open = false;
    for piece in archive.chunks(piece) {
        let mut rest = piece;
        while let Some(event) = reader.next(&mut rest)? {
            match (event, members.last_mut()) {
                (Event::Member(member), _) => {
                    assert!(!open, "a member inside another");
                    open = matches!(member.kind, MemberKind::File(_));
                    members.push(Unpacked { member, content: Vec::new() });
                }
                (Event::Data(data), Some(last)) if open => {
                    assert!(!data.is_empty());
                    last.content.extend_from_slice(data);
                }
                (Event::Hole(len), Some(last)) if open => {
                    last.content.resize(last.content.len() + usize::try_from(len).unwrap(), 0);
                }
                (Event::End, Some(last)) if open => {
                    open = false;
                    assert_eq!(last.member.kind, MemberKind::File(last.content.len() as u64));
                }
                (event, _) => panic!("{event:?} out of order"),
            }
        }
        assert!(rest.is_empty());
    }
    reader.finish()?;
    Ok(members)
}

/// Reads an archive whole and in small pieces: both must be the same.
fn unpack_both_ways(archive: &[u8]) -> Vec<Unpacked> {
    let whole = unpack(archive, archive.len().max(1)).unwrap();
    assert_eq!(unpack(archive, 1).unwrap(), whole);
    assert_eq!(unpack(archive, 700).unwrap(), whole);
    whole
}
