//! Certificates as they stand on the disk, read again when they changed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use crate::{Error, Peer};

/// Between two looks at the files: of connections in between, none looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// A file of certificates or a key; larger ones are something else.
const FILE_MAX: u64 = 1024 * 1024;

/// What the files said when they were last good.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) certified: Option<Arc<CertifiedKey>>,
    /// What our own certificate proves.
    pub(crate) own: Option<Arc<Peer>>,
}

#[derive(Debug)]
pub(crate) struct Files {
    ca: PathBuf,
    pair: Option<(PathBuf, PathBuf)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// Of the files as they were last tried.
    stamps: Vec<Stamp>,
    looked: Instant,
}

/// Another file, or another content, has another: inode, time in nanoseconds, length.
type Stamp = (u64, i64, i64, u64);

impl Files {
    pub(crate) fn open(ca: &Path, pair: Option<(&PathBuf, &PathBuf)>) -> Result<Files, Error> {
        let pair = pair.map(|(certificate, key)| (certificate.clone(), key.clone()));
        let stamps = stamps(ca, pair.as_ref())?;
        let loaded = Arc::new(load(ca, pair.as_ref())?);
        let state = State { loaded, stamps, looked: Instant::now() };
        Ok(Files { ca: ca.to_owned(), pair, state: Mutex::new(state) })
    }

    /// As the files are now, if they can be used; else as they were.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        let mut state = self.state();
        if state.looked.elapsed() >= LOOK_PAUSE {
            state.looked = Instant::now();
            self.look(&mut state);
        }
        state.loaded.clone()
    }

    pub(crate) fn counts_at(&self, at: SystemTime) -> Result<(), Error> {
        let loaded = self.current();
        let Some(certified) = &loaded.certified else { return Ok(()) };
        let path = self.pair.as_ref().map_or(&self.ca, |pair| &pair.0);
        let unusable = |reason: &dyn std::fmt::Display| unusable(path, reason);
        let certificate = certified.end_entity_cert().map_err(|error| unusable(&error))?;
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| unusable(&error))?;
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let verified = parsed.verify_for_usage(
            loaded.provider.signature_verification_algorithms.all,
            &loaded.roots.roots,
            certified.cert.get(1..).unwrap_or_default(),
            UnixTime::since_unix_epoch(since),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        );
        verified.map(drop).map_err(|error| unusable(&error))
    }

    fn look(&self, state: &mut State) {
        let read = stamps(&self.ca, self.pair.as_ref()).and_then(|now| match now == state.stamps {
            true => Ok(None),
            false => load(&self.ca, self.pair.as_ref()).map(|loaded| Some((loaded, now))),
        });
        match read {
            Ok(None) => {}
            Ok(Some((loaded, now))) => {
                tracing::info!(ca = %self.ca.display(), "certificates were read anew");
                (state.loaded, state.stamps) = (Arc::new(loaded), now);
            }
            // Perhaps one of two files is written and the other is about to be: looked at again.
            Err(error) => tracing::warn!(%error, "new certificates cannot be used: the old ones stay in use"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole after each of its changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(ca: &Path, pair: Option<&(PathBuf, PathBuf)>) -> Result<Vec<Stamp>, Error> {
    let files = [Some(ca), pair.map(|pair| pair.0.as_path()), pair.map(|pair| pair.1.as_path())];
    let stamp = |path: &Path| {
        let found = fs::metadata(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })?;
        Ok((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    };
    files.into_iter().flatten().map(stamp).collect()
}

fn load(ca: &Path, pair: Option<&(PathBuf, PathBuf)>) -> Result<Loaded, Error> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| unusable(ca, &error))?;
    }
    let (mut certified, mut own) = (None, None);
    if let Some((certificate, key)) = pair {
        let chain = certificates(certificate)?;
        let first = chain.first().ok_or_else(|| unusable(certificate, &"it holds no certificate"))?;
        own = Some(Arc::new(Peer::of(first).map_err(|error| unusable(certificate, &error))?));
        let pair = CertifiedKey::from_der(chain, private_key(key)?, &provider);
        certified = Some(Arc::new(pair.map_err(|error| unusable(key, &error))?));
    }
    Ok(Loaded { provider, roots: Arc::new(roots), certified, own })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let blocks = pem::parse_many(read(path)?).map_err(|error| unusable(path, &error))?;
    let found: Vec<_> = blocks
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    match found.is_empty() {
        true => Err(unusable(path, &"it holds no certificate")),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let blocks = pem::parse_many(read(path)?).map_err(|error| unusable(path, &error))?;
    let key = blocks.into_iter().find_map(|block| {
        let kind = block.tag().to_owned();
        let bytes = block.into_contents();
        match kind.as_str() {
            "PRIVATE KEY" => Some(PrivatePkcs8KeyDer::from(bytes).into()),
            "EC PRIVATE KEY" => Some(PrivateKeyDer::Sec1(bytes.into())),
            "RSA PRIVATE KEY" => Some(PrivateKeyDer::Pkcs1(bytes.into())),
            _ => None,
        }
    });
    key.ok_or_else(|| unusable(path, &"it holds no private key"))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |cause| Error::Read { path: path.to_owned(), cause };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_MAX {
        return Err(unusable(path, &format!("it is {length} bytes long, of {FILE_MAX} at most")));
    }
    fs::read(path).map_err(failed)
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Unusable { path: path.to_owned(), reason: reason.to_string() }
}
