//! What clients, peers and disks may hand in: contexts, tokens, GTIDs and records, sound, altered
//! or made up. Nothing panics, nothing is believed that was not issued, and no claim of a length
//! makes the reader allocate for it.

use polyarch_crdt::{
    AppliedSet, CausalContext, ClusterKey, ClusterKeys, ContextError, Dot, FieldPath, Origin, Record, SealedContext,
    SessionToken, TokenError,
};
use proptest::prelude::*;
use serde::Serialize;

use crate::support::{KEYS, SmallHistory, cases, dot, small_history};

const SCOPE: [&[u8]; 3] = [b"cluster", b"keyspace", b"key"];
const DOTS_MAX: usize = 64;

fn key(id: u32, secret: u8) -> ClusterKey {
    ClusterKey { id, secret: [secret; 32] }
}

fn keys(of: &[ClusterKey]) -> ClusterKeys {
    let mut keys = ClusterKeys::default();
    of.iter().cloned().for_each(|key| keys.insert(key));
    keys
}

fn written<T: Serialize + ?Sized>(whole: &T) -> Vec<u8> {
    postcard::to_extend(whole, Vec::new()).expect("a Vec takes all that is written")
}

/// The postcard form of a number, as a length that claims that many items follow.
fn length(claimed: u64) -> Vec<u8> {
    written(&claimed)
}

fn opened(bytes: &[u8], scope: &[&[u8]]) -> Result<CausalContext, ContextError> {
    SealedContext::from_bytes(bytes.to_vec()).open(&keys(&[key(1, 1)]), scope, DOTS_MAX)
}

/// A context as some reader of some history was given it.
fn context() -> impl Strategy<Value = CausalContext> {
    record().prop_map(|record| CausalContext::of(&record))
}

fn record() -> impl Strategy<Value = Record> {
    (small_history(1..=8), prop::collection::vec(1..250_u8, 0..8)).prop_map(|(history, order): (SmallHistory, _)| {
        let state = history.reach(&order);
        state.record(KEYS[0])
    })
}

fn applied_set() -> impl Strategy<Value = AppliedSet> {
    let dot = (any::<u32>(), any::<u32>(), any::<u64>());
    prop::collection::vec(dot, 0..6).prop_map(|dots| {
        let dots = dots.into_iter().map(|(server_id, epoch, seq)| Dot::new(Origin::new(server_id, epoch), seq));
        dots.collect()
    })
}

/// Few and short parts, so that two of these are often nearly alike.
fn scope() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(0..3_u8, 0..3), 0..4)
}

/// Bytes of no shape, and bytes that begin like something.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = prop::collection::vec(any::<u8>(), 0..120);
    let begun = (0..3_u8, prop::collection::vec(0..5_u8, 0..60)).prop_map(|(first, rest)| [vec![first], rest].concat());
    prop_oneof![any_bytes, begun]
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_sealed_context_opens_as_itself_in_its_own_scope(context in context()) {
        let sealed = context.seal(&key(1, 1), &SCOPE);
        prop_assert_eq!(opened(sealed.as_bytes(), &SCOPE), Ok(context));
    }

    #[test]
    fn a_context_opens_in_no_other_scope(context in context(), scope in scope(), other in scope()) {
        let parts: Vec<&[u8]> = scope.iter().map(Vec::as_slice).collect();
        let others: Vec<&[u8]> = other.iter().map(Vec::as_slice).collect();
        let sealed = context.seal(&key(1, 1), &parts);
        prop_assert_eq!(opened(sealed.as_bytes(), &others).is_ok(), scope == other);
    }

    #[test]
    fn a_context_with_any_bit_flipped_is_refused(context in context()) {
        let sealed = context.seal(&key(1, 1), &SCOPE);
        for bit in 0..sealed.as_bytes().len() * 8 {
            let mut altered = sealed.as_bytes().to_vec();
            altered[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(opened(&altered, &SCOPE).is_err(), "bit {}", bit);
        }
    }

    #[test]
    fn a_context_cut_short_or_with_more_behind_it_is_refused(context in context(), more in prop::collection::vec(any::<u8>(), 1..20)) {
        let sealed = context.seal(&key(1, 1), &SCOPE);
        for len in 0..sealed.as_bytes().len() {
            prop_assert!(opened(&sealed.as_bytes()[..len], &SCOPE).is_err(), "{} bytes", len);
        }
        prop_assert!(opened(&[sealed.as_bytes(), &more].concat(), &SCOPE).is_err());
    }

    #[test]
    fn bytes_that_nobody_sealed_are_no_context(bytes in bytes()) {
        prop_assert!(opened(&bytes, &SCOPE).is_err());
    }

    #[test]
    fn a_context_may_name_as_many_dots_as_the_limit_and_no_more(context in context(), dots_max in 0..4_usize) {
        let sealed = context.seal(&key(1, 1), &SCOPE);
        let len = context.len();
        let expected = if len > dots_max { Err(ContextError::TooManyDots { len, max: dots_max }) } else { Ok(context) };
        prop_assert_eq!(sealed.open(&keys(&[key(1, 1)]), &SCOPE, dots_max), expected);
    }

    #[test]
    fn a_context_names_the_dots_that_are_live_and_no_absorbed_ones(record in record()) {
        let context = CausalContext::of(&record);
        let live = || record.fields().iter().flat_map(|f| f.siblings()).map(|s| s.dot);
        prop_assert_eq!(context.iter().collect::<Vec<_>>(), live().collect::<Vec<_>>());
        prop_assert_eq!(context.len(), live().count());
        prop_assert_eq!(context.is_empty(), record.is_deleted());
    }

    #[test]
    fn a_token_comes_back_as_itself(seen in applied_set()) {
        let token = SessionToken { seen };
        prop_assert_eq!(SessionToken::from_bytes(&token.to_bytes()), Ok(token));
    }

    #[test]
    fn a_token_cut_short_or_with_more_behind_it_is_refused(seen in applied_set(), more in prop::collection::vec(any::<u8>(), 1..20)) {
        let bytes = SessionToken { seen }.to_bytes();
        for len in 0..bytes.len() {
            prop_assert_eq!(SessionToken::from_bytes(&bytes[..len]), Err(TokenError), "{} bytes", len);
        }
        prop_assert_eq!(SessionToken::from_bytes(&[bytes, more].concat()), Err(TokenError));
    }

    #[test]
    fn a_token_of_another_version_is_refused(seen in applied_set(), version in (0..=u8::MAX).prop_filter("another", |v| *v != 1)) {
        let mut bytes = SessionToken { seen }.to_bytes();
        bytes[0] = version;
        prop_assert_eq!(SessionToken::from_bytes(&bytes), Err(TokenError));
    }

    #[test]
    fn a_token_with_any_bit_flipped_is_refused_or_another_token(seen in applied_set()) {
        let token = SessionToken { seen };
        let bytes = token.to_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(SessionToken::from_bytes(&altered), Ok(token.clone()), "bit {}", bit);
        }
    }

    #[test]
    fn what_is_read_as_a_token_is_written_and_read_again(bytes in bytes()) {
        if let Ok(token) = SessionToken::from_bytes(&bytes) {
            prop_assert_eq!(SessionToken::from_bytes(&token.to_bytes()), Ok(token));
        }
    }

    #[test]
    fn a_record_comes_back_as_itself(record in record()) {
        prop_assert_eq!(record.validate(), Ok(()));
        prop_assert_eq!(postcard::from_bytes::<Record>(&written(&record)), Ok(record));
    }

    #[test]
    fn a_record_of_any_bytes_is_refused_or_can_be_judged(bytes in bytes()) {
        check_hostile_record(&bytes)?;
    }

    #[test]
    fn a_record_with_any_bit_flipped_is_refused_or_can_be_judged(record in record()) {
        let bytes = written(&record);
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            check_hostile_record(&altered)?;
        }
        for len in 0..bytes.len() {
            prop_assert!(postcard::from_bytes::<Record>(&bytes[..len]).is_err());
        }
    }
}

proptest! {
    #![proptest_config(cases(3_000))]

    #[test]
    fn any_text_is_a_gtid_or_refused(text in any::<String>()) {
        check_gtid(&text)?;
    }

    #[test]
    fn text_that_looks_like_a_gtid_is_one_only_in_its_canonical_form(text in "[+-]?[0-9]{0,11}[-:]?[0-9a-fA-F+]{6,9}[:-]?[+0-9]{0,21}") {
        check_gtid(&text)?;
    }

    #[test]
    fn every_gtid_parses_as_itself(server_id in any::<u32>(), epoch in any::<u32>(), seq in any::<u64>()) {
        let gtid = Dot::new(Origin::new(server_id, epoch), seq);
        prop_assert_eq!(gtid.to_string().parse(), Ok(gtid));
        prop_assert_eq!(postcard::from_bytes::<Dot>(&written(&gtid)), Ok(gtid));
    }
}

fn check_gtid(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<Dot>() {
        Ok(dot) => prop_assert_eq!(dot.to_string(), text),
        Err(refusal) => prop_assert!(refusal.to_string().len() < 600, "the message quotes only so much"),
    }
    Ok(())
}

/// Whatever can be read can be judged, looked at and joined; what passes the judgement is canonical.
fn check_hostile_record(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok((record, rest)) = postcard::take_from_bytes::<Record>(bytes) else {
        return Ok(());
    };
    let applied: AppliedSet = [dot(1, 3), dot(2, 1)].into_iter().collect();
    let joined = record.join(&applied, &Record::default(), &applied);
    let _ = (record.is_deleted(), record.absorb_len(), CausalContext::of(&record).len());
    let _ = record.field(&FieldPath::opaque());
    if record.validate().is_ok() {
        prop_assert_eq!(joined.validate(), Ok(()));
        let again = written(&record);
        prop_assert!(again.len() <= bytes.len() - rest.len(), "the canonical form is the shortest");
        prop_assert_eq!(postcard::from_bytes::<Record>(&again), Ok(record));
    }
    Ok(())
}

#[test]
fn a_context_of_another_key_keyspace_or_cluster_is_refused() {
    let sealed = CausalContext::empty().seal(&key(1, 1), &SCOPE);
    let others: [&[&[u8]]; 7] = [
        &[b"cluster", b"keyspace", b"other"],
        &[b"cluster", b"other", b"key"],
        &[b"other", b"keyspace", b"key"],
        &[b"cluster", b"keyspacek", b"ey"],
        &[b"cluster", b"keyspace"],
        &[b"cluster", b"keyspace", b"key", b""],
        &[],
    ];
    for scope in others {
        assert_eq!(opened(sealed.as_bytes(), scope), Err(ContextError::NotIssued), "{scope:?}");
    }
}

#[test]
fn a_context_of_another_cluster_key_is_refused() {
    let context = CausalContext::empty();
    let sealed = context.seal(&key(1, 1), &SCOPE);
    let open_with = |of: &[ClusterKey]| sealed.open(&keys(of), &SCOPE, DOTS_MAX);
    assert_eq!(open_with(&[]), Err(ContextError::UnknownKey { key_id: 1 }));
    assert_eq!(open_with(&[key(2, 1)]), Err(ContextError::UnknownKey { key_id: 1 }));
    assert_eq!(open_with(&[key(1, 9)]), Err(ContextError::NotIssued), "the same id, another secret");
    assert_eq!(open_with(&[key(1, 1), key(2, 2)]), Ok(context), "an older key still opens");
}

#[test]
fn a_context_of_another_version_says_so() {
    let mut bytes = CausalContext::empty().seal(&key(1, 1), &SCOPE).as_bytes().to_vec();
    bytes[0] = 2;
    assert_eq!(opened(&bytes, &SCOPE), Err(ContextError::UnknownVersion { version: 2 }));
    assert_eq!(opened(&[], &SCOPE), Err(ContextError::NotIssued));
}

#[test]
fn debug_output_shows_neither_a_secret_nor_a_sealed_context() {
    let sealed = CausalContext::empty().seal(&key(7, 0xab), &SCOPE);
    assert_eq!(format!("{sealed:?}"), format!("SealedContext({} bytes)", sealed.as_bytes().len()));
    assert_eq!(format!("{:?}", key(7, 0xab)), "ClusterKey(7)");
    assert!(!format!("{:?}", keys(&[key(7, 0xab)])).contains("171"));
}

#[test]
fn a_record_out_of_order_with_duplicates_or_empty_fields_is_not_valid() {
    // Field: path, siblings (dot, stamp, value), absorb.
    type Sibling = (Dot, u64, &'static [u8]);
    type Field = (&'static str, Vec<Sibling>, Vec<Dot>);
    let sibling = |server_id| (dot(server_id, 1), 0, b"v".as_slice());
    let hostile: [Vec<Field>; 8] = [
        vec![("y", vec![sibling(1)], vec![]), ("x", vec![sibling(1)], vec![])],
        vec![("x", vec![sibling(1)], vec![]), ("x", vec![sibling(2)], vec![])],
        vec![("x", vec![], vec![])],
        vec![("x", vec![sibling(1)], vec![]), ("y", vec![], vec![])],
        vec![("x", vec![sibling(2), sibling(1)], vec![])],
        vec![("x", vec![sibling(1), sibling(1)], vec![])],
        vec![("x", vec![], vec![dot(2, 1), dot(1, 1)])],
        vec![("x", vec![], vec![dot(1, 1), dot(1, 1)])],
    ];
    for fields in &hostile {
        let record: Record = postcard::from_bytes(&written(fields)).expect("the shape is a record's");
        assert!(record.validate().is_err(), "{fields:?}");
    }
    let sound: Vec<Field> = vec![("x", vec![sibling(1), sibling(2)], vec![dot(3, 1)])];
    let record: Record = postcard::from_bytes(&written(&sound)).expect("the shape is a record's");
    assert_eq!(record.validate(), Ok(()));
}

#[test]
fn a_sibling_that_its_own_field_absorbs_is_not_valid() {
    let fields = vec![("x", vec![(dot(1, 1), 0_u64, b"v".as_slice())], vec![dot(1, 1)])];
    let record: Record = postcard::from_bytes(&written(&fields)).expect("the shape is a record's");
    assert!(record.validate().is_err(), "shown and superseded at once");
}

#[test]
fn a_length_that_claims_more_than_there_is_is_refused() {
    for claimed in [1, 1 << 20, 1 << 32, 1 << 60, u64::MAX] {
        let bytes = length(claimed);
        assert!(postcard::from_bytes::<AppliedSet>(&bytes).is_err());
        assert!(postcard::from_bytes::<Record>(&bytes).is_err());
        assert!(postcard::from_bytes::<CausalContext>(&bytes).is_err());
        assert!(postcard::from_bytes::<SealedContext>(&bytes).is_err());
        assert!(postcard::from_bytes::<FieldPath>(&bytes).is_err());
        assert_eq!(SessionToken::from_bytes(&[vec![1], bytes].concat()), Err(TokenError));
    }
}
