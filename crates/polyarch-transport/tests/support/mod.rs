//! What the tests of this crate share: clusters in temporary directories, peers that follow no rules, and a wire that
//! can be cut.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use polyarch_transport::certs::{self, CertificateOptions};
use polyarch_transport::{Alpn, Connection, Credentials, Endpoint, Expect, TransportConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;

/// What a node of 0.1.0 offers for a link, and what clients have offered ever since.
pub(crate) const PEER_1: &str = "polyarch-peer/1";
pub(crate) const CLIENT_1: &str = "polyarch-client/1";

/// Far beyond what anything here takes, so that only a hang reaches it.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("not within 20 s")
}

/// Waits until a condition holds.
pub(crate) async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A cluster with its authority.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    name: String,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certs::create_ca(directory.path(), &name.parse().unwrap(), &CertificateOptions::default()).unwrap();
        Self { directory, name: name.to_owned() }
    }

    pub(crate) fn node(&self, server_id: u32) -> Credentials {
        self.credentials(&format!("node/{server_id}"))
    }

    pub(crate) fn client(&self, name: &str) -> Credentials {
        self.credentials(&format!("client/{name}"))
    }

    fn credentials(&self, who: &str) -> Credentials {
        let identity = format!("polyarch://{}/{who}", self.name).parse().unwrap();
        let options = CertificateOptions { overwrite: true, ..Default::default() };
        let files = certs::issue(self.directory.path(), &identity, &options).unwrap();
        Credentials::load(self.directory.path().join("ca.pem"), files.certificate, files.key).unwrap()
    }

    pub(crate) fn serve(&self, server_id: u32) -> Endpoint {
        self.serve_with(server_id, TransportConfig::default())
    }

    pub(crate) fn serve_with(&self, server_id: u32, config: TransportConfig) -> Endpoint {
        Endpoint::bind(self.node(server_id), loopback(), config).unwrap()
    }

    /// A certificate as this authority would never issue it, but signed by it.
    pub(crate) fn forge(&self, names: &[SanType], usages: &[ExtendedKeyUsagePurpose], age_days: i32) -> RawIdentity {
        let read = |name| std::fs::read_to_string(self.directory.path().join(name)).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = usages.to_vec();
        let today =
            rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let shift = day * age_days.unsigned_abs();
        let middle = if age_days < 0 { today + shift } else { today - shift };
        (params.not_before, params.not_after) = (middle - day, middle + day);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        RawIdentity { certificate: certificate.der().clone(), key: key.serialize_pem() }
    }

    /// A node's certificate, but with names of one's choice.
    pub(crate) fn forge_names(&self, names: &[SanType]) -> RawIdentity {
        self.forge(names, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], 0)
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// A certificate and key for peers that follow no rules.
#[derive(Clone)]
pub(crate) struct RawIdentity {
    certificate: CertificateDer<'static>,
    key: String,
}

impl RawIdentity {
    fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        (vec![self.certificate.clone()], key)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn raw_client_config(identity: Option<&RawIdentity>, alpn: &str) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone::default()));
    let mut config = match identity {
        Some(identity) => {
            let (chain, key) = identity.parts();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

pub(crate) fn raw_client(config: rustls::ClientConfig) -> quinn::Endpoint {
    let mut endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let crypto = QuicClientConfig::try_from(config).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// How a peer that follows no rules fares at an endpoint: the error that ends its connection.
pub(crate) async fn raw_connect_error(
    endpoint: &Endpoint,
    identity: Option<&RawIdentity>,
    alpn: &str,
) -> quinn::ConnectionError {
    let client = raw_client(raw_client_config(identity, alpn));
    let connecting = client.connect(endpoint.local_address().unwrap(), "whoever").unwrap();
    match soon(connecting).await {
        Ok(connection) => soon(connection.closed()).await,
        Err(error) => error,
    }
}

/// The TLS alert in an error that the other side sent.
pub(crate) fn alert(error: &quinn::ConnectionError) -> u64 {
    match error {
        quinn::ConnectionError::ConnectionClosed(close) => {
            u64::from(close.error_code).checked_sub(0x100).unwrap_or_else(|| panic!("no alert: {error}"))
        }
        _ => panic!("no alert: {error}"),
    }
}

/// A server that follows no rules. It serves whoever comes, with session tickets, and counts full handshakes.
pub(crate) fn raw_server(identity: &RawIdentity, alpn: &str) -> (quinn::Endpoint, Arc<Anyone>) {
    let anyone = Arc::new(Anyone::default());
    let (chain, key) = identity.parts();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::clone(&anyone) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.max_early_data_size = u32::MAX;
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), loopback()).unwrap();
    (endpoint, anyone)
}

/// Accepts any certificate, and counts how often it was asked.
#[derive(Debug, Default)]
pub(crate) struct Anyone {
    pub(crate) asked: std::sync::atomic::AtomicUsize,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A wire to a server for one caller, whose way back can be cut.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    answers: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr, answers: bool) -> Self {
        let near = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let far = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let address = near.local_addr().unwrap();
        let answers = Arc::new(AtomicBool::new(answers));
        let passes = Arc::clone(&answers);
        let task = tokio::spawn(async move {
            let (mut there, mut back) = (vec![0; 65_536], vec![0; 65_536]);
            let mut caller = None;
            loop {
                tokio::select! {
                    Ok((len, from)) = near.recv_from(&mut there) => {
                        caller = Some(from);
                        let _ = far.send_to(&there[..len], server).await;
                    }
                    Ok((len, _)) = far.recv_from(&mut back) => {
                        if let (Some(caller), true) = (caller, passes.load(Ordering::SeqCst)) {
                            let _ = near.send_to(&back[..len], caller).await;
                        }
                    }
                }
            }
        });
        Self { address, answers, task }
    }

    pub(crate) fn cut_answers(&self) {
        self.answers.store(false, Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection seen from both ends: dialled, accepted.
pub(crate) async fn pair(from: &Endpoint, to: &Endpoint, alpn: Alpn) -> (Connection, Connection) {
    let (dialled, accepted) =
        soon(async { tokio::join!(from.connect(to.local_address().unwrap(), Expect::AnyNode, alpn), to.accept()) })
            .await;
    (dialled.unwrap(), accepted.unwrap())
}
