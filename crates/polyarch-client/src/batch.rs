use bytes::Bytes;
use polyarch_protocol::client::{Request, Response, Supersede, WriteChange, WriteRequest, Written};

use crate::client::Client;
use crate::error::Error;

/// Changes of several keys, in any keyspaces, that become visible together on every node. From [`Client::batch`].
///
/// A key may be changed once. Nothing is sent before [`Batch::commit`].
#[derive(Debug, Clone)]
#[must_use = "nothing is written before `commit`"]
pub struct Batch {
    client: Client,
    write: WriteRequest,
}

impl Batch {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, write: WriteRequest::default() }
    }

    /// Puts a value in place of all that the node holds of the key.
    pub fn put(self, keyspace: &str, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.put_with(keyspace, key, value, Supersede::Held)
    }

    /// Puts a value in place of what is named.
    pub fn put_with(
        self,
        keyspace: &str,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        supersede: Supersede,
    ) -> Self {
        self.change(change(keyspace, key.as_ref(), Some(value.into()), supersede))
    }

    /// Deletes all that the node holds of the key.
    pub fn delete(self, keyspace: &str, key: impl AsRef<[u8]>) -> Self {
        self.delete_with(keyspace, key, Supersede::Held)
    }

    /// Deletes what is named.
    pub fn delete_with(self, keyspace: &str, key: impl AsRef<[u8]>, supersede: Supersede) -> Self {
        self.change(change(keyspace, key.as_ref(), None, supersede))
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.write.changes.len()
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.write.changes.is_empty()
    }

    /// Writes all changes at once, or none.
    ///
    /// # Errors
    /// As [`Client::put`]; besides, the node bounds number and bytes of a batch's changes, and refuses two of one key.
    pub async fn commit(self) -> Result<Written, Error> {
        self.client.call(Request::Write(self.write), written).await
    }

    fn change(mut self, change: WriteChange) -> Self {
        self.write.changes.push(change);
        self
    }
}

pub(crate) fn change(keyspace: &str, key: &[u8], put: Option<Bytes>, supersede: Supersede) -> WriteChange {
    WriteChange { keyspace: keyspace.to_owned(), key: Bytes::copy_from_slice(key), put, supersede }
}

pub(crate) fn written(response: Response) -> Option<Written> {
    match response {
        Response::Written(written) => Some(written),
        _ => None,
    }
}
