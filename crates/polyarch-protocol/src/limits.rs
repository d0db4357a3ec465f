//! Every bound in one place: [`Limits`] of this node, and [`wire`], the format's own.

/// What the system accepts at most. Every queue, message, value and window has its name here.
///
/// A node refuses a *local* write beyond a limit; it never refuses one that another member
/// accepted within the limits of the wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes. Default 4 KiB.
    pub key_bytes_max: usize,
    /// Longest value, in bytes. Default 1 MiB.
    pub value_bytes_max: usize,
    /// Most changes in one write set. Default 4,096; the wire format allows 65,535.
    pub changes_max: usize,
    /// Longest encoded write set, in bytes. Default 4 MiB.
    pub write_set_bytes_max: usize,
    /// Longest frame on a link or a client connection, in bytes. Default 8 MiB.
    pub frame_bytes_max: usize,
    /// Most siblings of one field: a local write that would add one beyond is refused. Default 128.
    pub siblings_max: usize,
    /// Most dots in one context. Default 1,024.
    pub context_dots_max: usize,
    /// Bytes of write sets one feed message carries before it is sent. Default 256 KiB.
    pub feed_group_bytes: usize,
    /// Bytes of write sets that may wait per link for those they depend on. Default 16 MiB.
    pub feed_waiting_bytes_max: usize,
    /// So many closed epochs that no base holds make a base due. Default 16: about what a set may
    /// name of them at a time.
    pub base_epochs_min: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 << 10,
            value_bytes_max: 1 << 20,
            changes_max: 4_096,
            write_set_bytes_max: 4 << 20,
            frame_bytes_max: 8 << 20,
            siblings_max: 128,
            context_dots_max: 1_024,
            feed_group_bytes: 256 << 10,
            feed_waiting_bytes_max: 16 << 20,
            base_epochs_min: 16,
        }
    }
}

impl Limits {
    /// These limits, none of them beyond what the wire format allows.
    pub fn within_wire(mut self) -> Self {
        self.key_bytes_max = self.key_bytes_max.min(wire::KEY_BYTES_MAX);
        self.changes_max = self.changes_max.min(wire::CHANGES_MAX);
        self.write_set_bytes_max = self.write_set_bytes_max.min(wire::WRITE_SET_BYTES_MAX);
        self.value_bytes_max = self.value_bytes_max.min(self.write_set_bytes_max);
        self
    }
}

/// The wire format's own bounds: what any member may ever send, whatever its configuration.
pub mod wire {
    /// Longest encoded write set.
    pub const WRITE_SET_BYTES_MAX: usize = 16 << 20;
    /// Longest frame, with room for a write set behind an almost full feed group, and the envelope.
    pub const FRAME_BYTES_MAX: usize = WRITE_SET_BYTES_MAX + (1 << 20);
    /// Longest frame of a control stream: heartbeats and subscriptions of some ten thousand origins.
    pub const CONTROL_BYTES_MAX: usize = 4 << 20;
    /// Most bytes of write sets that a feed message gathers; the last may go beyond.
    pub const FEED_GROUP_BYTES_MAX: usize = 512 << 10;
    /// Longest session token in a request.
    pub const TOKEN_BYTES_MAX: usize = 1 << 20;
    /// Longest key.
    pub const KEY_BYTES_MAX: usize = 64 << 10;
    /// Longest field path.
    pub const FIELD_BYTES_MAX: usize = 4 << 10;
    /// Most addresses of one member.
    pub const ADDRESSES_MAX: usize = 16;
    /// Most link states in one message: one for each member.
    pub const LINK_STATES_MAX: usize = 4_096;
    /// Most members whose progress is in one message.
    pub const PROGRESS_MAX: usize = 4_096;
    /// Most hubs, or links, that a topology names.
    pub const TOPOLOGY_NAMES_MAX: usize = u16::MAX as usize;
    /// Most records that a node looks at for one page of the records of some buckets.
    pub const OUTLINES_MAX: usize = 4_096;
    /// Most closed epochs that one base adds to its parent's.
    pub const BASE_EPOCHS_MAX: usize = 4_096;
    /// Most changes in a write set.
    pub const CHANGES_MAX: usize = u16::MAX as usize;
}
