//! Requests about an image, as the flags describe it.

use std::io::Read as _;

use anyhow::{Context as _, bail};
use names::ImageName;
use proto::credential::{Basic, Kind};
use proto::{AskerFacts, Credential, InspectRequest, ResolveRequest};

use crate::args::Global;
use crate::platform_name::PlatformName;
use crate::settings::Settings;

/// A longer password is refused, in bytes: identity tokens of cloud registries reach a few thousand.
const PASSWORD_MAX: u64 = 64 * 1024;

/// How images are asked for in this run of the command.
#[derive(Clone)]
pub struct Requests {
    project: String,
    platform: PlatformName,
    credential: Option<Credential>,
    plain_http: bool,
    node: String,
    /// What policies are told: the same as of the node of this machine, so that they say the same.
    asker: AskerFacts,
}

impl Requests {
    /// Reads the password from standard input when a user was named.
    pub fn new(global: &Global, settings: &Settings) -> anyhow::Result<Requests> {
        let credential = match &global.username {
            Some(username) => Some(basic(username, &password(std::io::stdin())?)),
            None => None,
        };
        Ok(Requests {
            project: settings.project.to_string(),
            platform: global.platform.clone().unwrap_or_else(PlatformName::host),
            credential,
            plain_http: global.plain_http,
            node: settings.frontend.node.clone(),
            asker: settings.frontend.asker(settings.project.as_str()),
        })
    }

    pub fn resolve(&self, image: &str) -> anyhow::Result<ResolveRequest> {
        Ok(ResolveRequest {
            project: self.project.clone(),
            reference: absolute(image)?,
            platform: Some(self.platform.0.clone()),
            credential: self.credential.clone(),
            node: self.node.clone(),
            plain_http: self.plain_http,
            verify: false,
            asker: Some(self.asker.clone()),
            ..ResolveRequest::default()
        })
    }

    /// For a registry that this process asks itself.
    pub fn access(&self) -> policy::Access {
        let credential = self.credential.clone().and_then(policy::Credential::from_proto);
        policy::Access { credential, plain_http: self.plain_http }
    }

    pub fn inspect(&self, image: &str) -> anyhow::Result<InspectRequest> {
        Ok(InspectRequest {
            project: self.project.clone(),
            reference: absolute(image)?,
            platform: Some(self.platform.0.clone()),
            credential: self.credential.clone(),
            plain_http: self.plain_http,
            asker: Some(self.asker.clone()),
        })
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let credential = self.credential.as_ref().map(|_| "redacted");
        let mut debug = formatter.debug_struct("Requests");
        debug
            .field("project", &self.project)
            .field("platform", &self.platform)
            .field("credential", &credential);
        debug.finish_non_exhaustive()
    }
}

fn absolute(image: &str) -> anyhow::Result<String> {
    let working_dir = std::env::current_dir().context("find the working directory")?;
    Ok(ImageName::absolute(image, &working_dir))
}

fn basic(username: &str, password: &str) -> Credential {
    let basic = Basic { username: username.to_owned(), password: password.to_owned() };
    Credential { kind: Some(Kind::Basic(basic)) }
}

/// Everything up to the end of the input, without the line break that `echo` adds.
fn password(input: impl std::io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    input
        .take(PASSWORD_MAX + 1)
        .read_to_string(&mut text)
        .context("read the password from standard input")?;
    if text.len() as u64 > PASSWORD_MAX {
        bail!("the password on standard input is longer than {PASSWORD_MAX} bytes");
    }
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("the password on standard input is empty");
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_told_of_this_machines_node() {
        let set = ["node=n1", "region=eu-1", "pool=gpu", "labels={disk=\"ssd\"}"];
        let set = set.iter().filter_map(|setting| setting.split_once('='));
        let set = set.map(|(key, value)| (format!("frontend.{key}"), value.to_owned())).collect();
        let global = Global { set, ..Global::default() };
        let settings = Settings::load_files(&[], &global).unwrap();
        let requests = Requests::new(&global, &settings).unwrap();
        let asker = settings.frontend.asker("default");
        assert_eq!(
            (&*asker.node, asker.region.as_deref(), asker.pool.as_deref()),
            ("n1", Some("eu-1"), Some("gpu"))
        );
        assert_eq!((&*asker.labels[0].name, &*asker.labels[0].value), ("disk", "ssd"));
        assert_eq!(requests.inspect("debian:12").unwrap().asker, Some(asker.clone()));
        let resolve = requests.resolve("debian:12").unwrap();
        assert_eq!((resolve.asker, resolve.node.as_str()), (Some(asker), "n1"));
    }

    #[test]
    fn passwords_lose_their_line_break_only() {
        assert_eq!(password(&b" s3cret \r\n"[..]).unwrap(), " s3cret ");
        assert!(password(&b"\n"[..]).is_err());
        assert!(password(&vec![b'a'; PASSWORD_MAX as usize + 1][..]).is_err());
    }
}
