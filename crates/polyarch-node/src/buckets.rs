//! Reading the records of some buckets of the digest.
//!
//! Nothing lists records by bucket, so all are read: about a second for each 500,000. What is said of
//! them is bounded, and nobody waits for it but who asked.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use polyarch_protocol::client::{BucketPage, BucketScan, RecordOutline, Refusal};
use polyarch_protocol::limits::wire;
use polyarch_protocol::{BucketKeys, BucketReader, BucketsWanted, DIGEST_BUCKETS, Digest, RecordKey};
use polyarch_store::state::{ScanRange, StateError};
use tracing::warn;

use crate::view::View;

/// Records that are read at a time.
const PAGE_RECORDS: usize = 1_024;
/// Bytes after which a page for a client ends.
const PAGE_BYTES: usize = 1 << 20;
/// About what a sibling takes in a page, with its field.
const SIBLING_BYTES: usize = 48;
/// Siblings of one record that fit a frame.
const SIBLINGS_MAX: usize = wire::FRAME_BYTES_MAX / (2 * SIBLING_BYTES);

/// The keys of some buckets as they are under one applied-set; `None` when more was applied meanwhile,
/// a record cannot be read, or it is told to stop.
pub(crate) fn keys_of(view: &View, wanted: BucketsWanted, stop: &AtomicBool) -> Option<BucketKeys> {
    let mut reader = BucketReader::new(wanted);
    let mut range = ScanRange::everything();
    while !stop.load(Ordering::Relaxed) {
        // Records are published together with their applied-set: equal before and after, they were of it.
        let page = is_of(view, &reader).then(|| view.records.scan(&range, PAGE_RECORDS))?;
        let page = page.inspect_err(|error| warn!(%error, "records cannot be compared with a member's")).ok()?;
        let has_room = page.iter().all(|(key, record)| reader.take(key, record));
        match page.into_iter().last() {
            Some((last, _)) if has_room => range = range.after(last),
            _ => return is_of(view, &reader).then(|| reader.finish()),
        }
    }
    None
}

fn is_of(view: &View, reader: &BucketReader) -> bool {
    *view.published().applied == *reader.applied()
}

/// A page of a client's scan.
///
/// # Errors
/// When a record cannot be read, or is too long for an answer.
pub(crate) fn page(view: &View, scan: &BucketScan) -> Result<BucketPage, Refusal> {
    let limit = (scan.limit as usize).clamp(1, wire::OUTLINES_MAX);
    let found = view.records.scan(&range_of(scan)?, limit);
    let found = found.map_err(|error: StateError| Refusal::Unreadable(error.to_string()))?;
    // After the records, so that the token includes them.
    let token = view.published().token;
    let is_last = found.len() < limit;
    let wanted = Wanted::of(&scan.buckets);
    let (mut page, mut bytes) = (BucketPage { token, ..BucketPage::default() }, 0);
    for (key, record) in found {
        if bytes >= PAGE_BYTES {
            page.next = Some(Bytes::copy_from_slice(key.as_bytes()));
            return Ok(page);
        }
        page.examined += 1;
        page.next = (!is_last).then(|| behind(&key));
        if !wanted.has(Digest::bucket_of(&key)) || record.is_deleted() {
            continue;
        }
        let outline = RecordOutline::of(key, &record);
        let len = outline.siblings.len();
        if len > SIBLINGS_MAX {
            return Err(Refusal::TooManySiblings { siblings: len as u64, max: SIBLINGS_MAX as u64 });
        }
        let fields: usize = outline.siblings.iter().map(|s| SIBLING_BYTES + s.field.as_str().len()).sum();
        bytes += outline.key.as_bytes().len() + fields;
        page.records.push(outline);
    }
    Ok(page)
}

fn range_of(scan: &BucketScan) -> Result<ScanRange, Refusal> {
    match scan.from.is_empty() {
        true => Ok(ScanRange::everything()),
        false => RecordKey::from_bytes(scan.from.clone())
            .map(|from| ScanRange::everything().from(from))
            .ok_or_else(|| Refusal::Malformed("a scan of buckets begins with a record's whole key".to_owned())),
    }
}

/// The first place behind a key.
fn behind(key: &RecordKey) -> Bytes {
    let mut bytes = BytesMut::with_capacity(key.as_bytes().len() + 1);
    bytes.extend_from_slice(key.as_bytes());
    bytes.put_u8(0);
    bytes.freeze()
}

/// Which buckets are wanted; all, if none is named.
struct Wanted(Option<Vec<bool>>);

impl Wanted {
    fn of(buckets: &[u16]) -> Self {
        Self((!buckets.is_empty()).then(|| {
            let mut is_wanted = vec![false; DIGEST_BUCKETS];
            let known = buckets.iter().map(|bucket| usize::from(*bucket)).filter(|bucket| *bucket < DIGEST_BUCKETS);
            known.for_each(|bucket| is_wanted[bucket] = true);
            is_wanted
        }))
    }

    fn has(&self, bucket: usize) -> bool {
        self.0.as_ref().is_none_or(|is_wanted| is_wanted[bucket])
    }
}
