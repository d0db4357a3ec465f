//! What a node gave out and gets back: contexts with their MAC, tokens, and what a state says of itself.

use polyarch_crdt::{CausalContext, ClusterKey, ClusterKeys, ContextError, SealedContext, SessionToken};
use polyarch_protocol::KeyspaceId;
use polyarch_store::state::Checkpoint;

use crate::script::Script;

const SCOPE: [&[u8]; 2] = [b"cluster", b"key"];
const DOTS_MAX: usize = 64;

/// An input is what a client shows as a context or token, or what a disk shows as a checkpoint. What is read is written
/// as something that reads as the same. No bytes are a context but those that were sealed for the very key.
pub fn contexts_and_tokens(data: &[u8]) {
    let mut script = Script::new(data);
    match script.below(4) {
        0 => unsealed(script.rest()),
        1 => sealed(&mut script),
        2 => token(script.rest()),
        _ => checkpoint(script.rest()),
    }
}

fn keys() -> (ClusterKeys, ClusterKey) {
    let key = ClusterKey { id: 2, secret: [7; 32] };
    let mut keys = ClusterKeys::default();
    keys.insert(ClusterKey { id: 1, secret: [6; 32] });
    keys.insert(key.clone());
    (keys, key)
}

/// Bytes that nobody sealed are refused, whatever they are.
fn unsealed(bytes: &[u8]) {
    let (keys, _) = keys();
    let shown = SealedContext::from_bytes(bytes.to_vec());
    let refusal = shown.open(&keys, &SCOPE, DOTS_MAX).expect_err("nobody sealed it");
    match (refusal, bytes) {
        (ContextError::UnknownVersion { version }, [first, ..]) => assert!(version == *first && version != 1),
        (ContextError::UnknownKey { key_id }, [1, id, ..]) => assert!(key_id != 1 && key_id as u8 == *id),
        (refusal, _) => assert_eq!(refusal, ContextError::NotIssued),
    }
}

/// A context that was sealed opens, unless a byte of it or of its scope is another.
fn sealed(script: &mut Script<'_>) {
    let (keys, key) = keys();
    let (at, flip) = (script.number(), script.byte());
    let other_scope = script.chunk(8);
    let Ok((context, [])) = postcard::take_from_bytes::<CausalContext>(script.rest()) else { return };
    let sealed = context.seal(&key, &SCOPE);
    match sealed.open(&keys, &SCOPE, DOTS_MAX) {
        Ok(opened) => assert!(opened == context && opened.len() <= DOTS_MAX),
        Err(ContextError::TooManyDots { len, max: DOTS_MAX }) => assert!(len > DOTS_MAX && len == context.len()),
        Err(error) => panic!("{error}, and it was sealed here"),
    }
    if other_scope != SCOPE[1] {
        assert_eq!(sealed.open(&keys, &[SCOPE[0], other_scope], usize::MAX), Err(ContextError::NotIssued));
    }
    let mut altered = sealed.as_bytes().to_vec();
    let at = at % altered.len();
    altered[at] ^= flip;
    let altered = SealedContext::from_bytes(altered);
    assert_eq!(altered.open(&keys, &SCOPE, usize::MAX).is_ok(), flip == 0);
}

fn token(bytes: &[u8]) {
    let Ok(token) = SessionToken::from_bytes(bytes) else { return };
    assert_eq!(SessionToken::from_bytes(&token.to_bytes()).as_ref(), Ok(&token));
    assert!(token.seen.iter().all(|dot| dot.seq > 0));
}

fn checkpoint(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::decode(bytes) else { return };
    assert_eq!(Checkpoint::decode(&checkpoint.encode()).expect("it was written so"), checkpoint);
    assert!(checkpoint.absorbing.iter().all(|key| key.keyspace() >= KeyspaceId::SYSTEM));
}
