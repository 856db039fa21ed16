//! Which sequence has which slot and which pages: the bookkeeping of a cache, whatever device holds it.

use super::PAGE_TOKENS;

/// A sequence of a cache, from its `open` to its `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SequenceId {
    slot: u32,
    /// Counts the sequences that had the slot, so that a closed one is not taken for its successor.
    generation: u32,
}

/// There are not enough free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more cache pages are needed, {free} are free")]
pub struct OutOfPages {
    /// Pages missing to the length asked for.
    pub needed: usize,
    /// Pages free.
    pub free: usize,
}

struct Slot {
    generation: u32,
    open: bool,
    length: usize,
    pages: Vec<u32>,
}

/// Who holds a page.
#[derive(Clone, Copy, Default)]
struct Holders {
    /// Sequences.
    sequences: u32,
    /// Whether it outlives them: [`Slots::keep`].
    kept: bool,
}

/// Slots and pages of all sequences. A page may be held by several sequences that begin alike. It is full then, and
/// nothing writes to it: a sequence writes behind its length only.
pub struct Slots {
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    free_pages: Vec<u32>,
    holders: Vec<Holders>,
    /// Pages that are kept and held by no sequence.
    idle: usize,
}

impl Slots {
    /// All free.
    pub fn new(slots: u32, pages: u32) -> Self {
        let slot = |_| Slot {
            generation: 0,
            open: false,
            length: 0,
            // One sequence may take every page; room for it is taken at once and not while decoding.
            pages: Vec::with_capacity(pages as usize),
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            free_slots: (0..slots).rev().collect(),
            free_pages: (0..pages).rev().collect(),
            holders: vec![Holders::default(); pages as usize],
            idle: 0,
        }
    }

    /// Pages planned.
    pub fn pages_total(&self) -> usize {
        self.holders.len()
    }

    /// Pages that neither a sequence holds nor is kept.
    pub fn free_pages(&self) -> usize {
        self.free_pages.len()
    }

    /// Pages that are kept and that no sequence holds.
    pub fn idle_pages(&self) -> usize {
        self.idle
    }

    /// Whether a sequence holds the page.
    pub fn is_in_use(&self, page: u32) -> bool {
        self.holders[page as usize].sequences > 0
    }

    /// Lets a page of a sequence outlive it, until [`release`](Self::release).
    ///
    /// # Panics
    /// When no sequence holds the page, or it is kept already.
    pub fn keep(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(holders.sequences > 0 && !holders.kept, "a page in use that is not kept");
        holders.kept = true;
    }

    /// Ends what [`keep`](Self::keep) began; without sequences that hold it, the page is free.
    ///
    /// # Panics
    /// When the page is not kept.
    pub fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(holders.kept, "page {page} is not kept");
        holders.kept = false;
        if holders.sequences == 0 {
            self.idle -= 1;
            self.free_pages.push(page);
        }
    }

    /// Sequences that can still be opened.
    pub fn free_sequences(&self) -> usize {
        self.free_slots.len()
    }

    /// A new, empty sequence, or `None` when all slots are taken.
    pub fn open(&mut self) -> Option<SequenceId> {
        let slot = self.free_slots.pop()?;
        let state = &mut self.slots[slot as usize];
        state.open = true;
        Some(SequenceId { slot, generation: state.generation })
    }

    /// A new sequence that begins with kept pages, all of them full, or `None` when all slots are taken. Its states have
    /// to be loaded.
    ///
    /// # Panics
    /// When a page is not kept.
    pub fn open_with(&mut self, pages: &[u32]) -> Option<SequenceId> {
        let sequence = self.open()?;
        for &page in pages {
            let holders = &mut self.holders[page as usize];
            assert!(holders.kept, "page {page} is not kept");
            self.idle -= usize::from(holders.sequences == 0);
            holders.sequences += 1;
        }
        let slot = &mut self.slots[sequence.slot as usize];
        slot.pages.extend_from_slice(pages);
        slot.length = pages.len() * PAGE_TOKENS;
        Some(sequence)
    }

    /// Forgets the last tokens of a sequence, down to `length`. States move at multiples of [`PAGE_TOKENS`] and do not
    /// come back, so `length` may not be before the last one.
    ///
    /// # Panics
    /// When the sequence is closed or shorter, or its states are beyond `length`.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let slot = &mut self.slots[slot];
        let grid = slot.length / PAGE_TOKENS * PAGE_TOKENS;
        assert!((grid..=slot.length).contains(&length), "{length} of {} tokens", slot.length);
        slot.length = length;
    }

    /// Pages of an open sequence, in order.
    ///
    /// # Panics
    /// When the sequence is closed.
    pub fn pages(&self, sequence: SequenceId) -> &[u32] {
        self.pages_of(self.slot_index(sequence).expect("the sequence is open"))
    }

    /// Makes sure that the sequence has pages for `length` tokens.
    ///
    /// # Errors
    /// When too few pages are free; then nothing changes.
    ///
    /// # Panics
    /// When the sequence is closed.
    pub fn reserve(&mut self, sequence: SequenceId, length: usize) -> Result<(), OutOfPages> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let slot = &mut self.slots[slot];
        let needed = length.div_ceil(PAGE_TOKENS).saturating_sub(slot.pages.len());
        let free = self.free_pages.len();
        if needed > free {
            return Err(OutOfPages { needed, free });
        }
        for page in self.free_pages.drain(free - needed..).rev() {
            self.holders[page as usize].sequences = 1;
            slot.pages.push(page);
        }
        Ok(())
    }

    /// Tokens of the sequence that the cache holds.
    ///
    /// # Panics
    /// When the sequence is closed.
    pub fn length(&self, sequence: SequenceId) -> usize {
        self.slots[self.slot_index(sequence).expect("the sequence is open")].length
    }

    /// Gives slot and pages back. Closing twice does nothing.
    pub fn close(&mut self, sequence: SequenceId) {
        if let Some(index) = self.slot_index(sequence) {
            let slot = &mut self.slots[index];
            slot.open = false;
            slot.generation = slot.generation.wrapping_add(1);
            slot.length = 0;
            for page in slot.pages.drain(..).rev() {
                let holders = &mut self.holders[page as usize];
                holders.sequences -= 1;
                match holders {
                    Holders { sequences: 0, kept: true } => self.idle += 1,
                    Holders { sequences: 0, kept: false } => self.free_pages.push(page),
                    _ => {}
                }
            }
            self.free_slots.push(sequence.slot);
        }
    }

    /// The slot of an open sequence.
    pub(crate) fn slot_index(&self, sequence: SequenceId) -> Option<usize> {
        let slot = self.slots.get(sequence.slot as usize)?;
        (slot.open && slot.generation == sequence.generation).then_some(sequence.slot as usize)
    }

    pub(crate) fn length_of(&self, slot: usize) -> usize {
        self.slots[slot].length
    }

    pub(crate) fn page_capacity(&self, slot: usize) -> usize {
        self.slots[slot].pages.len() * PAGE_TOKENS
    }

    /// Counts tokens as held that were never computed: for measurements of a length whose contents do not matter.
    ///
    /// # Panics
    /// When the sequence is closed, or lacks the pages.
    pub fn skip(&mut self, sequence: SequenceId, tokens: usize) {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        assert!(self.length_of(slot) + tokens <= self.page_capacity(slot), "pages for {tokens} more tokens");
        self.advance(slot, tokens);
    }

    pub(crate) fn advance(&mut self, slot: usize, tokens: usize) {
        self.slots[slot].length += tokens;
    }

    /// Page numbers of a slot's sequence, in order.
    pub(crate) fn pages_of(&self, slot: usize) -> &[u32] {
        &self.slots[slot].pages
    }
}
