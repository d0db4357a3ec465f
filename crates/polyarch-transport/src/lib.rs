//! QUIC, TLS and identity
