//! QUIC, TLS and identity: moves opaque frames of bytes between processes that have proved who they are.
//!
//! Nothing here knows what a frame means. The crate answers three questions and no other:
//!
//! - **Who is at the other end?** Both sides of every connection present a certificate of the cluster's own authority
//!   ([`Credentials`], made by [`certs`]), and the certificate's one name is the peer's [`Identity`]. There is no
//!   anonymous mode, no host name that could stand in for an identity, and no session resumption, which would take
//!   over an old certificate without looking at it again.
//! - **Is it allowed to speak at all?** A client certificate never opens a peer link, a member of another cluster
//!   opens nothing, and whoever dials says whom it [`Expect`]s. What a known identity may *do* is decided elsewhere.
//! - **How do many small messages travel cheaply?** In long-lived streams of length-prefixed frames, many per write and
//!   many per read ([`FrameWriter`], [`FrameReader`]).
//!
//! ```no_run
//! use polyarch_transport::{Alpn, Credentials, Endpoint, Expect, TransportConfig};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let credentials = Credentials::load("certs/ca.pem", "certs/node-1.pem", "certs/node-1.key")?;
//! let endpoint = Endpoint::bind(credentials, "127.0.0.1:7400".parse()?, TransportConfig::default())?;
//!
//! let peer = endpoint.connect("127.0.0.1:7401".parse()?, Expect::Node(2), Alpn::Peer).await?;
//! let (mut writer, mut reader) = peer.open_bi().await?;
//! writer.queue(b"hello");
//! writer.flush().await?;
//! let answer = reader.next(1 << 20).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Invariant.** This is the only crate of the workspace that names quinn, rustls, rcgen, x509-parser or socket2, and
//! none of their types appears in its public interface: a new major version of one of them is a change of this crate
//! alone. No process-wide cryptography provider is installed or used.

mod certificate;
pub mod certs;
mod config;
mod connection;
mod credentials;
mod dial;
mod endpoint;
mod frame;
mod identity;
mod stream;
mod tls;

pub use certificate::{CertificateError, CertificateName, CertificateNameError, CertificateSummary};
pub use config::{ConfigError, TransportConfig};
pub use connection::{CloseCode, CloseReason, Connection, ConnectionStats};
pub use credentials::{Credentials, CredentialsError, describe};
pub use dial::{ADDRESSES_MAX, DIAL_STAGGER, DialError, Obstacle, first_success, nobody_listens};
pub use endpoint::{BindError, ConnectError, Endpoint, EndpointStats};
pub use frame::{FRAME_HEADER_BYTES, FrameDecoder, FrameError};
pub use identity::{ClientName, ClusterName, Identity, IdentityParseError};
pub use stream::{FrameReader, FrameWriter, StreamError};
pub use tls::{Alpn, Expect, PeerRefusal};
