//! Finds the credential for a registry where people keep them: docker's configuration with its helpers, and
//! the kubelet's credential provider plugins, and what a kubelet hands on with a pull. [`sources`] puts them in order.
//!
//! Helpers and plugins are programs of others: they get a time limit, their answer a size limit. Nothing here prints a secret, `Debug`
//! and error messages included.

pub mod docker;
pub mod kubelet;
mod program;
mod pulls;
pub mod sources;

use std::fmt;

use anyhow::Context as _;
use base64::Engine as _;

pub use pulls::Pull;
pub use sources::Sources;

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Basic { username, .. } => write!(formatter, "Basic({username:?}, redacted)"),
            Credential::IdentityToken(_) => formatter.write_str("IdentityToken(redacted)"),
        }
    }
}

impl Credential {
    /// None when the message is empty.
    pub fn from_proto(credential: proto::Credential) -> Option<Credential> {
        use proto::credential::Kind;
        match credential.kind? {
            Kind::Basic(basic) => {
                Some(Credential::Basic { username: basic.username, password: basic.password })
            }
            Kind::IdentityToken(token) => Some(Credential::IdentityToken(token)),
        }
    }

    pub fn into_proto(self) -> proto::Credential {
        use proto::credential::{Basic, Kind};
        let kind = match self {
            Credential::Basic { username, password } => Kind::Basic(Basic { username, password }),
            Credential::IdentityToken(token) => Kind::IdentityToken(token),
        };
        proto::Credential { kind: Some(kind) }
    }

    /// What a kubelet hands on with a pull, by the rules that containerd has for it. None: for another registry than
    /// `host`, empty, or a bare registry token, which containerd does not use either.
    pub fn from_cri(auth: proto::cri::AuthConfig, host: &str) -> anyhow::Result<Option<Credential>> {
        if !auth.server_address.is_empty() && docker::host_of(&auth.server_address) != host {
            return Ok(None);
        }
        if !auth.username.is_empty() {
            return Ok(Some(Credential::Basic { username: auth.username, password: auth.password }));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Some(Credential::IdentityToken(auth.identity_token)));
        }
        if auth.auth.is_empty() { Ok(None) } else { basic_of(&auth.auth).map(Some) }
    }
}

/// base64 of `user:password`.
fn basic_of(encoded: &str) -> anyhow::Result<Credential> {
    // The decoder's own message would quote a part of the secret.
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) = text
        .as_deref()
        .and_then(|text| text.split_once(':'))
        .context("auth is not base64 of user:password")?;
    // Docker pads the password with zero bytes.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Credential::Basic { username: username.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use proto::cri::AuthConfig;

    use super::*;

    #[test]
    fn reads_what_a_kubelet_hands_on_as_containerd_does() {
        let check = |auth: AuthConfig, expected: Option<Credential>| {
            assert_eq!(Credential::from_cri(auth, "registry.example:5000").unwrap(), expected);
        };
        let basic = Credential::Basic { username: "user".to_owned(), password: "pa:ss".to_owned() };
        let given = AuthConfig {
            username: "user".to_owned(),
            password: "pa:ss".to_owned(),
            server_address: "https://registry.example:5000/v2/".to_owned(),
            ..AuthConfig::default()
        };
        check(given.clone(), Some(basic.clone()));
        check(AuthConfig { server_address: "other.example".to_owned(), ..given }, None);
        check(AuthConfig { auth: "dXNlcjpwYTpzcw==".to_owned(), ..AuthConfig::default() }, Some(basic));
        let token = AuthConfig { identity_token: "t".to_owned(), ..AuthConfig::default() };
        check(token, Some(Credential::IdentityToken("t".to_owned())));
        check(AuthConfig { registry_token: "t".to_owned(), ..AuthConfig::default() }, None);
        check(AuthConfig::default(), None);
        let broken = AuthConfig { auth: "c2VjcmV0".to_owned(), ..AuthConfig::default() };
        let error = format!("{:#}", Credential::from_cri(broken, "registry.example").unwrap_err());
        assert!(error.contains("base64") && !error.contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn debug_tells_no_secret() {
        let credentials = [
            Credential::Basic { username: "user".to_owned(), password: "hunter2".to_owned() },
            Credential::IdentityToken("hunter2".to_owned()),
        ];
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
