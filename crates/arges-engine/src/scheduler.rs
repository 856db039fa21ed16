//! Which tokens of which sequences make up the next step.
//!
//! Decoding sequences come first, one token each, so that none waits longer than one step's budget for a
//! prompt. The rest of the budget goes to pieces of prompts, those of the highest priority first. Among equals, half is
//! for the one that came first, which therefore takes no longer than twice its time alone, and half for the others, the
//! shortest first, which therefore do not wait for a long one. A request is admitted when the pages of all its known
//! tokens are free; a decoding sequence takes pages as it grows. When none are left, the sequence that is last in order is set back: its
//! pages go to the others, it waits at its old place, and all its tokens are computed again when there is
//! room, which gives the same bits because results do not depend on how a sequence is split into steps.
//!
//! A request may begin with what the caches hold of others. One that begins like a prompt which is being computed waits
//! for that part of it, rather than computing the same tokens beside it.
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

/// A sequence that was given room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened<S> {
    pub slot: S,
    /// Tokens that it need not compute.
    pub computed: usize,
    /// Where a piece has to end, so that its state can be kept.
    pub stop: Option<usize>,
}

/// The caches, as far as the scheduler deals with them.
pub(crate) trait Room {
    /// A sequence of the caches.
    type Slot: Copy;
    /// Takes a slot and pages for all known tokens of a sequence, if they are free. No token that needs logits is
    /// taken for computed.
    fn open(&mut self, rank: Rank, progress: Progress) -> Option<Opened<Self::Slot>>;
    /// Sees that the sequence holds pages for `length` tokens. False, and nothing changed, if too few are
    /// free.
    fn reserve(&mut self, slot: Self::Slot, length: usize) -> bool;
    /// Frees the slot and its pages.
    fn close(&mut self, rank: Rank, slot: Self::Slot);
    /// Pages not held by any sequence.
    fn free_pages(&self) -> usize;
    /// Pages that `length` tokens need.
    fn pages_for(&self, length: usize) -> usize;
    /// Of the pages that a request needs, those that it would share with running sequences.
    fn pages_in_use(&self, rank: Rank, progress: Progress) -> usize;
    /// Tokens with which both begin and that could be shared.
    fn common(&self, rank: Rank, other: Rank) -> usize;
    /// `length`, without those of a page that is not full.
    fn whole_pages(&self, length: usize) -> usize;
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

    /// Tokens to compute before `stop`, if that is ahead.
    fn until(self, stop: Option<usize>) -> usize {
        let stop = stop.filter(|&stop| self.computed < stop).unwrap_or(self.length);
        stop.min(self.length) - self.computed
    }

    /// The next tokens to compute within the budget, and the logits to ask for. A piece with logits never
    /// starts before the first token that needs them, unless only its last does.
    fn next_piece(self, budget: Budget, stop: Option<usize>) -> Option<(Range<usize>, LogitRows)> {
        let start = self.computed;
        let mut end = self.length.min(start + budget.tokens);
        end = end.min(start + self.until(stop));
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
    /// Work of prompts, in tokens without context.
    pub work: f64,
    /// Context at which a token is twice the work of one without.
    pub parity: f64,
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
    /// Of the tokens, the last ones that are guessed.
    pub drafts: usize,
    /// Whether it ends where others go on.
    pub branches: bool,
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
    stop: Option<usize>,
    /// Guesses that it would try in the next step.
    drafts: usize,
}

/// Tokens in common from which on a request waits for another to compute them.
const WORTH_WAITING_FOR: usize = 256;
/// Requests that are looked at in the queue, should those before them wait for others.
const LOOK_AHEAD: usize = 64;

/// The queue and the running sequences.
#[derive(Debug)]
pub(crate) struct Scheduler<S> {
    waiting: BTreeMap<Rank, Progress>,
    running: BTreeMap<Rank, Running<S>>,
    /// Working memory of [`Self::plan_decoding`].
    decoding: Vec<Rank>,
    /// Working memory of [`Self::plan_prompts`].
    prompts: Vec<Prompt>,
}

impl<S: Copy> Scheduler<S> {
    pub fn new() -> Self {
        Self { waiting: BTreeMap::new(), running: BTreeMap::new(), decoding: Vec::new(), prompts: Vec::new() }
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

    /// Running sequences whose next step gives a token of the answer, with their known tokens.
    pub fn decoding(&self) -> impl Iterator<Item = (Rank, usize)> {
        let decodes =
            |progress: &Progress| progress.pending() == 1 && progress.rows_from == progress.computed;
        let all = self.running.iter().map(|(&rank, running)| (rank, running.progress));
        all.filter(move |(_, progress)| decodes(progress)).map(|(rank, progress)| (rank, progress.length))
    }

    /// Notes guesses that a decoding sequence would try in the next step.
    pub fn propose(&mut self, rank: Rank, drafts: usize) {
        if let Some(running) = self.running.get_mut(&rank) {
            running.drafts = drafts;
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
            room.close(rank, running.slot);
        }
    }

    /// Tokens of a running sequence that are in the caches.
    pub fn computed(&self, rank: Rank) -> Option<usize> {
        self.running.get(&rank).map(|running| running.progress.computed)
    }

    /// Plans the next step into `step`, replacing what it held.
    pub fn plan(&mut self, room: &mut impl Room<Slot = S>, mut budget: Budget, step: &mut Step<S>) {
        step.pieces.clear();
        step.preempted.clear();
        step.admitted.clear();
        self.plan_decoding(room, &mut budget, step);
        // Room that was just made belongs to those who needed it.
        if step.preempted.is_empty() {
            self.admit(room, budget, step);
        }
        self.plan_prompts(budget, step);
    }

    fn plan_decoding(&mut self, room: &mut impl Room<Slot = S>, budget: &mut Budget, step: &mut Step<S>) {
        let mut decoding = std::mem::take(&mut self.decoding);
        decoding.clear();
        decoding
            .extend(self.running.iter().filter(|(_, r)| r.progress.pending() == 1).map(|(&rank, _)| rank));
        for (place, &rank) in decoding.iter().enumerate() {
            let others = decoding.len() - place - 1;
            // One that was set back to make room for those before it is not there any more.
            while let Some(running) = self.running.get_mut(&rank) {
                let (slot, length) = (running.slot, running.progress.length);
                if room.reserve(slot, length) {
                    // Guesses are tried with what the others leave.
                    let spare = budget.tokens.min(budget.rows).saturating_sub(others + 1);
                    let drafts = std::mem::take(&mut running.drafts).min(spare);
                    let drafts = if drafts > 0 && room.reserve(slot, length + drafts) { drafts } else { 0 };
                    *budget = add_piece(rank, running, drafts, *budget, step);
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
            room.close(rank, running.slot);
            self.waiting.insert(rank, Progress { computed: 0, ..running.progress });
            step.preempted.push(rank);
        }
    }

    /// Frees all pages; every running sequence waits at its old place, to be computed anew.
    pub fn set_back_all(&mut self, room: &mut impl Room<Slot = S>) {
        for (rank, running) in std::mem::take(&mut self.running) {
            room.close(rank, running.slot);
            self.waiting.insert(rank, Progress { computed: 0, ..running.progress });
        }
    }

    /// Notes that a waiting sequence needs logits from `position` on after all.
    pub fn need_rows_from(&mut self, rank: Rank, position: usize) {
        if let Some(progress) = self.waiting.get_mut(&rank) {
            progress.rows_from = position;
        }
    }

    fn admit(&mut self, room: &mut impl Room<Slot = S>, budget: Budget, step: &mut Step<S>) {
        let mut prompts = self.running.values().filter(|running| running.progress.pending() > 1).count();
        let mut place = 0;
        while prompts < budget.tokens
            && budget.rows > 0
            && place < LOOK_AHEAD
            && let Some((&rank, &progress)) = self.waiting.iter().nth(place)
        {
            if self.waits_for_another(rank, progress, room) {
                place += 1;
                continue;
            }
            // A page for each of the others to grow into, or the newcomer would soon be set back again.
            let needed = room.pages_for(progress.length) + self.running.len();
            let free = room.free_pages();
            let fits = needed <= free || needed <= free + room.pages_in_use(rank, progress);
            if !self.running.is_empty() && !fits {
                return;
            }
            let Some(Opened { slot, computed, stop }) = room.open(rank, progress) else { return };
            self.waiting.remove(&rank);
            let running = Running { slot, progress: Progress { computed, ..progress }, stop, drafts: 0 };
            self.running.insert(rank, running);
            step.admitted.push(rank);
            prompts += 1;
        }
    }

    /// Divides what is left of the budget among prompts.
    fn plan_prompts(&mut self, mut budget: Budget, step: &mut Step<S>) {
        let mut prompts = std::mem::take(&mut self.prompts);
        prompts.clear();
        let decodes = |rank| step.pieces.iter().any(|piece| piece.rank == rank);
        prompts.extend(self.running.iter().filter(|(rank, _)| !decodes(**rank)).map(|(&rank, running)| {
            Prompt {
                rank,
                wish: running.progress.until(running.stop),
                rate: 1.0 + running.progress.computed as f64 / budget.parity,
                share: 0,
            }
        }));
        for equals in prompts.chunk_by_mut(|a, b| a.rank.priority == b.rank.priority) {
            share(equals, &mut budget.tokens, &mut budget.work);
        }
        prompts.sort_unstable_by_key(|prompt| prompt.rank);
        for prompt in &prompts {
            let own = Budget { tokens: prompt.share, ..budget };
            budget.rows = add_piece(prompt.rank, &self.running[&prompt.rank], 0, own, step).rows;
        }
        self.prompts = prompts;
    }

    /// Whether a running sequence is about to compute what the request begins with. It is told to end a piece there.
    fn waits_for_another(&mut self, rank: Rank, progress: Progress, room: &impl Room<Slot = S>) -> bool {
        for (&other, running) in &mut self.running {
            let Progress { length, computed, .. } = running.progress;
            if length - computed == 1 {
                continue;
            }
            let common = room.common(rank, other).min(progress.rows_from).min(length);
            let common = room.whole_pages(common);
            if common > computed && common >= WORTH_WAITING_FOR {
                let earlier = running.stop.filter(|&stop| computed < stop && stop < common);
                running.stop = earlier.or(Some(common));
                return true;
            }
        }
        false
    }
}

/// A prompt's part of a step.
#[derive(Debug)]
struct Prompt {
    rank: Rank,
    /// Tokens that it would compute.
    wish: usize,
    /// Work of each of them.
    rate: f64,
    share: usize,
}

/// Divides `tokens` and `work` among prompts of one priority, which are in order of arrival and may leave it.
fn share(prompts: &mut [Prompt], tokens: &mut usize, work: &mut f64) {
    let Some((first, others)) = prompts.split_first_mut() else { return };
    let mut give = |prompt: &mut Prompt, part: f64| {
        let affordable = (*work * part / prompt.rate).ceil() as usize;
        let most = ((*tokens as f64 * part).ceil() as usize).min(affordable);
        let more = most.min(prompt.wish - prompt.share);
        prompt.share += more;
        *tokens -= more;
        *work = (*work - more as f64 * prompt.rate).max(0.0);
    };
    give(first, 0.5);
    others.sort_by_key(|prompt| prompt.wish);
    for prompt in others {
        give(prompt, 1.0);
    }
    give(first, 1.0);
}

/// Adds what of a sequence is within the budget, and guesses, and returns what is left of it.
fn add_piece<S: Copy>(
    rank: Rank,
    running: &Running<S>,
    drafts: usize,
    mut budget: Budget,
    step: &mut Step<S>,
) -> Budget {
    if let Some((mut tokens, rows)) = running.progress.next_piece(budget, running.stop) {
        let branches = running.stop == Some(tokens.end);
        tokens.end += drafts;
        budget.take(tokens.len(), rows);
        step.pieces.push(Piece { rank, slot: running.slot, tokens, rows, drafts, branches });
    }
    budget
}

#[cfg(test)]
mod tests;
