use std::collections::VecDeque;

use bytes::Bytes;
use polyarch_protocol::client::{RecordView, Request, Response, ScanRequest};

use crate::client::Client;
use crate::error::Error;
use crate::record::Record;

/// Records asked for in one page unless told otherwise.
const PAGE_RECORDS: u32 = 1_000;

/// The keys of a keyspace that begin with a prefix, in order, page by page. From [`Client::scan`].
///
/// Each page is as its node has it when it is asked; together they are no snapshot of one moment. A key that is there
/// throughout is shown once; one written or deleted meanwhile may be shown or not. In a session no page is older than what
/// the session has seen.
///
/// A page that failed can be asked for again: the scan stays where it was.
#[derive(Debug)]
#[must_use = "nothing is read before a page is asked for"]
pub struct Scan {
    client: Client,
    request: ScanRequest,
    /// Of the current page, for [`Scan::next`].
    rest: VecDeque<(Bytes, Record)>,
    is_done: bool,
}

/// Some records of a scan, in order of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys with their records. May be empty although more follow.
    pub records: Vec<(Bytes, Record)>,
    /// Where to go on after this page, in this scan or with [`Scan::after`] in another; `None` at the end.
    pub next: Option<Bytes>,
}

impl Scan {
    pub(crate) fn new(client: Client, keyspace: &str, prefix: &[u8]) -> Self {
        Self {
            client,
            request: ScanRequest {
                keyspace: keyspace.to_owned(),
                prefix: Bytes::copy_from_slice(prefix),
                after: None,
                limit: PAGE_RECORDS,
            },
            rest: VecDeque::new(),
            is_done: false,
        }
    }

    /// Only keys behind this one.
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.request.after = Some(Bytes::copy_from_slice(key.as_ref()));
        self
    }

    /// At most so many records in a page, at least 1. Default 1,000. A node may send fewer, by number or by bytes.
    pub fn page_records(mut self, records_max: u32) -> Self {
        self.request.limit = records_max.max(1);
        self
    }

    /// The next page, or `None` after the last.
    ///
    /// # Errors
    /// As [`Client::get`]. The scan stays where it was, so it can be called again.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if !self.rest.is_empty() {
            // Left over by `next`; where to go on is behind them.
            let records = self.rest.drain(..).collect();
            let next = (!self.is_done).then(|| self.request.after.clone()).flatten();
            return Ok(Some(Page { records, next }));
        }
        if self.is_done {
            return Ok(None);
        }
        let page = self.client.call(Request::Scan(self.request.clone()), page).await?;
        match &page.next {
            Some(next) => self.request.after = Some(next.clone()),
            None => self.is_done = true,
        }
        Ok(Some(page))
    }

    /// The next record, or `None` after the last. Asks for a page when it has to.
    ///
    /// # Errors
    /// As [`Scan::next_page`].
    pub async fn next(&mut self) -> Result<Option<(Bytes, Record)>, Error> {
        loop {
            if let Some(record) = self.rest.pop_front() {
                return Ok(Some(record));
            }
            match self.next_page().await? {
                Some(page) => self.rest = page.records.into(),
                None => return Ok(None),
            }
        }
    }
}

fn page(response: Response) -> Option<Page> {
    match response {
        Response::Page { records, next, .. } => {
            Some(Page { records: records.into_iter().filter_map(shown).collect(), next })
        }
        _ => None,
    }
}

fn shown((key, view): (Bytes, RecordView)) -> Option<(Bytes, Record)> {
    Record::of(view).map(|record| (key, record))
}
