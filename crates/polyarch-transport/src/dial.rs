//! Dialling where it is not known who will answer: a staggered race, and what to think of those who lost.
//!
//! Over UDP nothing says "refused": a peer that is down is silent, and a handshake fails by its time-out. So the addresses
//! of a name, or several peers of which any will do, are dialled in a staggered race: when one has failed, or has not
//! answered for a moment, the next is dialled as well, and the first that answers wins (RFC 8305 does the same with a
//! host's addresses). Dialled one after the other, one dead address takes all the time that a caller has.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{UdpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connection::{CloseCode, Connection};
use crate::endpoint::{ConnectError, Endpoint};
use crate::tls::{Alpn, Expect};

/// How long an attempt has before the next begins as well. A handshake takes two to three round trips.
pub const DIAL_STAGGER: Duration = Duration::from_millis(300);

/// Addresses of one name that are dialled at most.
pub const ADDRESSES_MAX: usize = 8;

impl Endpoint {
    /// Opens a connection to a host, `HOST:PORT`. A name is resolved anew each time, and its first [`ADDRESSES_MAX`]
    /// addresses race.
    ///
    /// Each address has [`handshake_timeout_ms`](crate::TransportConfig::handshake_timeout_ms). Dropping the future gives
    /// up at once.
    ///
    /// # Errors
    ///
    /// [`DialError`]: the name has no address, or what was wrong with each.
    pub async fn connect_host(&self, host: &str, expect: Expect, alpn: Alpn) -> Result<Connection, DialError> {
        let addresses: Vec<SocketAddr> = match lookup_host(host).await {
            Ok(addresses) => addresses.take(ADDRESSES_MAX).collect(),
            Err(cause) => return Err(DialError::Unresolved(cause.to_string())),
        };
        if addresses.is_empty() {
            return Err(DialError::Unresolved("it has no address".to_owned()));
        }
        let attempts = addresses.into_iter().map(|address| {
            let endpoint = self.clone();
            async move { endpoint.connect(address, expect, alpn).await }
        });
        first_success(attempts).await.map_err(DialError::Failed)
    }
}

/// Why no address of a host could be connected to. Nothing is left open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The host's name has no address, or nobody could say.
    #[error("its name cannot be resolved: {0}")]
    Unresolved(String),
    /// What was wrong with each address; there is at least one.
    #[error("{}", .0.iter().map(ConnectError::to_string).collect::<Vec<_>>().join(", "))]
    Failed(Vec<ConnectError>),
}

/// What stands between two processes that cannot connect, as far as one of them can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// There was no answer, or it came to nothing: down, unreachable, busy, or of another version.
    NoAnswer,
    /// The peer's certificate is not accepted here: of another authority, of another cluster, expired, nobody's.
    NotTrusted,
    /// The peer does not accept our certificate.
    Refused,
}

impl ConnectError {
    /// What stands in the way.
    pub fn obstacle(&self) -> Obstacle {
        match self {
            Self::Peer { .. } => Obstacle::NotTrusted,
            Self::CertificateRefused { .. } => Obstacle::Refused,
            Self::Refused { code, .. } if *code != CloseCode::TOO_MANY_CONNECTIONS => Obstacle::Refused,
            _ => Obstacle::NoAnswer,
        }
    }

    /// Whether to dial again is of no use before somebody has changed certificates, versions or addresses.
    pub fn is_lasting(&self) -> bool {
        let is_lasting = matches!(self, Self::Alpn { .. } | Self::Address { .. } | Self::EndpointClosed | Self::Tls(_));
        is_lasting || matches!(self, Self::Peer { .. } | Self::CertificateRefused { .. })
    }
}

impl DialError {
    /// What stands in the way of all addresses alike; else that there is no answer.
    pub fn obstacle(&self) -> Obstacle {
        let Self::Failed(errors) = self else { return Obstacle::NoAnswer };
        let first = errors.first().map_or(Obstacle::NoAnswer, ConnectError::obstacle);
        match errors.iter().all(|error| error.obstacle() == first) {
            true => first,
            false => Obstacle::NoAnswer,
        }
    }

    /// Whether to dial again is of no use, at any of the addresses.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Failed(errors) if errors.iter().all(ConnectError::is_lasting))
    }
}

/// Runs attempts side by side until one succeeds, which ends the others. The next begins when one has failed or
/// [`DIAL_STAGGER`] has passed.
///
/// # Errors
///
/// When all have failed: the error of each, in the order in which they failed. Without any attempt: none.
pub async fn first_success<T, E, A>(attempts: impl IntoIterator<Item = A>) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        if let Some(attempt) = waiting.next() {
            running.spawn(attempt);
        } else if running.is_empty() {
            return Err(errors);
        }
        match timeout(DIAL_STAGGER, running.join_next()).await {
            Ok(Some(Ok(Ok(won)))) => return Ok(won),
            Ok(Some(Ok(Err(error)))) => errors.push(error),
            // A panic of an attempt is a failure without words; else it is time for the next.
            Ok(Some(Err(_)) | None) | Err(_) => {}
        }
    }
}

/// Completes once it is certain that nobody listens at any address of a host (`HOST:PORT`); else it never does.
///
/// A dial does not learn it: the system passes on that a port is closed (ICMP) to connected sockets only, and those of an
/// endpoint are not. So this sends one byte, which no endpoint answers, from a socket of its own. Of no use where ICMP is
/// filtered.
pub async fn nobody_listens(host: &str) {
    let Ok(addresses) = lookup_host(host).await else { return std::future::pending().await };
    let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return std::future::pending().await;
    }
    for address in addresses {
        match knock(address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return std::future::pending().await,
        }
    }
}

/// Sends a byte, and waits for an answer or an error.
async fn knock(address: SocketAddr) -> io::Result<()> {
    let any = match address.is_ipv4() {
        true => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        false => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(&[0]).await?;
    socket.recv(&mut [0]).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::PeerRefusal;

    fn address() -> SocketAddr {
        "127.0.0.1:7401".parse().unwrap()
    }

    #[tokio::test]
    async fn a_silent_attempt_does_not_hold_up_the_next() {
        let silent: std::pin::Pin<Box<dyn Future<Output = Result<u8, u8>> + Send>> = Box::pin(std::future::pending());
        assert_eq!(first_success(vec![silent, Box::pin(async { Ok(7) })]).await, Ok(7));
    }

    #[tokio::test]
    async fn failures_are_all_told() {
        let attempts: Vec<_> = (0..3).map(|n| async move { Err::<(), _>(n) }).collect();
        let mut failures = first_success(attempts).await.unwrap_err();
        failures.sort_unstable();
        assert_eq!(failures, [0, 1, 2]);
    }

    #[test]
    fn an_obstacle_is_that_of_all_addresses() {
        let not_trusted = || ConnectError::Peer { address: address(), refusal: PeerRefusal::OtherAuthority };
        let refused = ConnectError::CertificateRefused { address: address(), alert: 45, reason: String::new() };
        let busy = || ConnectError::Busy { address: address() };
        for (errors, obstacle, is_lasting) in [
            (vec![not_trusted(), not_trusted()], Obstacle::NotTrusted, true),
            (vec![refused], Obstacle::Refused, true),
            (vec![not_trusted(), busy()], Obstacle::NoAnswer, false),
            (vec![busy()], Obstacle::NoAnswer, false),
        ] {
            let error = DialError::Failed(errors);
            assert_eq!((error.obstacle(), error.is_lasting()), (obstacle, is_lasting), "{error}");
        }
        let full = CloseCode::TOO_MANY_CONNECTIONS;
        let full = ConnectError::Refused { address: address(), code: full, reason: String::new() };
        assert_eq!(full.obstacle(), Obstacle::NoAnswer, "there may be room a moment later");
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_one_that_is_silent() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent_address = silent.local_addr().unwrap().to_string();
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed_address = closed.local_addr().unwrap().to_string();
        drop(closed);
        tokio::select! {
            biased;
            () = nobody_listens(&silent_address) => panic!("somebody may listen there"),
            () = nobody_listens(&closed_address) => {}
        }
    }
}
