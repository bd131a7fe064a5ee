//! Opening a store by its address.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path as FilePath;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, parse_url_opts};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{ProjectStore, StoreError};

/// The `store` section of every service's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A folder, or a URL of a bucket.
    pub url: String,
    /// What the kind of URL needs, as its client names it, for example `aws_region`.
    pub options: HashMap<String, String>,
}

impl Default for Config {
    fn default() -> Config {
        Config { url: "/var/lib/sluice/store".to_owned(), options: HashMap::new() }
    }
}

impl Config {
    pub fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.url, &self.options)
    }

    /// The same for who only asks: a folder that is not there is no store, and none is made.
    pub fn open_existing(&self) -> Result<Store, StoreError> {
        if let Some(folder) = folder_of(&self.url)? {
            std::fs::read_dir(&folder).map_err(|cause| folder_error(&folder, cause))?;
        }
        self.open()
    }
}

/// Where content is kept: a folder, or a bucket of S3, GCS or Azure. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    address: Arc<str>,
    folder: Option<Arc<FilePath>>,
    /// Whether it has answered a listing.
    answered: Arc<AtomicBool>,
}

/// Nothing has this name: asking for it costs next to nothing.
const NOTHING: &str = "is-it-there";

impl Store {
    /// Opens `address`: a folder's path (made when absent), or a URL (`file`, `s3`, `gs`, `az`, …) with
    /// the `options` of its kind (`region`, `endpoint`, `allow_http`, …). What is not among the options is taken from
    /// `AWS_…`, `GOOGLE_…` and `AZURE_…` variables, and credentials at last from the machine's own role.
    pub fn open(address: &str, options: &HashMap<String, String>) -> Result<Store, StoreError> {
        let folder = folder_of(address)?;
        let objects = match &folder {
            Some(folder) => open_folder(FilePath::new(folder))?,
            None => open_remote(address, options)?,
        };
        let folder = folder.map(|folder| FilePath::new(&folder).into());
        Ok(Store { objects, address: address.into(), folder, answered: Arc::default() })
    }

    /// Whether the store is there and lets us read: a folder is opened; a bucket is listed once, which tells whether it exists, and
    /// then asked for an object that is not there. Takes as long as the store's own retries, so whoever asks bounds it.
    pub async fn check(&self) -> Result<(), StoreError> {
        if let Some(folder) = &self.folder {
            let folder = folder.clone();
            let name = folder.display().to_string();
            // It may be on a server that hangs.
            let opened = tokio::task::spawn_blocking(move || {
                std::fs::read_dir(&folder).and_then(|mut entries| entries.next().transpose()).map(drop)
            });
            let opened = opened.await.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)));
            return opened.map_err(|cause| folder_error(&name, cause));
        }
        let asked = match self.answered.load(Ordering::Relaxed) {
            false => self.objects.list_with_delimiter(None).await.map(drop),
            true => match self.objects.head(&Path::from(NOTHING)).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                asked => asked.map(drop),
            },
        };
        asked.map_err(|cause| StoreError::new("look at store", &self.address, &cause))?;
        self.answered.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// [`Store::check`] as whoever watches it asks.
    pub fn probe(
        &self,
    ) -> impl Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync + 'static {
        let store = self.clone();
        move || {
            let store = store.clone();
            Box::pin(async move { store.check().await.map_err(|error| error.to_string()) })
        }
    }

    /// The part of the store that belongs to `project`; the empty name means "default".
    pub fn project(&self, project: &str) -> Result<ProjectStore, StoreError> {
        ProjectStore::new(Arc::clone(&self.objects), project)
    }

    /// As it was opened; for logs.
    pub fn address(&self) -> &str {
        &self.address
    }
}

fn bad_address(address: &str) -> StoreError {
    StoreError::BadName { what: "store address", name: address.to_owned() }
}

fn folder_of(address: &str) -> Result<Option<String>, StoreError> {
    if address.starts_with("file:") {
        let url = Url::parse(address).map_err(|_| bad_address(address))?;
        let path = url.to_file_path().map_err(|()| bad_address(address))?;
        return Ok(Some(path.to_str().ok_or_else(|| bad_address(address))?.to_owned()));
    }
    let is_path = !address.is_empty() && !address.contains("://");
    Ok(is_path.then(|| address.to_owned()))
}

fn open_folder(folder: &FilePath) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let object = folder.display().to_string();
    make_folder(folder).map_err(|cause| folder_error(&object, cause))?;
    let local = LocalFileSystem::new_with_prefix(folder)
        .map_err(|cause| StoreError::new("open store", &object, &cause))?;
    Ok(Arc::new(local))
}

fn folder_error(folder: &str, cause: std::io::Error) -> StoreError {
    let cause = match cause.kind() {
        std::io::ErrorKind::NotFound => {
            object_store::Error::NotFound { path: folder.to_owned(), source: cause.into() }
        }
        _ => object_store::Error::Generic { store: "LocalFileSystem", source: cause.into() },
    };
    StoreError::new("open store", folder, &cause)
}

/// For its owner only, where there is none: chunks are of private images, too. Who shares a store makes its folder first.
fn make_folder(folder: &FilePath) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        // By another process at the same time.
        Err(_) if folder.is_dir() => Ok(()),
        made => made,
    }
}

/// Variables that the clouds' own tools read, named as options are.
fn from_environment() -> impl Iterator<Item = (String, String)> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?.to_ascii_lowercase(), value.into_string().ok()?))
    });
    variables.filter(|(name, _)| ["aws_", "google_", "azure_"].iter().any(|cloud| name.starts_with(cloud)))
}

fn open_remote(address: &str, options: &HashMap<String, String>) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let url = Url::parse(address).map_err(|_| bad_address(address))?;
    let options = from_environment().chain(options.clone());
    let (objects, prefix) =
        parse_url_opts(&url, options).map_err(|cause| StoreError::new("open store", address, &cause))?;
    let objects: Arc<dyn ObjectStore> = Arc::from(objects);
    Ok(match prefix == Path::default() {
        true => objects,
        false => Arc::new(PrefixStore::new(objects, prefix)),
    })
}
