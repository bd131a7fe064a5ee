//! The dialling side: who is believed, and with what certificate we show ourselves.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::files::Files;
use crate::server::PROTOCOL;
use crate::{Connection, Error, Peer, fingerprint, is_this_machine};

/// Connects a gRPC client, to `http://` and `https://` addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    files: Option<Arc<Files>>,
    /// An authority that is known by its fingerprint alone, before there are files.
    pinned: Option<[u8; 32]>,
    insecure: bool,
    role: &'static str,
}

impl Connector {
    pub(crate) fn to_role(files: Option<Arc<Files>>, insecure: bool, role: &'static str) -> Connector {
        Connector { files, pinned: None, insecure, role }
    }

    /// To whom the authority with this fingerprint gave the certificate of `role`; we show none.
    pub fn pinned(authority: [u8; 32], role: &'static str) -> Connector {
        Connector { files: None, pinned: Some(authority), insecure: false, role }
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let loaded = self.files.as_ref().map(|files| files.current());
        let trust = match (&loaded, self.pinned) {
            (Some(loaded), _) => Trust::Roots(loaded.roots.clone()),
            (None, Some(pinned)) => Trust::Pinned(pinned),
            (None, None) => {
                return Err(TlsError::General("there is no authority to believe (tls.ca_file)".to_owned()));
            }
        };
        let verifier = RoleVerifier { provider: provider.clone(), trust, role: self.role };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match loaded.and_then(|loaded| loaded.certified.clone()) {
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    async fn connect(self, uri: Uri) -> io::Result<Connection> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
        let host = uri.host().ok_or_else(|| invalid(format!("{uri} names no host")))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let secured = uri.scheme_str() == Some("https");
        if !secured && !self.insecure && !is_this_machine(&uri.to_string()) {
            let refusal = Error::Insecure { what: self.role, section: "tls", address: uri.to_string() };
            return Err(invalid(refusal.to_string()));
        }
        let port = uri.port_u16().unwrap_or(if secured { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        if !secured {
            return Ok(Connection::Plain(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| invalid(error.to_string()))?;
        let config = self.config().map_err(|error| invalid(error.to_string()))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Connection::Dialled(Box::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Connection>>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move { Ok(TokioIo::new(connecting.await?)) })
    }
}

#[derive(Clone)]
enum Trust {
    Roots(Arc<RootCertStore>),
    Pinned([u8; 32]),
}

/// Believes whoever our authority says has a role, at whatever address.
struct RoleVerifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
    role: &'static str,
}

impl ServerCertVerifier for RoleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let roots = match &self.trust {
            Trust::Roots(roots) => roots.clone(),
            Trust::Pinned(pinned) => {
                let authority = intermediates.iter().find(|sent| fingerprint(sent) == *pinned);
                let authority =
                    authority.ok_or(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone().into_owned())?;
                Arc::new(roots)
            }
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        let peer =
            Peer::of(end_entity).map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        match peer.is_service(self.role) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(TlsError::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for RoleVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RoleVerifier").field("role", &self.role).finish_non_exhaustive()
    }
}

/// For connections to NATS servers, which are believed by their host's name. The files are looked at for each connection.
pub fn nats_config(
    ca: &std::path::Path,
    pair: Option<(&std::path::PathBuf, &std::path::PathBuf)>,
) -> Result<ClientConfig, Error> {
    let files = Arc::new(Files::open(ca, pair)?);
    let provider = files.current().provider.clone();
    let unusable = |error: TlsError| Error::Unusable { path: ca.to_owned(), reason: error.to_string() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HostVerifier(files.clone())));
    Ok(match pair {
        Some(_) => builder.with_client_cert_resolver(Arc::new(Shown(files))),
        None => builder.with_no_client_auth(),
    })
}

#[derive(Debug)]
struct HostVerifier(Arc<Files>);

impl HostVerifier {
    fn now(&self) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        let loaded = self.0.current();
        WebPkiServerVerifier::builder_with_provider(loaded.roots.clone(), loaded.provider.clone())
            .build()
            .map_err(|error| TlsError::General(error.to_string()))
    }
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.now()?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.now()?.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.now()?.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.current().provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct Shown(Arc<Files>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.current().certified.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
