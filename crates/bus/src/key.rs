//! Names of any kind as single tokens: what a subject or a bucket's key may not hold is written as `=` and two digits.

use tonic::Status;

/// The longest name, in bytes: three times as long when it is written down, it still fits a subject.
const NAME_MAX: usize = 256;

/// `name` as one token of a subject, and as a key of a bucket.
pub(crate) fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut key, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => key.push(char::from(byte)),
            other => key.push_str(&format!("={other:02x}")),
        }
        key
    })
}

/// [`escaped`], for a name that a caller chose.
pub(crate) fn checked(name: &str) -> Result<String, Status> {
    if name.is_empty() || name.len() > NAME_MAX {
        let length = name.len();
        return Err(Status::invalid_argument(format!("a key of {length} bytes: 1 to {NAME_MAX} expected")));
    }
    Ok(escaped(name))
}

/// The name that [`escaped`] wrote so; none when it wrote nothing like that.
pub(crate) fn unescaped(key: &str) -> Option<String> {
    let (mut name, mut bytes) = (Vec::with_capacity(key.len()), key.bytes());
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'=' => 16 * digit(bytes.next()?)? + digit(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(name).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_own_valid_key_and_is_found_from_it() {
        assert_eq!(escaped("import"), "import");
        assert_eq!(escaped("sha256:ab"), "sha256=3aab");
        assert_ne!(escaped("a:b"), escaped("a=3ab"));
        for name in ["import", "a b.c/d", "ä*>", "a=3ab"] {
            assert_eq!(unescaped(&escaped(name)).as_deref(), Some(name));
        }
        for wrong in ["=", "=4", "=zz", "=ff"] {
            assert_eq!(unescaped(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_name_has_bounds() {
        assert!(checked(&"x".repeat(NAME_MAX)).is_ok());
        assert!(checked("").is_err() && checked(&"x".repeat(NAME_MAX + 1)).is_err());
    }
}
