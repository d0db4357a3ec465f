//! An authenticated connection, its end, and its figures.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::sync::OwnedSemaphorePermit;

use crate::identity::Identity;
use crate::stream::{FrameReader, FrameWriter};
use crate::tls::Alpn;

/// The peer's text is for people; more of it than this is not kept.
const REASON_CHARS_MAX: usize = 256;

/// A connection to a peer that has proved who it is. Cheap to clone; all clones are one connection.
///
/// When the last clone and the last stream are dropped, the connection is closed with [`CloseCode::NONE`].
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    quinn: quinn::Connection,
    identity: Identity,
    alpn: Alpn,
    version: u8,
    /// Counts against `connections_max` until the connection's last handle is gone.
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(crate) fn new(
        quinn: quinn::Connection,
        identity: Identity,
        (alpn, version): (Alpn, u8),
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { shared: Arc::new(Shared { quinn, identity, alpn, version, _permit: permit }) }
    }

    /// Who the peer proved to be. On [`Alpn::Peer`] it is always a node.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// What the connection is for.
    pub fn alpn(&self) -> Alpn {
        self.shared.alpn
    }

    /// The version of what is spoken on it: the newest that both sides know, one of [`Alpn::versions`].
    pub fn version(&self) -> u8 {
        self.shared.version
    }

    /// The address of the peer. It does not change: connections do not migrate.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.shared.quinn.remote_address())
    }

    /// Opens a stream in both directions. Waits while the peer allows no further one.
    ///
    /// The peer learns of it with the first flushed frame, not before.
    ///
    /// # Errors
    ///
    /// The reason of the end if the connection is lost.
    pub async fn open_bi(&self) -> Result<(FrameWriter, FrameReader), CloseReason> {
        let (send, receive) = self.shared.quinn.open_bi().await?;
        Ok((FrameWriter::new(send, self.clone()), FrameReader::new(receive, self.clone())))
    }

    /// The next stream in both directions that the peer has opened. Cancel safe.
    ///
    /// # Errors
    ///
    /// The reason of the end if the connection is lost.
    pub async fn accept_bi(&self) -> Result<(FrameWriter, FrameReader), CloseReason> {
        let (send, receive) = self.shared.quinn.accept_bi().await?;
        Ok((FrameWriter::new(send, self.clone()), FrameReader::new(receive, self.clone())))
    }

    /// Opens a stream to the peer. Waits while the peer allows no further one.
    ///
    /// The peer learns of it with the first flushed frame, not before.
    ///
    /// # Errors
    ///
    /// The reason of the end if the connection is lost.
    pub async fn open_uni(&self) -> Result<FrameWriter, CloseReason> {
        Ok(FrameWriter::new(self.shared.quinn.open_uni().await?, self.clone()))
    }

    /// The next stream from the peer. Cancel safe.
    ///
    /// # Errors
    ///
    /// The reason of the end if the connection is lost.
    pub async fn accept_uni(&self) -> Result<FrameReader, CloseReason> {
        Ok(FrameReader::new(self.shared.quinn.accept_uni().await?, self.clone()))
    }

    /// Closes the connection at once. The peer is told code and reason (a few hundred bytes of it); all streams end, and
    /// what is not delivered yet may be lost: [`FrameWriter::delivered`] waits for it.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.shared.quinn.close(code.into(), reason.as_bytes());
    }

    /// Waits for the end of the connection and says how it came.
    pub async fn closed(&self) -> CloseReason {
        self.shared.quinn.closed().await.into()
    }

    /// How the connection ended, or `None` while it is open.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.quinn.close_reason().map(CloseReason::from)
    }

    /// Figures since the connection was opened.
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.shared.quinn.stats();
        ConnectionStats {
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            datagrams_sent: stats.udp_tx.datagrams,
            datagrams_received: stats.udp_rx.datagrams,
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            round_trip_time: stats.path.rtt,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("identity", &self.shared.identity)
            .field("alpn", &self.shared.alpn)
            .field("version", &self.shared.version)
            .field("remote_address", &self.remote_address())
            .finish_non_exhaustive()
    }
}

/// Figures of one connection since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// UDP payload bytes sent, repetitions included. IP and UDP headers, 28 or 48 bytes for each datagram, are not.
    pub bytes_sent: u64,
    /// UDP payload bytes received.
    pub bytes_received: u64,
    /// UDP datagrams sent.
    pub datagrams_sent: u64,
    /// UDP datagrams received.
    pub datagrams_received: u64,
    /// QUIC packets sent; a datagram may hold several during the handshake.
    pub packets_sent: u64,
    /// QUIC packets that were declared lost and whose content was sent again.
    pub packets_lost: u64,
    /// The current estimate of the round-trip time.
    pub round_trip_time: Duration,
}

/// A number that says why a connection or stream was ended. The protocol above chooses it.
///
/// Codes from `0x7000_0000` to `0x7000_00ff` belong to this crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u64);

impl CloseCode {
    /// No particular reason: also what a peer sees when a connection or stream was simply dropped.
    pub const NONE: Self = Self(0);
    /// Refused by the accepting side: a client certificate does not open a peer link.
    pub const NOT_A_NODE: Self = Self(0x7000_0001);
    /// Refused by the accepting side: it has as many connections as it may. Come back later, or go elsewhere.
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x7000_0002);
    /// Refused by the accepting side: the certificate or the service was not acceptable after all.
    pub const NOT_ACCEPTABLE: Self = Self(0x7000_0003);

    /// A code of the protocol above.
    pub const fn new(code: u32) -> Self {
        Self(code as u64)
    }

    /// The number. A peer may send up to 62 bits of it.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    pub(crate) fn is_refusal(self) -> bool {
        [Self::NOT_A_NODE, Self::TOO_MANY_CONNECTIONS, Self::NOT_ACCEPTABLE].contains(&self)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}", self.0)
    }
}

impl From<VarInt> for CloseCode {
    fn from(code: VarInt) -> Self {
        Self(code.into_inner())
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        VarInt::from_u64(code.0).expect("a code comes from a u32 or from a VarInt")
    }
}

/// How a connection ended. What was flushed and not known to be delivered may or may not have arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer's program closed it.
    #[error("closed by the peer, {code}: {reason:?}")]
    ByPeer {
        /// Why, in the terms of the protocol above.
        code: CloseCode,
        /// The peer's words, shortened and without control characters. For people only.
        reason: String,
    },
    /// It was closed here.
    #[error("closed here")]
    Local,
    /// Nothing was heard for the idle time-out: the peer or the network is down.
    #[error("timed out")]
    TimedOut,
    /// The peer does not know the connection any more: it has restarted.
    #[error("reset: the peer has restarted")]
    Reset,
    /// The peer's QUIC or TLS layer ended it, not its program.
    #[error("aborted by the peer's transport, error {error:#x}: {reason:?}")]
    AbortedByPeer {
        /// The error code of RFC 9000, section 20.1.
        error: u64,
        /// The peer's words, shortened and without control characters. For people only.
        reason: String,
    },
    /// The peer broke the rules of QUIC or TLS, or speaks another version, and was cut off here.
    #[error("protocol error: {detail}")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
}

impl From<quinn::ConnectionError> for CloseReason {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                Self::ByPeer { code: close.error_code.into(), reason: printable(&close.reason) }
            }
            E::ConnectionClosed(close) => {
                Self::AbortedByPeer { error: close.error_code.into(), reason: printable(&close.reason) }
            }
            E::LocallyClosed => Self::Local,
            E::TimedOut => Self::TimedOut,
            E::Reset => Self::Reset,
            error @ (E::VersionMismatch | E::TransportError(_) | E::CidsExhausted) => {
                Self::Protocol { detail: printable(error.to_string().as_bytes()) }
            }
        }
    }
}

/// An IPv4 peer of a socket that serves both families appears as `::ffff:a.b.c.d`; everyone expects `a.b.c.d`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// A peer's text as it may stand in a log line.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_cannot_forge_a_log_line() {
        assert_eq!(printable(b"bye\r\n2026 ERROR"), "bye\u{fffd}\u{fffd}2026 ERROR");
        assert_eq!(printable(&[0xff; 4]), "\u{fffd}".repeat(4));
        assert_eq!(printable(&[b'a'; 1000]).len(), REASON_CHARS_MAX);
    }

    #[test]
    fn addresses_of_a_dual_stack_socket_look_as_expected() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:7".parse().unwrap()), "10.0.0.1:7".parse().unwrap());
        assert_eq!(canonical("[::1]:7".parse().unwrap()), "[::1]:7".parse().unwrap());
    }
}
