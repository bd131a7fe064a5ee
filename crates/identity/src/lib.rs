//! Identities: what holds a mesh together, and how a node gets its own.
//!
//! ```text
//! Set (the operator's folder)
//!   |-- authority     certificates for gRPC and NATS, of a mesh's own authority
//!   |-- jwt           NATS operator, account and users; what each may say is `permissions`, made of the conversation
//!   |-- tokens        what a node shows once, to be believed the first time
//!   `-- config        the configuration of nats-server, and a snippet for each service
//! Own (a node's folder)   its keys, made there; what it was given for them
//! ```
//!
//! Files, keys and signatures; only [`client`], by which a node asks for its own, speaks to anybody. The identity service answers
//! nodes with it, `sluice keys` is its command line.
//!
//! Users in NATS carry no permissions of their own: each is signed by the signing key of its role, and the account says what
//! users of that key may do. So whoever gives nodes their users can make nodes and nothing else, and what a role may do is
//! changed in one place, without a new user for anybody.

mod authority;
pub mod client;
mod config;
mod files;
mod jwt;
mod own;
mod permissions;
mod proof;
mod set;
mod token;

pub use authority::{Authority, Purpose};
pub use config::Snippet;
pub use files::write as write_secret;
pub use jwt::{User, credentials, user_of};
pub use own::{Given, Own};
pub use permissions::{Permissions, permissions};
pub use proof::{prove, proves};
pub use set::{Entry, Issuer, Kind, Options, Set};
pub use token::{Refused, Token, TokenFile, Tokens};

/// How long what a node was given counts; it asks anew when two thirds of that are over.
pub const NODE_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);
/// The same of a service, which an operator renews.
pub const SERVICE_LIFE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 60 * 60);

/// The role of whoever gives nodes their identity, in its certificate.
pub const IDENTITY: &str = "identity";
/// The role of NATS servers, in theirs.
pub const NATS: &str = "nats";

pub(crate) fn now_unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
