use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Where a node takes clients: `HOST:PORT`, as in `127.0.0.1:7401`, `[::1]:7401` or `node-1.example:7401`.
///
/// A name is resolved anew at each connect, and all its addresses are tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress(String);

/// Longest DNS name (253), or any other host, and a port.
const ADDRESS_BYTES_MAX: usize = 260;

impl NodeAddress {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.chars().take(80).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port_is_one = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        if port_is_one && is_host(host) && text.len() <= ADDRESS_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(error())
        }
    }
}

impl From<std::net::SocketAddr> for NodeAddress {
    fn from(address: std::net::SocketAddr) -> Self {
        Self(address.to_string())
    }
}

/// The text is not the address of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a node's address; one looks like 127.0.0.1:7401, [::1]:7401 or node-1.example:7401")]
pub struct AddressError {
    text: String,
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["127.0.0.1:7401", "[::1]:1", "node-1.example:65535", "a_b:7"] {
            assert_eq!(text.parse::<NodeAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            ":7401",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "::1:7401",
            "[::1]",
            "a b:1",
            "http://a:1",
        ] {
            let error = text.parse::<NodeAddress>().unwrap_err();
            assert!(error.to_string().contains("127.0.0.1:7401"), "{text}: {error}");
        }
    }
}
