//! NATS's own kind of JWT: who signed whom, from the operator down to a user.
//!
//! `base64url(header) . base64url(claims) . base64url(signature)`, signed with an nkey (Ed25519). Only what a mesh needs of it is
//! written here; servers read it, and nobody else has to.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::now_unix;
use crate::permissions::Permissions;

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
const UNLIMITED: i64 = -1;

/// A role's users, as the account knows them.
pub(crate) struct Scope {
    pub(crate) role: String,
    /// The public key of whoever signs them.
    pub(crate) key: String,
    pub(crate) permissions: Permissions,
}

/// What a user's JWT says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// The user's public key.
    pub key: String,
    /// The key that signed it: a role's.
    pub issuer: String,
    pub projects: Vec<String>,
    /// In seconds since 1970; 0: never.
    pub expires_unix: u64,
}

pub(crate) fn operator(key: &KeyPair, name: &str, system_account: &str) -> anyhow::Result<String> {
    let nats = json!({ "type": "operator", "version": 2, "system_account": system_account });
    encode(key, name, &key.public_key(), 0, nats)
}

/// `revoked`: public keys of users that count no more, and since when.
pub(crate) fn account(
    operator: &KeyPair,
    name: &str,
    account: &str,
    scopes: &[Scope],
    revoked: &[(String, u64)],
) -> anyhow::Result<String> {
    let signing_keys: Vec<Value> = scopes
        .iter()
        .map(|scope| {
            let Permissions { publish, subscribe } = &scope.permissions;
            json!({
                "kind": "user_scope",
                "key": scope.key,
                "role": scope.role,
                "template": {
                    "pub": { "allow": publish },
                    "sub": { "allow": subscribe },
                    "subs": UNLIMITED,
                    "data": UNLIMITED,
                    "payload": UNLIMITED,
                },
            })
        })
        .collect();
    let revocations: serde_json::Map<String, Value> =
        revoked.iter().map(|(key, since)| (key.clone(), json!(since))).collect();
    let nats = json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED,
            "imports": UNLIMITED, "exports": UNLIMITED, "wildcards": true,
            "conn": UNLIMITED, "leaf": UNLIMITED,
            "mem_storage": UNLIMITED, "disk_storage": UNLIMITED,
            "streams": UNLIMITED, "consumer": UNLIMITED,
        },
        "signing_keys": signing_keys,
        "revocations": revocations,
        "default_permissions": { "pub": {}, "sub": {} },
    });
    encode(operator, name, account, 0, nats)
}

/// The account that speaks with the servers themselves; no service is of it.
pub(crate) fn system_account(operator: &KeyPair, account: &str) -> anyhow::Result<String> {
    let nats = json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED,
            "imports": UNLIMITED, "exports": UNLIMITED, "wildcards": true, "conn": UNLIMITED, "leaf": UNLIMITED,
        },
        "default_permissions": { "pub": {}, "sub": {} },
    });
    encode(operator, "system", account, 0, nats)
}

/// A user whose permissions are those of the key that signs it; `projects` are what a node's subjects may name.
pub(crate) fn scoped_user(
    signer: &KeyPair,
    account: &str,
    name: &str,
    user: &str,
    projects: &[String],
    expires_unix: u64,
) -> anyhow::Result<String> {
    ensure!(
        nkeys::from_public_key(user).is_ok() && user.starts_with('U'),
        "{user:?} is no user's public key"
    );
    let tags: Vec<String> = projects.iter().map(|project| format!("project:{project}")).collect();
    let mut nats = json!({ "type": "user", "version": 2, "issuer_account": account });
    if !tags.is_empty() {
        nats["tags"] = json!(tags);
    }
    encode(signer, name, user, expires_unix, nats)
}

/// A user of the system account, which may all that servers allow there.
pub(crate) fn system_user(account: &KeyPair, name: &str, user: &str) -> anyhow::Result<String> {
    let nats = json!({
        "type": "user", "version": 2, "pub": {}, "sub": {},
        "subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED,
    });
    encode(account, name, user, 0, nats)
}

fn encode(
    signer: &KeyPair,
    name: &str,
    subject: &str,
    expires_unix: u64,
    nats: Value,
) -> anyhow::Result<String> {
    let mut claims = json!({
        "iat": now_unix(),
        "iss": signer.public_key(),
        "name": name,
        "sub": subject,
        "nats": nats,
    });
    if expires_unix > 0 {
        claims["exp"] = json!(expires_unix);
    }
    claims["jti"] = json!(hex::encode(Sha256::digest(claims.to_string())));
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", encode(HEADER), encode(&claims.to_string()));
    let signature = signer.sign(signed.as_bytes()).context("signing a JWT")?;
    Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

/// A file of credentials, as NATS's own programs write and read it.
pub fn credentials(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         The seed below is the user's private key: keep it to this machine.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// The user of a file of credentials. Its signature is for the server to check.
pub fn user_of(credentials: &str) -> anyhow::Result<User> {
    let jwt = credentials.lines().find(|line| line.matches('.').count() == 2 && line.starts_with("ey"));
    let jwt = jwt.context("the credentials hold no JWT")?;
    let claims = jwt.split('.').nth(1).unwrap_or_default();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).context("decoding the credentials' JWT")?;
    let claims: Value = serde_json::from_slice(&claims).context("decoding the credentials' JWT")?;
    let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
    let tags = claims["nats"]["tags"].as_array().cloned().unwrap_or_default();
    let projects = tags.iter().filter_map(|tag| tag.as_str()?.strip_prefix("project:")).map(str::to_owned);
    Ok(User {
        name: text("name"),
        key: text("sub"),
        issuer: text("iss"),
        projects: projects.collect(),
        expires_unix: claims["exp"].as_u64().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_as_it_was_written() {
        let (role, user) = (KeyPair::new_account(), KeyPair::new_user());
        let projects = ["default".to_owned(), "p2".to_owned()];
        let jwt = scoped_user(&role, "AACCOUNT", "n1", &user.public_key(), &projects, 1_900_000_000).unwrap();
        let parts: Vec<&str> = jwt.split('.').collect();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        role.verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &signature).unwrap();
        let read = user_of(&credentials(&jwt, &user.seed().unwrap())).unwrap();
        assert_eq!((read.name.as_str(), &read.projects[..]), ("n1", &projects[..]));
        assert_eq!((read.key, read.issuer), (user.public_key(), role.public_key()));
        assert_eq!(read.expires_unix, 1_900_000_000);
        assert!(scoped_user(&role, "A", "n", &role.public_key(), &[], 0).is_err(), "not a user's key");
        assert!(user_of("nothing").is_err());
    }
}
