//! Clients, and how a node serves them: the read path of the real node, and what clients remember.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, CausalContext, Dot, FieldPath, SealedContext, SessionToken, lww, mv, seeded_bug};
use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_protocol::client::{
    ClientRequest, ClientResponse, RecordView, Refusal, Request, Response, SiblingView, Supersede, WriteChange,
    WriteRequest,
};
use polyarch_protocol::{Input, RecordKey, RequestTag, context_scope};

use super::{CLUSTER, Event, Phase, World};
use crate::history::{IntendedChange, Intent, Replaces};
use crate::invariants::{
    Checked, Violation, context_matches_values, lww_winner_is_greatest, nothing_leaves_before_durable,
    register_shows_unsuperseded, session_never_goes_back,
};
use crate::node::WaitingRequest;
use crate::registers::{Seen, Shown};
use crate::rng::Rng;
use crate::scenario::{Action, Choice};

/// Contexts that a client, and the world, remember of a key.
const REMEMBERED_MAX: usize = 12;
/// When a client gives up on a request.
const PATIENCE_US: u64 = 4_000_000;

/// What a read had shown.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    /// The context as the client holds it.
    pub(super) sealed: SealedContext,
    /// The writes it saw.
    pub(super) dots: Vec<Dot>,
}

/// A session with the cluster.
pub(super) struct Client {
    rng: Rng,
    pub(super) home: usize,
    values: u64,
    shown: BTreeMap<RecordKey, VecDeque<Remembered>>,
    token: AppliedSet,
    seen: Seen,
    pending: BTreeMap<u64, Pending>,
    /// The last answer, for a script to look at.
    pub(super) answered: Option<Result<Response, Refusal>>,
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    at: usize,
    /// What the session had seen when it sent it, if it said so.
    seen: Option<Seen>,
    key: RecordKey,
    kind: KeyspaceKind,
    intent: Option<Intent>,
}

impl Client {
    pub(super) fn new(home: usize, rng: Rng) -> Self {
        Self {
            rng,
            home,
            values: 0,
            shown: BTreeMap::new(),
            token: AppliedSet::new(),
            seen: Seen::default(),
            pending: BTreeMap::new(),
            answered: None,
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    fn forget_session(&mut self) {
        self.token = AppliedSet::new();
        self.seen = Seen::default();
    }

    fn remember(&mut self, key: &RecordKey, remembered: Remembered) {
        let shown = self.shown.entry(key.clone()).or_default();
        shown.push_back(remembered);
        if shown.len() > REMEMBERED_MAX {
            shown.pop_front();
        }
    }
}

impl World {
    pub(super) fn client_steps(&mut self, client: usize) -> Checked {
        if self.phase != Phase::Safety {
            return Ok(());
        }
        let delay_us = match self.rng.chance(self.scenario.burst_permille) {
            true => self.rng.below(300),
            false => self.between(self.scenario.think_us),
        };
        self.after(delay_us, Event::Step { client });
        // What it does is drawn for this step, whatever it did before.
        self.clients[client].rng = self.rng.fork();
        let is_due = self.clients[client].pending.len() < self.scenario.pipeline;
        if is_due && self.case.keeps_step(self.step_of(client)) {
            self.client_asks(client);
        }
        Ok(())
    }

    /// What a client was shown of a key last.
    pub(super) fn last_shown(&self, client: usize, key: &RecordKey) -> Option<&Remembered> {
        self.clients[client].shown.get(key).and_then(VecDeque::back)
    }

    fn client_asks(&mut self, client: usize) {
        let action = self.clients[client].rng.weighted(&self.scenario.actions);
        if self.clients[client].rng.chance(self.scenario.switch_permille) {
            self.clients[client].home = self.clients[client].rng.index(self.scenario.nodes);
        }
        let (changes, intent) = match action {
            Action::Get => (Vec::new(), None),
            Action::Put => self.draw_changes(client, 1, 0),
            Action::Delete => self.draw_changes(client, 1, 1_000),
            Action::Batch => {
                let len = self.clients[client].rng.between((2, 4)) as usize;
                self.draw_changes(client, len, 200)
            }
        };
        let (name, kind, key) = match &intent {
            None => self.draw_key(client),
            Some(_) => ("", KeyspaceKind::Mv, self.draw_key(client).2),
        };
        let request = match intent {
            None => Request::Get { keyspace: name.to_owned(), key: key.key_bytes() },
            Some(_) => Request::Write(WriteRequest { changes }),
        };
        self.send_request(client, request, key, kind, intent);
    }

    pub(super) fn send_request(
        &mut self,
        client: usize,
        request: Request,
        key: RecordKey,
        kind: KeyspaceKind,
        intent: Option<Intent>,
    ) {
        self.note_asked(client, &request);
        self.requests_made += 1;
        let id = self.requests_made;
        let session = &mut self.clients[client];
        let with_token = session.rng.chance(self.scenario.token_permille);
        let token = SessionToken { seen: session.token.clone() };
        let wait_ms = session.rng.weighted(&[(0, 1), (100, 2), (2_000, 3)]);
        let frame = ClientRequest { id, wait_ms, token: with_token.then(|| token.to_bytes().into()), request };
        let home = session.home;
        let at = self.one_of_twins(home);
        let session = &mut self.clients[client];
        let pending = Pending { at, seen: with_token.then(|| session.seen.clone()), key, kind, intent };
        session.pending.insert(id, pending);
        let is_lost = session.rng.chance(self.scenario.lost_permille);
        self.after(PATIENCE_US, Event::GiveUp { client, request: id });
        if !is_lost {
            let delay_us = self.between(self.scenario.delay_us);
            let frame = frame.encode().into();
            self.after(delay_us, Event::Request { at, client, request: id, frame });
        }
    }

    fn draw_key(&mut self, client: usize) -> (&'static str, KeyspaceKind, RecordKey) {
        let rng = &mut self.clients[client].rng;
        let keyspace = &self.keyspaces[rng.index(self.keyspaces.len())];
        let key = format!("k{}", rng.index(self.scenario.keys));
        (keyspace.name, keyspace.kind, RecordKey::new(keyspace.id, key.as_bytes()))
    }

    fn draw_changes(&mut self, client: usize, len: usize, delete_permille: u64) -> (Vec<WriteChange>, Option<Intent>) {
        let (mut changes, mut intended) = (Vec::new(), Vec::<IntendedChange>::new());
        for _ in 0..len {
            let (name, kind, key) = self.draw_key(client);
            if intended.iter().any(|other| other.key == key) {
                continue;
            }
            let (supersede, replaces) = self.draw_supersede(client, &key);
            let session = &mut self.clients[client];
            let put = (!session.rng.chance(delete_permille)).then(|| {
                session.values += 1;
                Bytes::from(format!("c{client}-{}", session.values))
            });
            changes.push(WriteChange { keyspace: name.to_owned(), key: key.key_bytes(), put: put.clone(), supersede });
            intended.push(IntendedChange { key, kind, put, replaces });
        }
        (changes, Some(Intent { changes: intended }))
    }

    fn draw_supersede(&mut self, client: usize, key: &RecordKey) -> (Supersede, Replaces) {
        let Client { rng, shown, .. } = &mut self.clients[client];
        let own = shown.get(key);
        let remembered = match rng.weighted(&self.scenario.choices) {
            Choice::Nothing => return (Supersede::Nothing, Replaces::Nothing),
            Choice::Held => None,
            Choice::Fresh => own.and_then(VecDeque::back),
            Choice::Stale => own.and_then(|shown| shown.get(rng.index(shown.len()))),
            Choice::Foreign => self.contexts.get(key).and_then(|shown| rng.pick(shown)),
        };
        match remembered {
            Some(remembered) => (Supersede::Shown(remembered.sealed.clone()), Replaces::Shown(remembered.dots.clone())),
            None => (Supersede::Held, Replaces::Held),
        }
    }

    pub(super) fn request_arrives(&mut self, at: usize, client: usize, request: u64, frame: Bytes) -> Checked {
        if self.nodes[at].process.is_none() {
            return Ok(());
        }
        if self.nodes[at].paused_until_us > self.now_us {
            let left_us = self.nodes[at].paused_until_us - self.now_us;
            self.after(left_us, Event::Request { at, client, request, frame });
            return Ok(());
        }
        let decoded =
            ClientRequest::decode(&frame).map_err(|error| Violation::new("messages_decode", error.to_string()))?;
        let intent = self.clients[client].pending.get(&request).and_then(|pending| pending.intent.clone());
        let waiting = WaitingRequest {
            tag: RequestTag { connection: client as u64, request },
            frame,
            deadline_us: self.now_us + u64::from(decoded.wait_ms) * 1_000,
            intent,
        };
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        process.waiting.push(waiting);
        self.serve_waiting(at)
    }

    /// Serves the requests that need wait no longer.
    pub(super) fn serve_waiting(&mut self, at: usize) -> Checked {
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        for waiting in std::mem::take(&mut process.waiting) {
            self.serve(at, waiting)?;
        }
        Ok(())
    }

    fn serve(&mut self, at: usize, waiting: WaitingRequest) -> Checked {
        let decoded = ClientRequest::decode(&waiting.frame)
            .map_err(|error| Violation::new("messages_decode", error.to_string()))?;
        let token = decoded.token.as_deref().map(SessionToken::from_bytes).transpose();
        let token = token.map_err(|error| Violation::new("messages_decode", error.to_string()))?.unwrap_or_default();
        let tag = waiting.tag;
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        if !process.published.includes_all(&token.seen) && !seeded_bug("token-not-waited-for") {
            if self.now_us < waiting.deadline_us {
                process.waiting.push(waiting);
                return Ok(());
            }
            let missing = token.seen.since(&process.published).to_string();
            let result = Err(Refusal::Behind { missing });
            self.answer(tag, &ClientResponse { id: tag.request, result });
            return Ok(());
        }
        self.check_session(at, tag)?;
        match decoded.request {
            Request::Write(write) => self.push_input(at, Input::Write(tag, write), waiting.intent),
            Request::Get { keyspace, key } => {
                let result = self.read(at, tag, &keyspace, &key)?;
                self.answer(tag, &ClientResponse { id: tag.request, result });
            }
            _ => {}
        }
        Ok(())
    }

    fn check_session(&self, at: usize, tag: RequestTag) -> Checked {
        let pending = self.clients[tag.connection as usize].pending.get(&tag.request);
        match pending.and_then(|pending| pending.seen.as_ref()) {
            Some(seen) => {
                session_never_goes_back::check(self.nodes[at].server_id, seen, self.history.node(at).published().seen())
            }
            None => Ok(()),
        }
    }

    /// Reads what is published, as the real node does.
    fn read(
        &mut self,
        at: usize,
        tag: RequestTag,
        keyspace: &str,
        key: &[u8],
    ) -> Result<Result<Response, Refusal>, Violation> {
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(Err(Refusal::Stopping)) };
        let catalog = process.catalog.clone();
        let Some((id, definition)) = catalog.keyspace(keyspace) else {
            return Ok(Err(Refusal::UnknownKeyspace(keyspace.to_owned())));
        };
        let kind = definition.kind;
        let record_key = RecordKey::new(id, key);
        let record = process.reader.get(&record_key);
        let record = record.map_err(|error| Violation::new(register_shows_unsuperseded::NAME, error.to_string()))?;
        let siblings = record.siblings(&FieldPath::opaque());
        let shown = match kind {
            KeyspaceKind::Lww => lww(siblings).map(std::slice::from_ref).unwrap_or_default(),
            KeyspaceKind::Mv => mv(siblings),
        };
        let shown = shown.iter().map(|sibling| SiblingView {
            dot: sibling.dot,
            hlc: sibling.hlc,
            value: sibling.value.clone(),
        });
        let mut context = CausalContext::of(&record);
        if seeded_bug("context-apart-from-values") {
            use polyarch_protocol::Storage;
            // Looked up in a second step, in another place.
            if let Ok(record) = process.replica.storage_mut().record(&record_key) {
                context = CausalContext::of(&record);
            }
        }
        let cluster_id = CLUSTER.to_bytes();
        let scope = context_scope(&cluster_id, &record_key);
        let response = Response::Record {
            record: RecordView {
                siblings: shown.collect(),
                context: catalog.cluster_keys().sealing().map(|key| context.seal(key, &scope)),
            },
            token: SessionToken { seen: process.published.clone() }.to_bytes().into(),
        };
        self.check_read(at, tag, &record_key, kind, &response)?;
        Ok(Ok(response))
    }

    fn check_read(
        &self,
        at: usize,
        _tag: RequestTag,
        key: &RecordKey,
        kind: KeyspaceKind,
        response: &Response,
    ) -> Checked {
        let Response::Record { record, .. } = response else { return Ok(()) };
        let server_id = self.nodes[at].server_id;
        let published = self.history.node(at).published();
        let live = published.live(key);
        for sibling in &record.siblings {
            self.history.graves.check(server_id, published.seen(), key, sibling.dot)?;
        }
        match kind {
            KeyspaceKind::Lww => lww_winner_is_greatest::check(server_id, &record.siblings, &live)?,
            KeyspaceKind::Mv => {
                let siblings = record.siblings.iter().map(|sibling| Shown {
                    dot: sibling.dot,
                    hlc: sibling.hlc,
                    value: sibling.value.clone(),
                });
                let shown: Vec<Shown> = siblings.collect();
                register_shows_unsuperseded::check(server_id, "read", key, &shown, &live)?;
            }
        }
        if let Some(sealed) = &record.context {
            let named = self.open_context(key, sealed)?;
            context_matches_values::check(server_id, &named, &published.live_dots(key))?;
        }
        Ok(())
    }

    /// The dots of a sealed context, which a client cannot see.
    fn open_context(&self, key: &RecordKey, sealed: &SealedContext) -> Result<Vec<Dot>, Violation> {
        let mut keys = polyarch_crdt::ClusterKeys::default();
        keys.insert(self.cluster_key.clone());
        let cluster_id = CLUSTER.to_bytes();
        let opened = sealed.open(&keys, &context_scope(&cluster_id, key), usize::MAX);
        let opened = opened.map_err(|error| Violation::new(context_matches_values::NAME, error.to_string()))?;
        Ok(opened.dots(&FieldPath::opaque()).to_vec())
    }

    /// Sends an answer on its way.
    pub(super) fn answer(&mut self, tag: RequestTag, response: &ClientResponse) {
        let client = tag.connection as usize;
        if self.rng.chance(self.scenario.lost_permille) {
            return;
        }
        let delay_us = self.between(self.scenario.delay_us);
        let frame = response.encode().into();
        self.after(delay_us, Event::Answer { client, request: tag.request, frame });
    }

    pub(super) fn answer_arrives(&mut self, client: usize, request: u64, frame: &Bytes) -> Checked {
        let response =
            ClientResponse::decode(frame).map_err(|error| Violation::new("messages_decode", error.to_string()))?;
        let Some(pending) = self.clients[client].pending.remove(&request) else { return Ok(()) };
        let server_id = self.nodes[pending.at].server_id;
        self.report.operations += 1;
        if self.phase == Phase::Scripted {
            self.clients[client].answered = Some(response.result.clone());
        }
        match response.result {
            Ok(Response::Written(written)) => {
                self.take_token(client, &written.token)?;
                if let Some(dot) = written.dot {
                    self.history.acked(dot);
                    self.trace.note(
                        self.now_us,
                        format_args!("client {client} is told by node {server_id} that {dot} is written"),
                    );
                }
            }
            Ok(Response::Record { record, token }) => {
                self.take_token(client, &token)?;
                self.note_read(client, server_id, &pending, &record);
                if let Some(sealed) = record.context {
                    let dots = match pending.kind {
                        KeyspaceKind::Mv => record.siblings.iter().map(|sibling| sibling.dot).collect(),
                        // Of an `lww` record the client sees the winner, and its context names all.
                        KeyspaceKind::Lww => self.open_context(&pending.key, &sealed)?,
                    };
                    self.remember(client, &pending.key, Remembered { sealed, dots });
                }
            }
            Ok(_) => {}
            Err(refusal) => {
                self.trace.note(self.now_us, format_args!("client {client} is refused by node {server_id}: {refusal}"));
                let is_lost = matches!(refusal, Refusal::Behind { .. }) && self.clients[client].rng.chance(300);
                if is_lost {
                    self.clients[client].forget_session();
                }
            }
        }
        Ok(())
    }

    fn note_read(&mut self, client: usize, server_id: u32, pending: &Pending, record: &RecordView) {
        let values: Vec<_> = record.siblings.iter().map(|s| (s.dot, String::from_utf8_lossy(&s.value))).collect();
        self.trace.note(
            self.now_us,
            format_args!("client {client} is shown by node {server_id}: {:?} = {values:?}", pending.key),
        );
    }

    fn remember(&mut self, client: usize, key: &RecordKey, remembered: Remembered) {
        let everyones = self.contexts.entry(key.clone()).or_default();
        if everyones.len() >= REMEMBERED_MAX {
            everyones.remove(0);
        }
        everyones.push(remembered.clone());
        self.clients[client].remember(key, remembered);
    }

    /// What a node says the session has now seen, some node must have synced.
    fn take_token(&mut self, client: usize, token: &[u8]) -> Checked {
        let token =
            SessionToken::from_bytes(token).map_err(|error| Violation::new("messages_decode", error.to_string()))?;
        let seen = Seen::from(&token.seen);
        if seen == Seen::default() {
            return Err(Violation::new(nothing_leaves_before_durable::NAME, "a token names nothing"));
        }
        let session = &mut self.clients[client];
        session.token.join(&token.seen);
        session.seen.join(&seen);
        Ok(())
    }

    pub(super) fn give_up(&mut self, client: usize, request: u64) -> Checked {
        self.clients[client].pending.remove(&request);
        Ok(())
    }
}
