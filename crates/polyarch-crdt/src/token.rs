use serde::{Deserialize, Serialize};

use crate::AppliedSet;

const TOKEN_VERSION: u8 = 1;

/// What a session has seen: any node answers it only from a state that includes this.
///
/// Opaque to clients. It is an applied-set and carries no MAC: a forged one can only make its own
/// sender wait. A write's token is the write's own GTID, since whoever has applied that has applied
/// all it depended on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionToken {
    /// The write sets that an answer must include.
    pub seen: AppliedSet,
}

/// The bytes are not a token this version can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not a session token of this version; start a new session")]
pub struct TokenError;

impl SessionToken {
    /// Version (1), then the applied-set in postcard.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(&self.seen, vec![TOKEN_VERSION]).expect("a Vec takes all that is written")
    }

    /// Reads what [`SessionToken::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are of another version, cut short, followed by more, or not in order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        match bytes {
            [TOKEN_VERSION, body @ ..] => match postcard::take_from_bytes(body) {
                Ok((seen, [])) => Ok(Self { seen }),
                _ => Err(TokenError),
            },
            _ => Err(TokenError),
        }
    }
}
