use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use polyarch_crdt::{SessionToken, TokenError};

use crate::client::Client;

/// A client whose every call includes what its earlier calls wrote and saw, whichever node answers. From
/// [`Client::session`].
///
/// All calls of [`Client`] can be made on it; clients cloned, or given another timeout, from it are the same session, also
/// when their calls run at once. A node that lacks what the session has seen is waited for; then others are asked; at the
/// deadline the answer is [`Refusal::Behind`](crate::Refusal::Behind).
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    seen: Arc<Seen>,
}

impl Session {
    pub(crate) fn new(client: &Client, seen: Arc<Seen>) -> Self {
        Self { client: client.clone().within(Arc::clone(&seen)), seen }
    }

    /// What the session has seen, as opaque bytes for [`Client::resume`], in this or another process.
    pub fn token(&self) -> Bytes {
        self.seen.token().unwrap_or_else(|| SessionToken::default().to_bytes().into())
    }

    /// Adds what another session has seen: this one sees it too from now on.
    ///
    /// # Errors
    /// When the bytes are no session's token.
    pub fn join(&self, token: &[u8]) -> Result<(), TokenError> {
        self.seen.join(token)
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// What a session has seen; shared by all its handles.
#[derive(Default)]
pub(crate) struct Seen {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: SessionToken,
    /// The token as it travels; `None` while nothing was seen.
    bytes: Option<Bytes>,
}

impl Seen {
    pub(crate) fn resumed(token: &[u8]) -> Result<Self, TokenError> {
        let seen = Self::default();
        seen.join(token)?;
        Ok(seen)
    }

    pub(crate) fn token(&self) -> Option<Bytes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }

    pub(crate) fn join(&self, token: &[u8]) -> Result<(), TokenError> {
        let token = SessionToken::from_bytes(token)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.token.seen.includes_all(&token.seen) {
            state.token.seen.join(&token.seen);
            state.bytes = Some(state.token.to_bytes().into());
        }
        Ok(())
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        fmt::Debug::fmt(&state.token.seen, f)
    }
}
