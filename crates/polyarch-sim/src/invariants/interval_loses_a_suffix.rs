//! With `durability = "interval"` a crash takes back acknowledged writes, and these alone: writes of
//! the process that ended, made since its last sync, the last ones without a gap, which no other node
//! has or ever gets.
//!
//! That each goes whole, or stays whole, is seen by `register_shows_unsuperseded` on what is left; that
//! nobody hears of them, by `nothing_leaves_before_durable`. Without the acks the same holds of nodes
//! that sync first.
//!
//! Source: the prefix that asynchronous commit keeps (PostgreSQL's `synchronous_commit = off`: a crash
//! loses the last transactions, and the rest is as if they had been aborted).

use polyarch_crdt::Dot;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "interval_loses_a_suffix";

/// After a recovery: which of `own`, all that the process before wrote, in order, were lost.
///
/// # Errors
/// When one is lost from between others, after it was synced, or while another node has it.
pub fn check<'a, 'b>(
    server_id: u32,
    own: &'a [Dot],
    synced: &Seen,
    recovered: &Seen,
    others: impl IntoIterator<Item = &'b Seen>,
) -> Result<&'a [Dot], Violation> {
    let kept = own.iter().take_while(|dot| recovered.includes(**dot)).count();
    let lost = &own[kept..];
    let violation = |dot: &Dot, what: &str| Violation::new(NAME, format!("node {server_id} lost {dot}, {what}"));
    if let Some(later) = lost.iter().find(|dot| recovered.includes(**dot)) {
        return Err(violation(&lost[0], &format!("and has {later}, which it wrote later")));
    }
    if let Some(dot) = lost.iter().find(|dot| synced.includes(**dot)) {
        return Err(violation(dot, "which it had synced"));
    }
    for other in others {
        if let Some(dot) = lost.iter().find(|dot| other.includes(**dot)) {
            return Err(violation(dot, "which another node has"));
        }
    }
    Ok(lost)
}

/// In the end: nobody has what was lost.
pub fn check_gone<'a>(server_id: u32, applied: &Seen, lost: impl IntoIterator<Item = &'a Dot>) -> Checked {
    match lost.into_iter().find(|dot| applied.includes(**dot)) {
        None => Ok(()),
        Some(dot) => Err(Violation::new(NAME, format!("{dot} was lost in a crash, and node {server_id} has it"))),
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::Origin;

    use super::*;

    fn dots(seqs: std::ops::RangeInclusive<u64>) -> Vec<Dot> {
        seqs.map(|seq| Dot::new(Origin::new(1, 7), seq)).collect()
    }

    fn seen(seq: u64) -> Seen {
        let mut seen = Seen::default();
        dots(1..=seq).into_iter().for_each(|dot| seen.add(dot));
        seen
    }

    #[test]
    fn the_last_unsynced_writes_may_go() {
        let own = dots(1..=5);
        assert_eq!(check(1, &own, &seen(2), &seen(3), [&seen(2)]), Ok(&own[3..]));
        assert_eq!(check(1, &own, &seen(5), &seen(5), []), Ok(&own[5..]));
    }

    #[test]
    fn what_was_synced_or_sent_may_not_go() {
        let own = dots(1..=5);
        assert!(check(1, &own, &seen(4), &seen(3), []).is_err());
        assert!(check(1, &own, &seen(2), &seen(3), [&seen(4)]).is_err());
        assert!(check_gone(2, &seen(4), &dots(4..=5)).is_err());
        assert_eq!(check_gone(2, &seen(3), &dots(4..=5)), Ok(()));
    }

    #[test]
    fn nothing_may_go_from_between_others() {
        let own = [dots(2..=2), dots(1..=1)].concat();
        assert!(check(1, &own, &seen(0), &seen(1), []).is_err());
    }
}
