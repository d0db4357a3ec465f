//! On a link of version 1 nothing is said that 0.1.0 does not know: it would close the link.
//!
//! Source: rolling upgrade. The messages of 0.1.0 are told by their bytes, which are frozen, and not
//! by the code that decides what is sent.

use polyarch_protocol::peer::PeerVersion;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "older_links_stay_as_they_were";

/// How many variants of a message 0.1.0 has, numbered from 0.
const VARIANTS_V1: u8 = 7;

/// A frame came to a node on the control stream of a link.
pub fn check(server_id: u32, version: PeerVersion, frame: &[u8]) -> Checked {
    let is_known = matches!(frame, [b'P', 1, variant, ..] if *variant < VARIANTS_V1);
    match version > PeerVersion::V1 || is_known {
        true => Ok(()),
        false => {
            let begins: Vec<u8> = frame.iter().take(3).copied().collect();
            Err(Violation::new(NAME, format!("node {server_id} was sent {begins:?} on a link of version 1")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_0_1_0_does_not_know_goes_on_newer_links_only() {
        assert_eq!(check(1, PeerVersion::V1, &[b'P', 1, 6, 0]), Ok(()));
        assert_eq!(check(1, PeerVersion::V2, &[b'P', 1, 7, 0]), Ok(()));
        assert!(check(1, PeerVersion::V1, &[b'P', 1, 7, 0]).is_err());
        assert!(check(1, PeerVersion::V1, &[b'P', 2, 1, 0]).is_err());
    }
}
