//! What a node shows once, to be believed the first time.
//!
//! `sluice-1.<id>.<secret>.<fingerprint of the authority>`: with the last part a node knows whom to believe before it has any
//! file. Of the secret only its digest is kept. That a token was used is a file that only one process can make, so that of two nodes
//! with one token, asked of two servers, one is refused; the same key may ask again, as its answer may have been lost.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{files, now_unix};

const VERSION: &str = "sluice-1";
const ID_LEN: usize = 8;
/// Nodes that one token may bring: a group that grows by itself, not a fleet.
const USES_MAX: u32 = 10_000;

/// As a person copies it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: Vec<u8>,
    /// Of the authority's certificate.
    pub authority: [u8; 32],
}

/// As it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFile {
    pub id: String,
    digest: String,
    /// The node's name, or how names begin, with a `*` at the end.
    pub node: String,
    pub projects: Vec<String>,
    pub expires_unix: u64,
    pub uses: u32,
}

/// The tokens of a folder.
#[derive(Clone, Debug)]
pub struct Tokens {
    folder: PathBuf,
}

/// Why a token opens nothing. What is told to who asks does not say which.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("not a token")]
    Malformed,
    #[error("nobody knows this token")]
    Unknown,
    #[error("the token is over")]
    Expired,
    #[error("the token was used")]
    Used,
    #[error("the token is for {0}, not for this node")]
    OtherNode(String),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Tokens {
    pub fn open(folder: &Path) -> Tokens {
        Tokens { folder: folder.to_owned() }
    }

    /// A new one, as a person copies it.
    pub fn make(
        &self,
        node: &str,
        projects: &[String],
        life: Duration,
        uses: u32,
        authority: [u8; 32],
    ) -> anyhow::Result<(Token, TokenFile)> {
        ensure!((1..=USES_MAX).contains(&uses), "a token may be used 1 to {USES_MAX} times, not {uses}");
        ensure!(!projects.is_empty(), "a token for no project is of no use");
        let name = node.strip_suffix('*').unwrap_or(node);
        ensure!(!name.contains('*'), "{node:?}: a node's name, or its beginning with `*` at the end");
        for project in projects {
            // Also checks the names.
            tls::Name::node(project, if name.is_empty() { "node" } else { name })?;
        }
        let token = Token {
            id: hex::encode(rand::random::<[u8; ID_LEN]>()),
            secret: rand::random::<[u8; 32]>().to_vec(),
            authority,
        };
        let file = TokenFile {
            id: token.id.clone(),
            digest: hex::encode(Sha256::digest(&token.secret)),
            node: node.to_owned(),
            projects: projects.to_vec(),
            expires_unix: now_unix().saturating_add(life.as_secs()),
            uses,
        };
        files::write_json(&self.file(&token.id), &file)?;
        Ok((token, file))
    }

    /// Uses a token for the node that has `key`; what it is for.
    pub fn redeem(&self, token: &Token, node: &str, key: &[u8]) -> Result<TokenFile, Refused> {
        let path = self.file(&token.id);
        if !path.exists() {
            return Err(Refused::Unknown);
        }
        let file: TokenFile = files::read_json(&path)?;
        // Digests of random secrets: how long comparing takes tells nothing of use.
        if hex::encode(Sha256::digest(&token.secret)) != file.digest {
            return Err(Refused::Unknown);
        }
        if file.expires_unix <= now_unix() {
            return Err(Refused::Expired);
        }
        if !fits(&file.node, node) {
            return Err(Refused::OtherNode(file.node));
        }
        self.note_use(&file, key)?;
        Ok(file)
    }

    fn note_use(&self, file: &TokenFile, key: &[u8]) -> Result<(), Refused> {
        let user = self.folder.join(format!("{}.by.{}", file.id, hex::encode(Sha256::digest(key))));
        if user.exists() {
            return Ok(());
        }
        let slot = |number: u32| self.folder.join(format!("{}.used.{number}", file.id));
        // Slots are taken in order, so the first free one is soon found, however many there are.
        let (mut taken, mut free) = (0, file.uses);
        while taken < free {
            let middle = taken + (free - taken) / 2;
            match slot(middle).exists() {
                true => taken = middle + 1,
                false => free = middle,
            }
        }
        for path in (taken..file.uses).map(slot) {
            match make(&path) {
                Ok(()) => {
                    make(&user).with_context(|| format!("noting who used a token in {}", user.display()))?;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let noting = format!("noting the use of a token in {}", path.display());
                    return Err(anyhow::Error::new(error).context(noting).into());
                }
            }
        }
        Err(Refused::Used)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

/// A file that one process alone makes, and that is there after a loss of power.
fn make(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.sync_all()
}

fn fits(pattern: &str, node: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => node.starts_with(begin),
        None => pattern == node,
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = BASE64_URL_SAFE_NO_PAD.encode(&self.secret);
        write!(formatter, "{VERSION}.{}.{secret}.{}", self.id, hex::encode(self.authority))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Token {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Token, Refused> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [VERSION, id, secret, authority] = parts[..] else { return Err(Refused::Malformed) };
        let is_id = id.len() == 2 * ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut fingerprint = [0; 32];
        hex::decode_to_slice(authority, &mut fingerprint).map_err(|_| Refused::Malformed)?;
        let secret = BASE64_URL_SAFE_NO_PAD.decode(secret).map_err(|_| Refused::Malformed)?;
        match is_id && secret.len() == 32 {
            true => Ok(Token { id: id.to_owned(), secret, authority: fingerprint }),
            false => Err(Refused::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_token_is_used_once_and_by_its_own_node() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(folder.path());
        let (token, _) = tokens.make("n1", &["default".to_owned()], HOUR, 1, [7; 32]).unwrap();
        let token: Token = token.to_string().parse().unwrap();
        assert!(matches!(tokens.redeem(&token, "n2", b"key"), Err(Refused::OtherNode(_))));
        assert_eq!(tokens.redeem(&token, "n1", b"key").unwrap().projects, ["default"]);
        assert!(matches!(tokens.redeem(&token, "n1", b"other"), Err(Refused::Used)));
        // Its answer was lost.
        tokens.redeem(&token, "n1", b"key").unwrap();
        let wrong: Token = token.to_string().replacen(&token.id, &"0".repeat(16), 1).parse().unwrap();
        assert!(matches!(tokens.redeem(&wrong, "n1", b"key"), Err(Refused::Unknown)));
        let guessed = Token { secret: vec![0; 32], ..token };
        assert!(matches!(tokens.redeem(&guessed, "n1", b"key"), Err(Refused::Unknown)));
    }

    #[test]
    fn a_token_ends_and_may_be_for_a_group() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(folder.path());
        let (over, _) = tokens.make("n1", &["p".to_owned()], Duration::ZERO, 1, [7; 32]).unwrap();
        assert!(matches!(tokens.redeem(&over, "n1", b"key"), Err(Refused::Expired)));
        let (group, _) = tokens.make("gpu-*", &["p".to_owned()], HOUR, 2, [7; 32]).unwrap();
        for node in ["gpu-1", "gpu-2"] {
            tokens.redeem(&group, node, node.as_bytes()).unwrap();
        }
        assert!(matches!(tokens.redeem(&group, "gpu-3", b"gpu-3"), Err(Refused::Used)));
        assert!(tokens.make("a*b", &["p".to_owned()], HOUR, 1, [7; 32]).is_err());
        assert!(tokens.make("n", &[], HOUR, 1, [7; 32]).is_err());
        assert!(tokens.make("n", &["p/q".to_owned()], HOUR, 1, [7; 32]).is_err());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for wrong in ["", "sluice-1.a.b.c", "sluice-2.0011223344556677.AA.00", "../../etc/passwd"] {
            assert!(matches!(wrong.parse::<Token>(), Err(Refused::Malformed)), "{wrong}");
        }
    }
}
