//! Being let in: basic authentication and bearer tokens.
//!
//! A [`Login`] belongs to one endpoint, one repository and one caller, so one token is all it ever
//! needs. States: nothing known → the registry's challenge is met → authorised, until the token is
//! about to expire or the registry refuses it. Whoever meets a refusal renews it once; requests
//! that were refused with the same authorisation wait for that and share the result.

use std::time::{Duration, Instant};

use base64::Engine;
use credentials::docker;
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::challenge::{Bearer, Challenge};
use super::reach::Nearness;
use super::transfer::{Failure, Transfer};
use crate::{Access, Credential, brief};

/// What a token is good for when its server does not say (the specification's default).
const TOKEN_DEFAULT: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds: the request has to get there first.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// A token server's answer, in bytes; tokens with many claims have some 10 KiB.
const TOKEN_ANSWER_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Login {
    /// The caller's own.
    given: Option<Credential>,
    /// Whether the docker config is asked when nothing was given: it is of whom this process works for, and of nobody else.
    own: bool,
    /// As the docker config names the registry.
    host: String,
    repository: String,
    /// Whether a password may travel unencrypted: the user asked for plain HTTP.
    plain_http: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credential: Option<Looked>,
    /// The last one that the registry itself made.
    challenge: Option<Met>,
    authorisation: Option<Authorisation>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("challenge", &self.challenge).finish_non_exhaustive()
    }
}

/// A challenge, and how near the server is that made it: no nearer may be the one that gives tokens for it.
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub(super) challenge: Challenge,
    pub(super) nearest: Nearness,
}

/// What was found when a credential was looked for.
#[derive(Clone)]
struct Looked {
    credential: Option<Credential>,
    /// Why it could not be looked up, for the message when access is refused.
    trouble: Option<String>,
}

/// A value for the `Authorization` header.
#[derive(Clone)]
pub(super) struct Authorisation {
    pub(super) header: HeaderValue,
    until: Option<Instant>,
}

impl Authorisation {
    fn new(text: String, until: Option<Instant>) -> Option<Authorisation> {
        let mut header = HeaderValue::try_from(text).ok()?;
        header.set_sensitive(true);
        Some(Authorisation { header, until })
    }

    fn is_good(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Both spellings are in use for each field.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Login {
    pub(super) fn new(access: Access, host: String, repository: String, plain_http: bool) -> Login {
        let Access { credential: given, own, .. } = access;
        Login { given, own, host, repository, plain_http, state: Mutex::default() }
    }

    /// What to send with the next request: nothing, until a registry asked for something.
    pub(super) async fn authorisation(&self, transfer: &Transfer) -> Result<Option<Authorisation>, Failure> {
        let mut state = self.state.lock().await;
        match &state.authorisation {
            None => Ok(None),
            Some(authorisation) if authorisation.is_good() => Ok(Some(authorisation.clone())),
            Some(_) => self.meet(&mut state, transfer).await,
        }
    }

    /// A new authorisation after `refused` was refused. None: there is nothing better to offer.
    pub(super) async fn renew(
        &self,
        transfer: &Transfer,
        refused: Option<&Authorisation>,
        challenge: Option<Met>,
    ) -> Result<Option<Authorisation>, Failure> {
        let mut state = self.state.lock().await;
        let current = state.authorisation.clone().filter(Authorisation::is_good);
        if let Some(current) = current
            && refused.is_none_or(|refused| refused.header != current.header)
        {
            return Ok(Some(current));
        }
        // Some registries answer an expired token with 403 and no challenge: the last one holds.
        state.challenge = challenge.or(state.challenge.take());
        let renewed = self.meet(&mut state, transfer).await?;
        let same = |new: &Authorisation| refused.is_some_and(|refused| refused.header == new.header);
        Ok(renewed.filter(|new| !same(new)))
    }

    /// Why there was no credential to offer, if something went wrong with it.
    pub(super) async fn trouble(&self) -> Option<String> {
        self.state.lock().await.credential.as_ref().and_then(|looked| looked.trouble.clone())
    }

    async fn meet(&self, state: &mut State, transfer: &Transfer) -> Result<Option<Authorisation>, Failure> {
        state.authorisation = None;
        let Some(Met { challenge, nearest }) = state.challenge.clone() else { return Ok(None) };
        let credential = self.credential(state, transfer).await;
        state.authorisation = match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                Authorisation::new(basic(&username, &password), None)
            }
            (Challenge::Basic, _) => None,
            (Challenge::Bearer(bearer), credential) => {
                Some(self.token(transfer, &bearer, nearest, credential).await?)
            }
        };
        Ok(state.authorisation.clone())
    }

    /// The caller's credential, or the docker config's where that is the caller's too; looked up once.
    async fn credential(&self, state: &mut State, transfer: &Transfer) -> Option<Credential> {
        if self.given.is_some() || !self.own {
            return self.given.clone();
        }
        if state.credential.is_none() {
            let looked = docker::look_up(&transfer.config.docker(), &self.host).await;
            state.credential = Some(match looked {
                Ok(credential) => Looked { credential, trouble: None },
                Err(error) => {
                    tracing::warn!(
                        host = self.host,
                        error = format!("{error:#}"),
                        "no credential: asking without one"
                    );
                    Looked { credential: None, trouble: Some(format!("{error:#}")) }
                }
            });
        }
        state.credential.as_ref().and_then(|looked| looked.credential.clone())
    }

    async fn token(
        &self,
        transfer: &Transfer,
        bearer: &Bearer,
        nearest: Nearness,
        credential: Option<Credential>,
    ) -> Result<Authorisation, Failure> {
        let realm = self.realm(bearer)?;
        let client = transfer.client(&realm, nearest)?;
        let scope = bearer.scope.clone().unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let service = bearer.service.clone().unwrap_or_default();
        let request = match credential {
            Some(Credential::IdentityToken(token)) => client.post(realm).form(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
                ("client_id", "sluice"),
                ("service", service.as_str()),
                ("scope", scope.as_str()),
            ]),
            other => {
                let request = client.get(realm).query(&[("service", &service), ("scope", &scope)]);
                match other {
                    Some(Credential::Basic { username, password }) => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let asked = Instant::now();
        let answer = transfer.small(request, TOKEN_ANSWER_MAX, "a token").await?;
        let answer: TokenAnswer = serde_json::from_slice(&answer)
            .map_err(|_| Failure::passing("the token server's answer is not understood"))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Failure::passing("the token server gave no token"))?;
        let life = answer.expires_in.map_or(TOKEN_DEFAULT, Duration::from_secs);
        let used = life.saturating_sub(TOKEN_MARGIN.min(life / 2));
        // Overflow is a life without end.
        Authorisation::new(format!("Bearer {token}"), asked.checked_add(used))
            .ok_or_else(|| Failure::passing("the token server's token is no header value"))
    }

    fn realm(&self, bearer: &Bearer) -> Result<Url, Failure> {
        let shown = brief(&bearer.realm);
        match Url::parse(&bearer.realm) {
            Ok(realm) if realm.scheme() == "https" || (realm.scheme() == "http" && self.plain_http) => {
                Ok(realm)
            }
            Ok(_) => Err(Failure::refused(format!("its token server {shown} does not speak HTTPS"))),
            Err(_) => Err(Failure::refused(format!("its token server {shown} is not a URL"))),
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {text}")
}
