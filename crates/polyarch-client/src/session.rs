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

    /// Takes an answer's token to a request that carried `carried`.
    ///
    /// The node had applied all that was carried before it answered, so its token implies that: of
    /// what is kept only that remains which was seen since the request was made. So a session's token
    /// stays as small as those of nodes, however long it lives.
    pub(crate) fn answered(&self, carried: Option<&[u8]>, token: &[u8]) -> Result<(), TokenError> {
        let carried = carried.map(SessionToken::from_bytes).transpose()?.unwrap_or_default();
        let mut seen = SessionToken::from_bytes(token)?.seen;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        seen.join(&state.token.seen.since(&carried.seen));
        if seen != state.token.seen {
            state.token.seen = seen;
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

#[cfg(test)]
mod tests {
    use polyarch_crdt::{Dot, Origin};

    use super::*;

    fn token(dots: &[(u32, u64)]) -> Vec<u8> {
        let seen = dots.iter().map(|(server_id, seq)| Dot::new(Origin::new(*server_id, 1), *seq)).collect();
        SessionToken { seen }.to_bytes()
    }

    #[test]
    fn what_a_request_carried_goes_and_what_was_seen_meanwhile_stays() {
        let seen = Seen::resumed(&token(&[(1, 5), (2, 7)])).expect("it is a token");
        let carried = seen.token().expect("it has seen something");
        // Another call's answer comes first.
        seen.answered(Some(&carried), &token(&[(3, 1)])).expect("it is a token");
        assert_eq!(seen.token().expect("it has").to_vec(), token(&[(3, 1)]));
        seen.join(&token(&[(1, 9)])).expect("it is a token");
        seen.answered(Some(&carried), &token(&[(4, 2)])).expect("it is a token");
        assert_eq!(seen.token().expect("it has").to_vec(), token(&[(1, 9), (3, 1), (4, 2)]));
    }
}
