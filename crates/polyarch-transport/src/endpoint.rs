//! An endpoint: one UDP socket from which connections are opened and on which they are accepted.
//!
//! # Admission
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate. So a dialler whose handshake is complete
//! does not know yet whether it is welcome, and would learn it at some later moment as a lost connection. Therefore the
//! accepting side, once it has verified everything, opens the first unidirectional stream, writes the one byte `1` and
//! ends it; otherwise it closes the connection with a [`CloseCode`] of refusal. [`Endpoint::connect`] waits for either.
//! It costs one more half round trip, once a connection, and every refusal has its reason on both sides.
//!
//! # Strangers
//!
//! Anyone can send packets to the socket, so whatever happens before admission is bounded in number
//! ([`pending_handshakes_max`](TransportConfig::pending_handshakes_max)) and time
//! ([`handshake_timeout_ms`](TransportConfig::handshake_timeout_ms)). Handshakes run side by side, each in its own task;
//! [`Endpoint::accept`] sees only the finished ones. When many are pending, callers must prove their address first
//! (QUIC's Retry), which keeps no state here.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::config::{ConfigError, TransportConfig};
use crate::connection::{CloseCode, CloseReason, Connection, canonical};
use crate::credentials::Credentials;
use crate::identity::Identity;
use crate::tls::{self, Alpn, Expect, PeerRefusal};

/// What the accepting side writes on its first stream.
const ADMITTED: &[u8] = &[1];

/// Identities are in certificates, so the name in the handshake means nothing. It is not even sent.
const SERVER_NAME: &str = "polyarch";

/// Admitted connections that wait for [`Endpoint::accept`]. Beyond it they count as pending handshakes.
const ACCEPT_QUEUE: usize = 16;

/// Bytes that are kept of a caller who was not yet answered at all. A first flight is two packets.
const UNANSWERED_BYTES_MAX: u64 = 16 * 1024;

/// RFC 9000, section 20.1.
const CONNECTION_REFUSED: u64 = 2;

/// RFC 9001, section 4.8: a TLS alert is this plus the alert's number.
const TLS_ALERT: u64 = 0x100;

const NO_APPLICATION_PROTOCOL: u64 = TLS_ALERT + 120;

/// RFC 8446, section 6.2: bad, unsupported, revoked, expired, unknown, of an unknown authority, access denied, badly
/// signed (what an authority of the same name with another key looks like), required.
const CERTIFICATE_ALERTS: [u64; 9] = [
    TLS_ALERT + 42,
    TLS_ALERT + 43,
    TLS_ALERT + 44,
    TLS_ALERT + 45,
    TLS_ALERT + 46,
    TLS_ALERT + 48,
    TLS_ALERT + 49,
    TLS_ALERT + 51,
    TLS_ALERT + 116,
];

const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// One UDP socket for outgoing and, on a node, incoming connections. Cheap to clone.
///
/// When the last clone is dropped no more connections are accepted; those that are open live on. To end them all, and
/// let the peers know, [`close`](Self::close) it.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    quinn: quinn::Endpoint,
    credentials: Credentials,
    config: TransportConfig,
    transport: Arc<quinn::TransportConfig>,
    peer_transport: Arc<quinn::TransportConfig>,
    gate: Arc<Gate>,
    accepted: AsyncMutex<mpsc::Receiver<Connection>>,
    acceptor: Option<AbortHandle>,
    socket_buffers: SocketBuffers,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.abort();
        }
    }
}

impl Endpoint {
    /// Opens a node's endpoint: it accepts connections on `listen`, peers' and clients', and dials from there.
    ///
    /// An IPv6 wildcard address serves IPv4 too. An IPv4 address cannot dial IPv6 ones, and a loopback address reaches
    /// nothing but this machine. Port 0 lets the system choose.
    ///
    /// # Errors
    ///
    /// [`BindError`]; nothing is left open. Also when called outside of a tokio runtime.
    pub fn bind(credentials: Credentials, listen: SocketAddr, config: TransportConfig) -> Result<Self, BindError> {
        if !credentials.identity().is_node() {
            return Err(BindError::NotANode { identity: credentials.identity().clone() });
        }
        let transport = config.to_quinn()?;
        let crypto = tls::server_config(&credentials).map_err(|cause| BindError::Tls(cause.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(config.to_quinn_for_accepted()?)
            .migration(false)
            .max_incoming(config.pending_handshakes_max)
            .incoming_buffer_size(UNANSWERED_BYTES_MAX)
            .incoming_buffer_size_total(UNANSWERED_BYTES_MAX.saturating_mul(config.pending_handshakes_max as u64));
        let socket = open_socket(listen, &config).map_err(|cause| BindError::Socket { address: listen, cause })?;
        Self::start(credentials, config, transport, socket, Some(server))
    }

    /// Opens an endpoint that only dials, from a port that the system chooses, over IPv6 and IPv4 as far as the system
    /// has them.
    ///
    /// # Errors
    ///
    /// [`BindError`]; nothing is left open. Also when called outside of a tokio runtime.
    pub fn client(credentials: Credentials, config: TransportConfig) -> Result<Self, BindError> {
        let transport = config.to_quinn()?;
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = open_socket(any, &config)
            .or_else(|_| open_socket(any_v4, &config))
            .map_err(|cause| BindError::Socket { address: any_v4, cause })?;
        Self::start(credentials, config, transport, socket, None)
    }

    fn start(
        credentials: Credentials,
        config: TransportConfig,
        transport: Arc<quinn::TransportConfig>,
        socket: Socket,
        server: Option<quinn::ServerConfig>,
    ) -> Result<Self, BindError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let peer_transport = config.to_quinn_for_peers()?;
        let socket_buffers = SocketBuffers::of(&socket);
        socket_buffers.report(&config);
        let is_server = server.is_some();
        let quinn = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            server,
            socket.into(),
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(BindError::Start)?;

        let gate = Arc::new(Gate::new(&credentials, &config));
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        let acceptor =
            is_server.then(|| runtime.spawn(run_acceptor(quinn.clone(), Arc::clone(&gate), sender)).abort_handle());
        Ok(Self {
            shared: Arc::new(Shared {
                quinn,
                credentials,
                config,
                transport,
                peer_transport,
                gate,
                accepted: AsyncMutex::new(accepted),
                acceptor,
                socket_buffers,
            }),
        })
    }

    /// Who one is oneself on this endpoint.
    pub fn identity(&self) -> &Identity {
        self.shared.credentials.identity()
    }

    /// The fingerprint of the authority that is trusted on this endpoint, as of [`Credentials::authority_sha256`].
    pub fn authority_sha256(&self) -> &str {
        self.shared.credentials.authority_sha256()
    }

    /// The address of the socket, with the port that the system chose.
    ///
    /// # Errors
    ///
    /// What the system says; not on a socket that works.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.quinn.local_addr()
    }

    /// The next incoming connection, authenticated and admitted, or `None` once the endpoint is closed or if it only
    /// dials. Cancel safe.
    ///
    /// Nobody who connects, or pretends to, can hold it up. Connections that are not taken from here are held back at
    /// the limit of pending handshakes.
    pub async fn accept(&self) -> Option<Connection> {
        self.shared.accepted.lock().await.recv().await
    }

    /// Opens a connection: both sides are authenticated, and the other has admitted us.
    ///
    /// Gives up after [`handshake_timeout_ms`](TransportConfig::handshake_timeout_ms). Dropping the future gives up at
    /// once.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says who refused whom, and why.
    pub async fn connect(&self, address: SocketAddr, expect: Expect, alpn: Alpn) -> Result<Connection, ConnectError> {
        if alpn == Alpn::Peer && !self.identity().is_node() {
            return Err(ConnectError::NotANode { identity: self.identity().clone() });
        }
        let Ok(permit) = Arc::clone(&self.shared.gate.connections).try_acquire_owned() else {
            return Err(ConnectError::TooManyConnections { max: self.shared.config.connections_max });
        };
        let after = self.shared.config.handshake_timeout();
        let dialled = timeout(after, self.dial(address, expect, alpn, permit)).await;
        let result = dialled.unwrap_or(Err(ConnectError::TimedOut { address, after }));
        let counters = &self.shared.gate.counters;
        let counter = if result.is_ok() { &counters.connected } else { &counters.connects_failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn dial(
        &self,
        address: SocketAddr,
        expect: Expect,
        alpn: Alpn,
        permit: OwnedSemaphorePermit,
    ) -> Result<Connection, ConnectError> {
        let refusal = Arc::new(OnceLock::new());
        let crypto = tls::client_config(&self.shared.credentials, expect, alpn, Arc::clone(&refusal))
            .map_err(|cause| ConnectError::Tls(cause.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(match alpn {
            Alpn::Peer => &self.shared.peer_transport,
            Alpn::Client => &self.shared.transport,
        }));
        config.token_store(Arc::new(quinn::NoneTokenStore));

        let failed = |error| connect_error(address, alpn, error, refusal.get());
        let connecting = self.shared.quinn.connect_with(config, address, SERVER_NAME).map_err(|cause| match cause {
            quinn::ConnectError::EndpointStopping => ConnectError::EndpointClosed,
            cause => ConnectError::Address { address, detail: cause.to_string() },
        })?;
        let quinn = connecting.await.map_err(failed)?;
        await_admission(&quinn).await.map_err(|error| error.map_or_else(|| ConnectError::NoAdmission, failed))?;
        let (identity, agreed) = introduction(&quinn, &self.shared.gate.credentials)
            .map_err(|refusal| ConnectError::Peer { address, refusal })?;
        if agreed.0 != alpn {
            return Err(ConnectError::Alpn { address, alpn });
        }
        Ok(Connection::new(quinn, identity, agreed, permit))
    }

    /// Closes all connections, tells the peers why, and waits until they know, at most
    /// [`close_timeout_ms`](TransportConfig::close_timeout_ms). [`accept`](Self::accept) gives what was admitted
    /// before, closed, and then `None`.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.shared.quinn.close(code.into(), reason.as_bytes());
        let limit = Duration::from_millis(self.shared.config.close_timeout_ms);
        // Peers that did not answer find out by their idle time-out.
        let _ = timeout(limit, self.shared.quinn.wait_idle()).await;
    }

    /// Figures since the endpoint was opened.
    pub fn stats(&self) -> EndpointStats {
        let gate = &self.shared.gate;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EndpointStats {
            connections_open: self.shared.config.connections_max - gate.connections.available_permits(),
            handshakes_pending: gate.pending.load(Ordering::Relaxed),
            accepted: count(&gate.counters.accepted),
            refused: count(&gate.counters.refused),
            timed_out: count(&gate.counters.timed_out),
            turned_away: count(&gate.counters.turned_away),
            retried: count(&gate.counters.retried),
            connected: count(&gate.counters.connected),
            connects_failed: count(&gate.counters.connects_failed),
            socket_receive_buffer_bytes: self.shared.socket_buffers.receive,
            socket_send_buffer_bytes: self.shared.socket_buffers.send,
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("identity", self.identity())
            .field("local_address", &self.local_address().ok())
            .finish_non_exhaustive()
    }
}

/// Figures of an endpoint. Counts are since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Authenticated connections now, in both directions.
    pub connections_open: usize,
    /// Incoming connections now that are not admitted yet.
    pub handshakes_pending: usize,
    /// Incoming connections that were admitted.
    pub accepted: u64,
    /// Incoming connections that failed, or were refused for their certificate, service or number.
    pub refused: u64,
    /// Incoming connections that were not done in time.
    pub timed_out: u64,
    /// Incoming connections that were told to come back later: too many were pending.
    pub turned_away: u64,
    /// Incoming connections that had to prove their address first.
    pub retried: u64,
    /// Outgoing connections that were opened.
    pub connected: u64,
    /// Outgoing connections that failed.
    pub connects_failed: u64,
    /// The socket's receive buffer as the system reports it (Linux: twice of what was granted). Bytes.
    pub socket_receive_buffer_bytes: usize,
    /// The socket's send buffer as the system reports it. Bytes.
    pub socket_send_buffer_bytes: usize,
}

/// Why an endpoint was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Only a node accepts connections. Give a node's certificate, or use [`Endpoint::client`].
    #[error("{identity} is no node; only a node accepts connections")]
    NotANode {
        /// Whose certificate it is.
        identity: Identity,
    },
    /// The settings do not make sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be used: taken, not of this machine, or not permitted.
    #[error("cannot use the address {address}: {cause}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The socket cannot be driven.
    #[error("cannot start on the socket: {0}")]
    Start(#[source] io::Error),
    /// The credentials are not usable for TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// There is no tokio runtime with I/O and time to run on. Call it inside of one.
    #[error("must be called inside of a tokio runtime")]
    NoRuntime,
}

/// Why a connection was not opened. Nothing is left open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answered, or not to the end. Is the peer up, is UDP let through? Try again later.
    #[error("{address} did not answer within {after:?}")]
    TimedOut {
        /// The address that was dialled.
        address: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// The peer was found and is not who it should be; it was refused here.
    #[error("refused the peer at {address}: {refusal}")]
    Peer {
        /// The address that was dialled.
        address: SocketAddr,
        /// Why.
        refusal: PeerRefusal,
    },
    /// The peer knows who we are and refused us.
    #[error("{address} refused this connection, {code}: {reason:?}")]
    Refused {
        /// The address that was dialled.
        address: SocketAddr,
        /// [`CloseCode::NOT_A_NODE`], [`CloseCode::TOO_MANY_CONNECTIONS`] or [`CloseCode::NOT_ACCEPTABLE`].
        code: CloseCode,
        /// The peer's words. For people only.
        reason: String,
    },
    /// The peer does not accept our certificate. Its log says more.
    #[error("{address} does not accept our certificate, TLS alert {alert}: {reason:?}")]
    CertificateRefused {
        /// The address that was dialled.
        address: SocketAddr,
        /// The TLS alert of RFC 8446, section 6.2.
        alert: u8,
        /// The peer's words. For people only.
        reason: String,
    },
    /// The peer does not serve this, or not in this version. Compare the versions of the two programs.
    #[error("{address} does not speak {alpn}")]
    Alpn {
        /// The address that was dialled.
        address: SocketAddr,
        /// What was asked for.
        alpn: Alpn,
    },
    /// The peer has too many handshakes under way. Try again later.
    #[error("{address} is busy")]
    Busy {
        /// The address that was dialled.
        address: SocketAddr,
    },
    /// The peer completed the handshake and then did not say that we are welcome in the way it should.
    #[error("the peer did not confirm the connection as it should")]
    NoAdmission,
    /// The connection was lost in the handshake.
    #[error("the connection to {address} was lost: {reason}")]
    Lost {
        /// The address that was dialled.
        address: SocketAddr,
        /// How.
        reason: CloseReason,
    },
    /// The address cannot be dialled from this socket: port 0, or IPv6 from an IPv4 socket.
    #[error("cannot dial {address}: {detail}")]
    Address {
        /// The address that was dialled.
        address: SocketAddr,
        /// What is wrong with it.
        detail: String,
    },
    /// A client asked for a peer link. The other side would refuse it.
    #[error("{identity} is no node; only a node opens a peer link")]
    NotANode {
        /// Whose certificate it is.
        identity: Identity,
    },
    /// This endpoint has as many connections as its settings allow.
    #[error("there are {max} connections already")]
    TooManyConnections {
        /// The limit.
        max: usize,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
    /// The credentials are not usable for TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// What incoming connections have to pass, and the counts of it.
struct Gate {
    credentials: Credentials,
    handshake_timeout: Duration,
    pending_max: usize,
    pending_before_retry: usize,
    pending: AtomicUsize,
    connections: Arc<Semaphore>,
    counters: Counters,
    log: LogGate,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    turned_away: AtomicU64,
    retried: AtomicU64,
    connected: AtomicU64,
    connects_failed: AtomicU64,
}

impl Gate {
    fn new(credentials: &Credentials, config: &TransportConfig) -> Self {
        Self {
            credentials: credentials.clone(),
            handshake_timeout: config.handshake_timeout(),
            pending_max: config.pending_handshakes_max,
            pending_before_retry: config.pending_handshakes_before_retry,
            pending: AtomicUsize::new(0),
            connections: Arc::new(Semaphore::new(config.connections_max)),
            counters: Counters::default(),
            log: LogGate::default(),
        }
    }

    /// Decides about a caller of whom nothing but the address is known.
    fn triage(&self, incoming: quinn::Incoming) -> Option<quinn::Incoming> {
        let pending = self.pending.load(Ordering::Relaxed);
        if pending >= self.pending_before_retry && !incoming.remote_address_validated() {
            self.counters.retried.fetch_add(1, Ordering::Relaxed);
            // Fails only for an address that is validated.
            let _ = incoming.retry();
            return None;
        }
        if pending >= self.pending_max {
            self.counters.turned_away.fetch_add(1, Ordering::Relaxed);
            self.log.refused(incoming.remote_address(), &"too many pending handshakes");
            incoming.refuse();
            return None;
        }
        Some(incoming)
    }

    /// Runs one handshake to its end, whatever that is.
    async fn handshake(&self, incoming: quinn::Incoming) -> Option<Connection> {
        let address = incoming.remote_address();
        match timeout(self.handshake_timeout, self.admit(incoming)).await {
            Ok(Ok(connection)) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
                Some(connection)
            }
            Ok(Err(refusal)) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.log.refused(address, &refusal);
                None
            }
            Err(_) => {
                self.counters.timed_out.fetch_add(1, Ordering::Relaxed);
                self.log.refused(address, &"the handshake was not done in time");
                None
            }
        }
    }

    async fn admit(&self, incoming: quinn::Incoming) -> Result<Connection, Refusal> {
        let quinn = incoming.accept()?.await?;
        let refuse = |code: CloseCode, refusal: Refusal| {
            quinn.close(code.into(), refusal.to_string().as_bytes());
            refusal
        };
        let (identity, agreed) = introduction(&quinn, &self.credentials)
            .map_err(|refusal| refuse(CloseCode::NOT_ACCEPTABLE, refusal.into()))?;
        if agreed.0 == Alpn::Peer && !identity.is_node() {
            let refusal = PeerRefusal::NotANode { found: identity };
            return Err(refuse(CloseCode::NOT_A_NODE, refusal.into()));
        }
        let permit = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| refuse(CloseCode::TOO_MANY_CONNECTIONS, Refusal::TooManyConnections))?;

        let mut stream = quinn.open_uni().await?;
        stream.write_all(ADMITTED).await.map_err(|_| Refusal::Gone)?;
        stream.finish().map_err(|_| Refusal::Gone)?;
        Ok(Connection::new(quinn, identity, agreed, permit))
    }
}

/// Why an incoming connection was not admitted. For the log.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Peer(#[from] PeerRefusal),
    #[error("too many connections")]
    TooManyConnections,
    #[error("it went away before it was admitted")]
    Gone,
}

/// Counts a pending handshake for as long as it lives, however it ends.
struct Pending(Arc<Gate>);

impl Pending {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.pending.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(gate))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets one refusal a second into the log as a warning. Otherwise strangers write the log, and fill the disk.
#[derive(Default)]
struct LogGate {
    state: Mutex<(Option<Instant>, u64)>,
}

impl LogGate {
    fn refused(&self, address: SocketAddr, cause: &dyn fmt::Display) {
        let address = canonical(address);
        match self.pass(Instant::now()) {
            Some(0) => tracing::warn!(%address, %cause, "refused an incoming connection"),
            Some(not_shown) => tracing::warn!(%address, %cause, not_shown, "refused incoming connections"),
            None => tracing::debug!(%address, %cause, "refused an incoming connection"),
        }
    }

    /// How many were held back since the last that passed, or `None` if this one is held back too.
    fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}

#[derive(Clone, Copy)]
struct SocketBuffers {
    receive: usize,
    send: usize,
}

impl SocketBuffers {
    fn of(socket: &Socket) -> Self {
        Self {
            receive: socket.recv_buffer_size().unwrap_or_default(),
            send: socket.send_buffer_size().unwrap_or_default(),
        }
    }

    fn report(self, config: &TransportConfig) {
        if self.receive.min(self.send) < config.socket_buffer_bytes {
            tracing::info!(
                asked_bytes = config.socket_buffer_bytes,
                receive_bytes = self.receive,
                send_bytes = self.send,
                "the system gave smaller socket buffers than asked for; packets may be lost in bursts \
                 (on Linux raise net.core.rmem_max and net.core.wmem_max)"
            );
        }
    }
}

/// Takes callers as they come, and runs their handshakes side by side.
async fn run_acceptor(quinn: quinn::Endpoint, gate: Arc<Gate>, accepted: mpsc::Sender<Connection>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            incoming = quinn.accept() => {
                let Some(incoming) = incoming else { return };
                let Some(incoming) = gate.triage(incoming) else { continue };
                let (pending, accepted) = (Pending::new(&gate), accepted.clone());
                handshakes.spawn(async move {
                    if let Some(connection) = pending.0.handshake(incoming).await {
                        // Still pending while nobody takes it. An error says that the endpoint is gone.
                        let _ = accepted.send(connection).await;
                    }
                });
            }
            Some(_) = handshakes.join_next() => {}
        }
    }
}

/// Who the peer is, and which service and version were agreed, once the handshake has verified its certificate.
fn introduction(quinn: &quinn::Connection, credentials: &Credentials) -> Result<(Identity, (Alpn, u8)), PeerRefusal> {
    let certificates = quinn.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = certificates.as_ref().and_then(|certificates| certificates.first());
    let certificate = certificate.ok_or_else(|| PeerRefusal::Unverified("there is none".to_owned()))?;
    let identity = tls::check_member(certificate, credentials.identity().cluster())?;

    let data = quinn.handshake_data().and_then(|any| any.downcast::<HandshakeData>().ok());
    let agreed = data.and_then(|data| data.protocol).and_then(|protocol| Alpn::parse(&protocol));
    let agreed = agreed.ok_or_else(|| PeerRefusal::Unverified("no service was agreed".to_owned()))?;
    Ok((identity, agreed))
}

/// Waits until the accepting side says that we are welcome. `Err(None)`: it says something else.
async fn await_admission(quinn: &quinn::Connection) -> Result<(), Option<quinn::ConnectionError>> {
    let mut stream = quinn.accept_uni().await.map_err(Some)?;
    match stream.read_to_end(ADMITTED.len()).await {
        Ok(bytes) if bytes == ADMITTED => Ok(()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(cause))) => Err(Some(cause)),
        _ => Err(None),
    }
}

fn connect_error(
    address: SocketAddr,
    alpn: Alpn,
    error: quinn::ConnectionError,
    refusal: Option<&PeerRefusal>,
) -> ConnectError {
    if let Some(refusal) = refusal {
        return ConnectError::Peer { address, refusal: refusal.clone() };
    }
    let no_service = |code| u64::from(code) == NO_APPLICATION_PROTOCOL;
    match error {
        quinn::ConnectionError::TransportError(cause) if no_service(cause.code) => ConnectError::Alpn { address, alpn },
        error => match CloseReason::from(error) {
            CloseReason::ByPeer { code, reason } if code.is_refusal() => {
                ConnectError::Refused { address, code, reason }
            }
            CloseReason::AbortedByPeer { error: CONNECTION_REFUSED, .. } => ConnectError::Busy { address },
            CloseReason::AbortedByPeer { error: NO_APPLICATION_PROTOCOL, .. } => ConnectError::Alpn { address, alpn },
            CloseReason::AbortedByPeer { error, reason } if CERTIFICATE_ALERTS.contains(&error) => {
                ConnectError::CertificateRefused { address, alert: (error - TLS_ALERT) as u8, reason }
            }
            reason => ConnectError::Lost { address, reason },
        },
    }
}

fn open_socket(address: SocketAddr, config: &TransportConfig) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // Best effort: then it serves IPv6 alone.
        let _ = socket.set_only_v6(false);
    }
    // Best effort: the system caps it, and what it gave is in the statistics.
    let _ = socket.set_recv_buffer_size(config.socket_buffer_bytes);
    let _ = socket.set_send_buffer_size(config.socket_buffer_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_a_second_is_a_warning_and_the_rest_is_counted() {
        let (gate, start) = (LogGate::default(), Instant::now());
        assert_eq!(gate.pass(start), Some(0));
        for _ in 0..5 {
            assert_eq!(gate.pass(start + LOG_INTERVAL / 2), None);
        }
        assert_eq!(gate.pass(start + LOG_INTERVAL), Some(5));
        assert_eq!(gate.pass(start + LOG_INTERVAL * 3), Some(0));
    }
}
