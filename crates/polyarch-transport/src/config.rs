//! Settings of an endpoint: every limit has a name, and none is "unlimited".

use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;

/// How an endpoint behaves. The default suits nodes on one site and on links of up to about 100 ms.
///
/// Not to be set, because the other choice is wrong here: connections do not migrate to other addresses, unreliable
/// datagrams are refused, segmentation offload is on where the system has it (off, it costs 2.6 times the CPU).
///
/// ```
/// use polyarch_transport::TransportConfig;
///
/// let config = TransportConfig { connections_max: 100, ..TransportConfig::default() };
/// assert_eq!(config.idle_timeout_ms, 8_000);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// A connection on which nothing was heard for so long is lost. Milliseconds, default 8000. The lower value of the
    /// two sides counts.
    pub idle_timeout_ms: u64,
    /// A connection on which nothing was sent for so long sends a sign of life. Milliseconds, default 2000. Must be
    /// below [`idle_timeout_ms`](Self::idle_timeout_ms); a quarter of it survives the loss of two of them.
    pub keep_alive_interval_ms: u64,
    /// The same for connections between members, where one that is gone has to be noticed sooner than a client: the
    /// value of the member that dialled counts, up to the greater of this and
    /// [`idle_timeout_ms`](Self::idle_timeout_ms) of the other. Its sign of life goes out after a quarter of it.
    /// Milliseconds, default 2000.
    pub peer_idle_timeout_ms: u64,
    /// A connection that is not authenticated and admitted after so long is given up, by either side. Milliseconds,
    /// default 5000.
    pub handshake_timeout_ms: u64,
    /// Closing an endpoint waits at most so long for peers to learn of it. Milliseconds, default 3000.
    pub close_timeout_ms: u64,
    /// What a peer may send on one stream before it is read. Bytes, default 8 MiB. Throughput of a stream is at most
    /// this per round trip.
    pub stream_receive_window_bytes: u64,
    /// What a peer may send on all streams of a connection before it is read. Bytes, default 16 MiB. Bounds the memory
    /// of a connection whose streams nobody reads.
    pub receive_window_bytes: u64,
    /// What may be written to all streams of a connection before it is acknowledged. Bytes, default 16 MiB. Bounds the
    /// memory of a connection whose peer does not read; writers wait beyond it.
    pub send_window_bytes: u64,
    /// Bidirectional streams that the peer may have open at a time. Default 128.
    pub bi_streams_max: u32,
    /// Unidirectional streams that the peer may have open at a time. Default 128.
    pub uni_streams_max: u32,
    /// Incoming connections that are not yet authenticated. Default 256. Beyond it, callers are told to come back later.
    pub pending_handshakes_max: usize,
    /// From this many pending handshakes on, a caller must first prove that it receives at the address it sends from,
    /// which costs it a round trip and forged senders everything. Default 32; 0 demands it always.
    pub pending_handshakes_before_retry: usize,
    /// Authenticated connections, in both directions. Default 1024.
    pub connections_max: usize,
    /// Size asked for each of the socket's two buffers. Bytes, default 4 MiB. The system may give less
    /// ([`EndpointStats`](crate::EndpointStats) tells); with the usual 208 KiB, bursts lose packets even on loopback.
    /// On Linux, raise `net.core.rmem_max` and `net.core.wmem_max`.
    pub socket_buffer_bytes: usize,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            idle_timeout_ms: 8_000,
            keep_alive_interval_ms: 2_000,
            peer_idle_timeout_ms: 2_000,
            handshake_timeout_ms: 5_000,
            close_timeout_ms: 3_000,
            stream_receive_window_bytes: 8 << 20,
            receive_window_bytes: 16 << 20,
            send_window_bytes: 16 << 20,
            bi_streams_max: 128,
            uni_streams_max: 128,
            pending_handshakes_max: 256,
            pending_handshakes_before_retry: 32,
            connections_max: 1024,
            socket_buffer_bytes: 4 << 20,
        }
    }
}

impl TransportConfig {
    /// Checks that the values make sense together. [`Endpoint`](crate::Endpoint) does so itself.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("keep_alive_interval_ms", self.keep_alive_interval_ms),
            ("peer_idle_timeout_ms", self.peer_idle_timeout_ms),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("stream_receive_window_bytes", self.stream_receive_window_bytes),
            ("receive_window_bytes", self.receive_window_bytes),
            ("send_window_bytes", self.send_window_bytes),
            ("pending_handshakes_max", self.pending_handshakes_max as u64),
            ("connections_max", self.connections_max as u64),
        ];
        for (field, value) in at_least_one {
            // Values travel as integers of 62 bits.
            if !(1..1 << 62).contains(&value) {
                return Err(ConfigError::OutOfRange { field, value });
            }
        }
        if self.connections_max > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(ConfigError::OutOfRange { field: "connections_max", value: self.connections_max as u64 });
        }
        if self.keep_alive_interval_ms >= self.idle_timeout_ms {
            return Err(ConfigError::KeepAliveTooSlow {
                keep_alive_interval_ms: self.keep_alive_interval_ms,
                idle_timeout_ms: self.idle_timeout_ms,
            });
        }
        Ok(())
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    /// For connections that a member dials to another.
    pub(crate) fn to_quinn_for_peers(&self) -> Result<Arc<quinn::TransportConfig>, ConfigError> {
        let (idle_timeout_ms, keep_alive_interval_ms) = (self.peer_idle_timeout_ms, self.peer_idle_timeout_ms / 4);
        Self { idle_timeout_ms, keep_alive_interval_ms, ..self.clone() }.to_quinn()
    }

    /// For connections that are accepted: who dialled says how long they may be idle.
    pub(crate) fn to_quinn_for_accepted(&self) -> Result<Arc<quinn::TransportConfig>, ConfigError> {
        Self { idle_timeout_ms: self.idle_timeout_ms.max(self.peer_idle_timeout_ms), ..self.clone() }.to_quinn()
    }

    pub(crate) fn to_quinn(&self) -> Result<Arc<quinn::TransportConfig>, ConfigError> {
        self.check()?;
        let varint = |field, value| VarInt::from_u64(value).map_err(|_| ConfigError::OutOfRange { field, value });
        let mut config = quinn::TransportConfig::default();
        config
            .max_idle_timeout(Some(varint("idle_timeout_ms", self.idle_timeout_ms)?.into()))
            .keep_alive_interval(Some(Duration::from_millis(self.keep_alive_interval_ms)))
            .stream_receive_window(varint("stream_receive_window_bytes", self.stream_receive_window_bytes)?)
            .receive_window(varint("receive_window_bytes", self.receive_window_bytes)?)
            .send_window(self.send_window_bytes)
            .max_concurrent_bidi_streams(self.bi_streams_max.into())
            // One more than promised: the stream of admission (see `endpoint`) is not the user's.
            .max_concurrent_uni_streams(self.uni_streams_max.saturating_add(1).into())
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(true);
        Ok(Arc::new(config))
    }
}

/// Why settings are refused. Nothing was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is zero or beyond what the protocol can express.
    #[error("{field} = {value} is out of range")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A quiet connection would time out before its first sign of life.
    #[error(
        "keep_alive_interval_ms = {keep_alive_interval_ms} must be below idle_timeout_ms = {idle_timeout_ms}; \
         a quarter of it is usual"
    )]
    KeepAliveTooSlow {
        /// As configured.
        keep_alive_interval_ms: u64,
        /// As configured.
        idle_timeout_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_nonsense_is_named() {
        assert_eq!(TransportConfig::default().check(), Ok(()));
        let config = TransportConfig { keep_alive_interval_ms: 8_000, ..Default::default() };
        assert!(matches!(config.check(), Err(ConfigError::KeepAliveTooSlow { .. })));
        for value in [0, u64::MAX] {
            let config = TransportConfig { receive_window_bytes: value, ..Default::default() };
            assert_eq!(config.check(), Err(ConfigError::OutOfRange { field: "receive_window_bytes", value }));
        }
    }
}
