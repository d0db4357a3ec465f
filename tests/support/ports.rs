//! Ports that tests which run at once do not take from each other.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// UDP ports in a row, and one more, that no other test takes while this exists.
pub(super) struct ReservedPorts {
    base: u16,
    /// Nodes bind UDP. Tests, in this process or another, keep out of each other's way by the first one's TCP port.
    _reservation: TcpListener,
}

impl ReservedPorts {
    /// A block's size: so many nodes, less one, can a cluster have.
    const BLOCK: u16 = 16;
    /// Below the ports that systems give to sockets that ask for any.
    const BLOCKS: std::ops::Range<u16> = 1_280..2_000;

    pub(super) fn reserve(nodes: u32) -> Self {
        assert!(nodes < u32::from(Self::BLOCK), "a block has no more ports");
        let blocks = Self::BLOCKS.end - Self::BLOCKS.start;
        let first = u16::try_from(std::process::id() % u32::from(blocks)).expect("less than u16::MAX blocks");
        let mut candidates = (0..blocks).map(|n| (Self::BLOCKS.start + (first + n) % blocks) * Self::BLOCK);
        candidates.find_map(Self::try_reserve).expect("some block of ports is free")
    }

    /// The first of them.
    pub(super) fn base(&self) -> u16 {
        self.base
    }

    fn try_reserve(base: u16) -> Option<Self> {
        let reservation = TcpListener::bind((Ipv4Addr::LOCALHOST, base)).ok()?;
        let is_free = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        (base..base + Self::BLOCK).all(is_free).then_some(Self { base, _reservation: reservation })
    }

    pub(super) fn address(&self, server_id: u32) -> SocketAddr {
        let offset = u16::try_from(server_id - 1).expect("a block is small");
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base + offset))
    }
}
