//! Which tokens of which sequences make up the next step.
//!
//! Decoding sequences come first, one token each, so that none waits longer than one step's budget for a
//! prompt. The rest of the budget goes to pieces of prompts, in order of priority and arrival, and then to
//! requests that wait. A request is admitted when the pages of all its known tokens are free; a decoding
//! sequence takes pages as it grows. When none are left, the sequence that is last in order is set back: its
//! pages go to the others, it waits at its old place, and all its tokens are computed again when there is
//! room, which gives the same bits because results do not depend on how a sequence is split into steps.
//!
//! This is bookkeeping alone: no model and no tokens.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use arges_model::LogitRows;

/// Order among requests, and their identity: higher priority first, then earlier arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rank {
    priority: Reverse<i32>,
    arrival: u64,
}

impl Rank {
    /// `arrival` must differ between requests.
    pub fn new(priority: i32, arrival: u64) -> Self {
        Self { priority: Reverse(priority), arrival }
    }
}

/// The caches, as far as the scheduler deals with them.
pub(crate) trait Room {
    /// A sequence of the caches.
    type Slot: Copy;
    /// Takes a slot for an empty sequence, if one is free.
    fn open(&mut self) -> Option<Self::Slot>;
    /// Sees that the sequence holds pages for `length` tokens. False, and nothing changed, if too few are
    /// free.
    fn reserve(&mut self, slot: Self::Slot, length: usize) -> bool;
    /// Frees the slot and its pages.
    fn close(&mut self, slot: Self::Slot);
    /// Pages not held by any sequence.
    fn free_pages(&self) -> usize;
    /// Pages that `length` tokens need.
    fn pages_for(&self, length: usize) -> usize;
}

/// How far a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Tokens to compute that are known.
    pub length: usize,
    /// Of these, tokens in the caches.
    pub computed: usize,
    /// Logits are needed of every token from here on; that of the last alone is `length - 1`.
    pub rows_from: usize,
}

impl Progress {
    fn pending(self) -> usize {
        self.length - self.computed
    }

    /// The next tokens to compute within the budget, and the logits to ask for. A piece with logits never
    /// starts before the first token that needs them, unless only its last does.
    fn next_piece(self, budget: Budget) -> Option<(Range<usize>, LogitRows)> {
        let start = self.computed;
        let mut end = self.length.min(start + budget.tokens);
        let mut rows = LogitRows::None;
        if start >= self.rows_from {
            end = end.min(start + budget.rows);
            rows = LogitRows::All;
        } else if end <= self.rows_from {
            // Nothing that needs logits is reached.
        } else if end == self.rows_from + 1 && end == self.length && budget.rows > 0 {
            rows = LogitRows::Last;
        } else {
            end = self.rows_from;
        }
        (end > start).then_some((start..end, rows))
    }
}

/// What one step may still take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub tokens: usize,
    /// Rows of logits.
    pub rows: usize,
}

impl Budget {
    fn take(&mut self, tokens: usize, rows: LogitRows) {
        self.tokens -= tokens;
        self.rows -= match rows {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => tokens,
        };
    }
}

/// Tokens of one sequence in a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece<S> {
    pub rank: Rank,
    pub slot: S,
    /// Positions in the sequence.
    pub tokens: Range<usize>,
    pub rows: LogitRows,
}

/// One step.
#[derive(Debug)]
pub(crate) struct Step<S> {
    pub pieces: Vec<Piece<S>>,
    /// Sequences set back to make room.
    pub preempted: Vec<Rank>,
    /// Requests that got room, for the first time or again.
    pub admitted: Vec<Rank>,
}

impl<S> Default for Step<S> {
    fn default() -> Self {
        Self { pieces: Vec::new(), preempted: Vec::new(), admitted: Vec::new() }
    }
}

#[derive(Debug)]
struct Running<S> {
    slot: S,
    progress: Progress,
}

/// The queue and the running sequences.
#[derive(Debug)]
pub(crate) struct Scheduler<S> {
    waiting: BTreeMap<Rank, Progress>,
    running: BTreeMap<Rank, Running<S>>,
    /// Working memory of [`Self::plan_decoding`].
    decoding: Vec<Rank>,
}

impl<S: Copy> Scheduler<S> {
    pub fn new() -> Self {
        Self { waiting: BTreeMap::new(), running: BTreeMap::new(), decoding: Vec::new() }
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Puts a request into the queue: `length` tokens to compute, logits needed from `rows_from` on.
    pub fn enqueue(&mut self, rank: Rank, length: usize, rows_from: usize) {
        self.waiting.insert(rank, Progress { length, computed: 0, rows_from });
    }

    /// The request that gets room next.
    pub fn first_waiting(&self) -> Option<Rank> {
        self.waiting.first_key_value().map(|(&rank, _)| rank)
    }

    /// Notes that `tokens` more of a running sequence are in the caches.
    pub fn advance(&mut self, rank: Rank, tokens: usize) {
        if let Some(running) = self.running.get_mut(&rank) {
            running.progress.computed += tokens;
        }
    }

    /// Notes that a running sequence has one more token, whose logits are needed.
    pub fn append(&mut self, rank: Rank) {
        if let Some(Running { progress, .. }) = self.running.get_mut(&rank) {
            progress.rows_from = progress.length;
            progress.length += 1;
        }
    }

    /// Notes that logits before `position` are not needed any more, should the sequence be computed again.
    pub fn skip_rows(&mut self, rank: Rank, position: usize) {
        if let Some(Running { progress, .. }) = self.running.get_mut(&rank) {
            progress.rows_from = progress.rows_from.max(position).min(progress.length - 1);
        }
    }

    /// Forgets a request and frees what it holds.
    pub fn remove(&mut self, rank: Rank, room: &mut impl Room<Slot = S>) {
        self.waiting.remove(&rank);
        if let Some(running) = self.running.remove(&rank) {
            room.close(running.slot);
        }
    }

    /// Plans the next step into `step`, replacing what it held.
    pub fn plan(&mut self, room: &mut impl Room<Slot = S>, mut budget: Budget, step: &mut Step<S>) {
        step.pieces.clear();
        step.preempted.clear();
        step.admitted.clear();
        self.plan_decoding(room, &mut budget, step);
        for (&rank, running) in &self.running {
            if running.progress.pending() > 1 {
                add_piece(rank, running, &mut budget, step);
            }
        }
        // Room that was just made belongs to those who needed it.
        if step.preempted.is_empty() {
            self.admit(room, &mut budget, step);
        }
    }

    fn plan_decoding(&mut self, room: &mut impl Room<Slot = S>, budget: &mut Budget, step: &mut Step<S>) {
        let mut decoding = std::mem::take(&mut self.decoding);
        decoding.clear();
        decoding
            .extend(self.running.iter().filter(|(_, r)| r.progress.pending() == 1).map(|(&rank, _)| rank));
        for &rank in &decoding {
            // One that was set back to make room for those before it is not there any more.
            while let Some(running) = self.running.get(&rank) {
                if room.reserve(running.slot, running.progress.length) {
                    add_piece(rank, running, budget, step);
                    break;
                }
                self.set_back_last(room, step);
            }
        }
        self.decoding = decoding;
    }

    /// Frees the pages of the running sequence that is last in order and lets it wait.
    fn set_back_last(&mut self, room: &mut impl Room<Slot = S>, step: &mut Step<S>) {
        if let Some((rank, running)) = self.running.pop_last() {
            room.close(running.slot);
            self.waiting.insert(rank, Progress { computed: 0, ..running.progress });
            step.preempted.push(rank);
        }
    }

    /// Frees all pages; every running sequence waits at its old place, to be computed anew.
    pub fn set_back_all(&mut self, room: &mut impl Room<Slot = S>) {
        for (rank, running) in std::mem::take(&mut self.running) {
            room.close(running.slot);
            self.waiting.insert(rank, Progress { computed: 0, ..running.progress });
        }
    }

    /// Notes that a waiting sequence needs logits from `position` on after all.
    pub fn need_rows_from(&mut self, rank: Rank, position: usize) {
        if let Some(progress) = self.waiting.get_mut(&rank) {
            progress.rows_from = position;
        }
    }

    fn admit(&mut self, room: &mut impl Room<Slot = S>, budget: &mut Budget, step: &mut Step<S>) {
        while budget.tokens > 0
            && budget.rows > 0
            && let Some((&rank, &progress)) = self.waiting.first_key_value()
        {
            // A page for each of the others to grow into, or the newcomer would soon be set back again.
            let needed = room.pages_for(progress.length) + self.running.len();
            if !self.running.is_empty() && needed > room.free_pages() {
                return;
            }
            let Some(slot) = room.open() else { return };
            if !room.reserve(slot, progress.length) {
                room.close(slot);
                return;
            }
            self.waiting.remove(&rank);
            let running = Running { slot, progress };
            add_piece(rank, &running, budget, step);
            step.admitted.push(rank);
            self.running.insert(rank, running);
        }
    }
}

fn add_piece<S: Copy>(rank: Rank, running: &Running<S>, budget: &mut Budget, step: &mut Step<S>) {
    if let Some((tokens, rows)) = running.progress.next_piece(*budget) {
        budget.take(tokens.len(), rows);
        step.pieces.push(Piece { rank, slot: running.slot, tokens, rows });
    }
}

#[cfg(test)]
mod tests;
