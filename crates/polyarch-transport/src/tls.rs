//! TLS 1.3 with mutual authentication, and nothing else.
//!
//! A host name says where a server was reached, not who it is; addresses of nodes change, and certificates would have to
//! follow. So both sides verify the same things of each other: that the one trusted authority issued the certificate,
//! that it is valid now, that it was issued for this side of a connection, and that its one name is an identity of the
//! same cluster. Whoever dials also says whom it expects, and refuses anyone else before it shows its own certificate.
//!
//! Not offered and not accepted: TLS 1.2, session tickets and resumption (a resumed session takes over the certificate of
//! the first one without verifying it again), early data (it can be replayed), intermediate authorities.

use std::fmt;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    SupportedCipherSuite,
};

use crate::certificate::{self, CertificateNameError};
use crate::credentials::Credentials;
use crate::identity::{ClusterName, Identity};

/// Which service a connection is for. It is agreed in the handshake (ALPN), together with the version of what is spoken on
/// it: the newest that both sides know ([`Connection::version`](crate::Connection::version)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// `polyarch-peer/2` or `polyarch-peer/1`: a link between two nodes. A client certificate never opens one.
    Peer,
    /// `polyarch-client/1`: requests of a client, or of a node that acts as one.
    Client,
}

/// What is spoken here: service, version, and both as they travel. Of each service the newest version comes first, for
/// the accepting side agrees to the first of its own names that the dialler offers.
const SPOKEN: [(Alpn, u8, &str); 3] =
    [(Alpn::Peer, 2, "polyarch-peer/2"), (Alpn::Peer, 1, "polyarch-peer/1"), (Alpn::Client, 1, "polyarch-client/1")];

impl Alpn {
    /// The versions that are spoken of it here, newest first.
    pub fn versions(self) -> impl Iterator<Item = u8> {
        SPOKEN.into_iter().filter(move |(alpn, ..)| *alpn == self).map(|(_, version, _)| version)
    }

    /// Its names as they travel, one for each of [`versions`](Self::versions), in the same order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        SPOKEN.into_iter().filter(move |(alpn, ..)| *alpn == self).map(|(.., name)| name)
    }

    /// The service and version of a name that was agreed.
    pub(crate) fn parse(name: &[u8]) -> Option<(Self, u8)> {
        let spoken = SPOKEN.into_iter().find(|(.., spoken)| spoken.as_bytes() == name);
        spoken.map(|(alpn, version, _)| (alpn, version))
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(" or "))
    }
}

/// Whom one wants to find at the other end of a connection that one opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// The node with this number and no other.
    Node(u32),
    /// Any node of the cluster: for a first contact, when only an address is known.
    AnyNode,
}

/// Why the certificate of a peer is not accepted. The connection was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefusal {
    /// Another authority issued it, perhaps one of the same cluster name. Both sides need certificates of one authority.
    #[error("the certificate was not issued by the authority that is trusted here")]
    OtherAuthority,
    /// It has expired. Issue a new one for the peer.
    #[error("the certificate has expired")]
    Expired,
    /// It is not valid yet. Compare the clocks.
    #[error("the certificate is not valid yet; compare the clocks")]
    NotYetValid,
    /// It was issued for the other side of connections: a client's certificate never serves.
    #[error("the certificate was not issued for this side of a connection")]
    WrongPurpose,
    /// It cannot be verified for another reason.
    #[error("the certificate cannot be verified: {0}")]
    Unverified(String),
    /// It is valid, but names nobody, or somebody in a way that is not unique.
    #[error("the certificate {0}")]
    Name(#[from] CertificateNameError),
    /// It is valid in another cluster.
    #[error("the peer belongs to cluster {theirs}, this is cluster {ours}")]
    OtherCluster {
        /// The cluster of one's own certificate.
        ours: ClusterName,
        /// The cluster of the peer's.
        theirs: ClusterName,
    },
    /// It is a client's where a node was expected.
    #[error("{found} is no node")]
    NotANode {
        /// Who it is.
        found: Identity,
    },
    /// It is that of another node than the one that was dialled: an address is out of date, or two nodes swapped theirs.
    #[error("expected node {expected} and found node {found} at this address")]
    WrongServerId {
        /// Whom one expected.
        expected: u32,
        /// Who it is.
        found: u32,
    },
}

/// *ring*, named explicitly: a library must not depend on what a process installed as its default, nor install one.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    // The suite's hash is SHA-256 by its name; this saves a dependency on a crate of hashes.
    let SupportedCipherSuite::Tls13(suite) = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    suite.common.hash_provider.hash(bytes).as_ref().to_vec()
}

/// What the accepting side of an endpoint presents and demands.
pub(crate) fn server_config(credentials: &Credentials) -> Result<QuicServerConfig, rustls::Error> {
    let verifier = MemberVerifier {
        chain: chain_verifier(credentials.roots())?,
        cluster: credentials.identity().cluster().clone(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key())));
    config.alpn_protocols = SPOKEN.map(|(.., name)| name.as_bytes().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|cause| rustls::Error::General(cause.to_string()))
}

/// What a dialler presents and demands. If it refuses the peer, the reason is in `refusal`: the handshake's own error
/// carries only text.
pub(crate) fn client_config(
    credentials: &Credentials,
    expect: Expect,
    alpn: Alpn,
    refusal: Arc<OnceLock<PeerRefusal>>,
) -> Result<QuicClientConfig, rustls::Error> {
    let verifier = NodeVerifier {
        roots: credentials.roots(),
        algorithms: provider().signature_verification_algorithms,
        cluster: credentials.identity().cluster().clone(),
        expect,
        refusal,
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key())));
    config.alpn_protocols = alpn.names().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config).map_err(|cause| rustls::Error::General(cause.to_string()))
}

/// Whether others will accept this certificate for all that its identity does.
pub(crate) fn check_issued(
    roots: &Arc<RootCertStore>,
    certificate: &CertificateDer<'_>,
    identity: &Identity,
    now: UnixTime,
) -> Result<(), PeerRefusal> {
    let chain = chain_verifier(Arc::clone(roots)).map_err(|cause| refusal_of(&cause))?;
    chain.verify_client_cert(certificate, &[], now).map_err(|cause| refusal_of(&cause))?;
    if identity.is_node() {
        let algorithms = provider().signature_verification_algorithms;
        verify_node_chain(roots, algorithms, certificate, now).map_err(|cause| refusal_of(&cause))?;
    }
    Ok(())
}

/// The identity in a certificate whose chain is verified, if it is of our cluster.
pub(crate) fn check_member(certificate: &[u8], cluster: &ClusterName) -> Result<Identity, PeerRefusal> {
    let identity = certificate::identity_of(certificate)?;
    if identity.cluster() != cluster {
        return Err(PeerRefusal::OtherCluster { ours: cluster.clone(), theirs: identity.cluster().clone() });
    }
    Ok(identity)
}

/// The accepting side's demand: a member of the cluster, node or client.
#[derive(Debug)]
struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: ClusterName,
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // There are no intermediate authorities, so none are looked at.
        let verified = self.chain.verify_client_cert(end_entity, &[], now)?;
        check_member(end_entity, &self.cluster).map_err(|refusal| refused(&refusal))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The dialler's demand: a node of the cluster, and the one that is expected.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    cluster: ClusterName,
    expect: Expect,
    refusal: Arc<OnceLock<PeerRefusal>>,
}

impl NodeVerifier {
    fn check_identity(&self, certificate: &[u8]) -> Result<(), PeerRefusal> {
        let identity = check_member(certificate, &self.cluster)?;
        let Some(found) = identity.server_id() else {
            return Err(PeerRefusal::NotANode { found: identity });
        };
        match self.expect {
            Expect::Node(expected) if expected != found => Err(PeerRefusal::WrongServerId { expected, found }),
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Err(error) = verify_node_chain(&self.roots, self.algorithms, end_entity, now) {
            let _ = self.refusal.set(refusal_of(&error));
            return Err(error);
        }
        if let Err(refusal) = self.check_identity(end_entity) {
            let error = refused(&refusal);
            let _ = self.refusal.set(refusal);
            return Err(error);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn chain_verifier(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|cause| rustls::Error::General(cause.to_string()))
}

fn verify_node_chain(
    roots: &RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms.all)
}

/// The alert `access_denied`: the certificate is valid, its holder is not wanted.
fn refused(refusal: &PeerRefusal) -> rustls::Error {
    tracing::debug!(%refusal, "refused a valid certificate");
    rustls::Error::InvalidCertificate(TlsCertificateError::ApplicationVerificationFailure)
}

fn refusal_of(error: &rustls::Error) -> PeerRefusal {
    use TlsCertificateError as E;
    match error {
        rustls::Error::InvalidCertificate(cause) => match cause {
            // An authority of the same name with another key shows as a bad signature.
            E::UnknownIssuer | E::BadSignature => PeerRefusal::OtherAuthority,
            E::Expired | E::ExpiredContext { .. } => PeerRefusal::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => PeerRefusal::NotYetValid,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => PeerRefusal::WrongPurpose,
            other => PeerRefusal::Unverified(other.to_string()),
        },
        other => PeerRefusal::Unverified(other.to_string()),
    }
}
