//! Which tokens' keys, values and states outlive the sequences that computed them.
//!
//! A tree of chunks of [`PAGE_TOKENS`] tokens, whose paths from the root are beginnings of sequences. A node keeps one
//! page; some also keep a snapshot of the states after their last token. A sequence that begins like a path takes up the
//! pages down to the deepest snapshot, and goes on from there. Nodes are found by their parent and the tokens
//! themselves, so that no request can be given what belongs to other tokens.
//!
//! Snapshots are few and large. The one that goes first is worth least: work to get it back (from the snapshot before
//! it) by bytes that it holds, counted from when it was last used (GreedyDual-Size, Cao and Irani 1997: a clock moves on
//! with what is evicted, and old worth falls behind). Pages go from the ends of paths, first those that no snapshot
//! needs.
//!
//! This is bookkeeping alone: no memory but tokens.

use std::collections::{BTreeSet, HashMap};

use arges_model::Slots;
use arges_model::cache::PAGE_TOKENS;

/// Never used again once its node is gone.
pub(crate) type NodeId = u64;
pub(crate) const ROOT: NodeId = 0;
type Chunk = [u32; PAGE_TOKENS];

/// What tokens cost to compute and to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    /// Context at which softmax attention takes as long as all else; infinite without such layers.
    pub parity: f64,
    /// Bytes of a snapshot.
    pub state_bytes: f64,
    /// Bytes of a token's keys and values.
    pub token_bytes: f64,
}

impl Costs {
    /// Work of the tokens from `start` to `end`, in tokens without context.
    pub fn work(&self, start: usize, end: usize) -> f64 {
        let (start, end) = (start as f64, end as f64);
        (end - start) * (1.0 + (start + end) / 2.0 / self.parity)
    }

    /// Worth of a snapshot after `end` tokens, where the one before it is after `start`.
    fn worth(&self, start: usize, end: usize) -> f64 {
        self.work(start, end) / (self.state_bytes + (end - start) as f64 * self.token_bytes).max(1.0)
    }
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    chunk: Chunk,
    /// Chunks down to the end of this one.
    depth: usize,
    page: u32,
    children: usize,
    /// Where its snapshot is.
    place: Option<usize>,
    /// The clock when it was last used.
    used: f64,
}

/// What of a prompt is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Tokens that a path has, with or without a snapshot.
    pub known: usize,
    /// Tokens down to the deepest snapshot.
    pub length: usize,
    /// Their last node.
    pub node: NodeId,
}

/// Where a new snapshot goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub place: usize,
    /// First the snapshot at the first of these is to be copied to the second.
    pub offload: Option<(usize, usize)>,
}

/// What was thrown away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evictions {
    pub pages: u64,
    pub states: u64,
}

#[derive(Debug)]
pub(crate) struct PrefixCache {
    nodes: HashMap<NodeId, Node>,
    children: HashMap<(NodeId, Chunk), NodeId>,
    leaves: BTreeSet<NodeId>,
    /// Nodes with a snapshot.
    saved: BTreeSet<NodeId>,
    free_on_device: Vec<usize>,
    free_on_host: Vec<usize>,
    /// Places from here on are on the host.
    on_device: usize,
    last_id: NodeId,
    clock: f64,
    costs: Costs,
    evictions: Evictions,
}

impl PrefixCache {
    /// Room for so many snapshots on the device and on the host.
    pub fn new(on_device: usize, on_host: usize, costs: Costs) -> Self {
        Self {
            nodes: HashMap::new(),
            children: HashMap::new(),
            leaves: BTreeSet::new(),
            saved: BTreeSet::new(),
            free_on_device: (0..on_device).rev().collect(),
            free_on_host: (on_device..on_device + on_host).rev().collect(),
            on_device,
            last_id: ROOT,
            clock: 0.0,
            costs,
            evictions: Evictions::default(),
        }
    }

    pub fn evictions(&self) -> Evictions {
        self.evictions
    }

    /// Snapshots held.
    pub fn snapshots(&self) -> usize {
        self.saved.len()
    }

    /// Pages held.
    pub fn pages(&self) -> usize {
        self.nodes.len()
    }

    /// Looks a prompt up. Snapshots after more than `limit` tokens are left out.
    pub fn find(&self, tokens: &[u32], limit: usize) -> Found {
        let mut found = Found::default();
        let mut at = ROOT;
        for chunk in tokens.chunks_exact(PAGE_TOKENS) {
            let Some(child) = self.child(at, chunk) else { break };
            at = child;
            found.known += PAGE_TOKENS;
            if found.known <= limit && self.nodes[&at].place.is_some() {
                (found.length, found.node) = (found.known, at);
            }
        }
        found
    }

    /// Pages from the root down to a node.
    pub fn path(&self, mut at: NodeId) -> Vec<u32> {
        let mut pages = Vec::with_capacity(self.nodes.get(&at).map_or(0, |node| node.depth));
        while let Some(node) = self.nodes.get(&at) {
            pages.push(node.page);
            at = node.parent;
        }
        pages.reverse();
        pages
    }

    /// The snapshot of a node, which is about to be used.
    pub fn take_up(&mut self, at: NodeId) -> Option<usize> {
        let node = self.nodes.get_mut(&at)?;
        node.used = self.clock;
        node.place
    }

    /// Adds the full chunks of `tokens`, whose pages a sequence holds, below `from` if that is still there and on its
    /// path. Returns the last one's node. What is there already keeps its own page.
    pub fn insert(&mut self, from: NodeId, tokens: &[u32], pages: &[u32], slots: &mut Slots) -> NodeId {
        let (mut at, depth) = self.nodes.get(&from).map_or((ROOT, 0), |node| (from, node.depth));
        let chunks = tokens.chunks_exact(PAGE_TOKENS).zip(pages).enumerate().skip(depth);
        for (index, (chunk, &page)) in chunks {
            at = self.child(at, chunk).unwrap_or_else(|| {
                slots.keep(page);
                self.add(at, chunk, index + 1, page)
            });
        }
        at
    }

    fn child(&self, parent: NodeId, chunk: &[u32]) -> Option<NodeId> {
        self.children.get(&(parent, chunk.try_into().ok()?)).copied()
    }

    fn add(&mut self, parent: NodeId, chunk: &[u32], depth: usize, page: u32) -> NodeId {
        self.last_id += 1;
        let id = self.last_id;
        let chunk: Chunk = chunk.try_into().expect("a whole chunk");
        let node = Node { parent, chunk, depth, page, children: 0, place: None, used: self.clock };
        self.nodes.insert(id, node);
        self.children.insert((parent, chunk), id);
        self.leaves.insert(id);
        if let Some(parent_node) = self.nodes.get_mut(&parent) {
            parent_node.children += 1;
            self.leaves.remove(&parent);
        }
        id
    }

    /// A place for a snapshot of the states after a node; `None` if it has one, or if all that are there are worth
    /// more.
    pub fn place(&mut self, at: NodeId) -> Option<Placed> {
        if self.nodes.get(&at)?.place.is_some() {
            return None;
        }
        let rank = self.clock + self.worth(at);
        let placed = match self.free_on_device.pop() {
            Some(place) => Placed { place, offload: None },
            None => {
                let (victim, of_victim) = self.least(0..self.on_device)?;
                if of_victim > rank {
                    // As if it had been taken and had gone at once.
                    self.clock = self.clock.max(rank);
                    return None;
                }
                let place = self.nodes[&victim].place?;
                Placed { place, offload: self.move_to_host(victim, of_victim).map(|to| (place, to)) }
            }
        };
        let node = self.nodes.get_mut(&at)?;
        (node.place, node.used) = (Some(placed.place), self.clock);
        self.saved.insert(at);
        Some(placed)
    }

    /// Gives up the place of a snapshot on the device. Returns its new one on the host, unless all there are worth
    /// more.
    fn move_to_host(&mut self, victim: NodeId, of_victim: f64) -> Option<usize> {
        let place = self.free_on_host.pop().or_else(|| {
            let (least, of_least) = self.least(self.on_device..usize::MAX)?;
            if of_least > of_victim {
                return None;
            }
            let place = self.nodes[&least].place;
            self.forget_state(least, of_least);
            place
        });
        match place {
            Some(_) => self.nodes.get_mut(&victim)?.place = place,
            None => self.forget_state(victim, of_victim),
        }
        place
    }

    fn forget_state(&mut self, at: NodeId, rank: f64) {
        self.clock = self.clock.max(rank);
        self.saved.remove(&at);
        if let Some(node) = self.nodes.get_mut(&at) {
            node.place = None;
        }
        self.evictions.states += 1;
    }

    /// The snapshot among those places that is worth least, and its rank.
    fn least(&self, places: std::ops::Range<usize>) -> Option<(NodeId, f64)> {
        let among = self.saved.iter().filter(|id| self.nodes[id].place.is_some_and(|p| places.contains(&p)));
        among.map(|&id| (id, self.nodes[&id].used + self.worth(id))).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What a snapshot after this node is worth.
    fn worth(&self, at: NodeId) -> f64 {
        let node = &self.nodes[&at];
        let (mut start, mut parent) = (0, node.parent);
        while let Some(above) = self.nodes.get(&parent) {
            if above.place.is_some() {
                start = above.depth;
                break;
            }
            parent = above.parent;
        }
        self.costs.worth(start * PAGE_TOKENS, node.depth * PAGE_TOKENS)
    }

    /// Throws the end of a path away; false if there is none. Its page is free unless a sequence holds it.
    pub fn evict_page(&mut self, slots: &mut Slots) -> bool {
        let rank = |id: &NodeId| {
            let node = &self.nodes[id];
            let worth = node.place.map_or(0.0, |_| self.worth(*id));
            (slots.is_in_use(node.page), node.place.is_some(), node.used + worth, *id)
        };
        let order = |a: &(bool, bool, f64, NodeId), b: &(bool, bool, f64, NodeId)| {
            (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3))
        };
        let Some((_, has_state, rank, id)) = self.leaves.iter().map(rank).min_by(order) else { return false };
        if has_state {
            self.free_place(id);
            self.forget_state(id, rank);
        }
        self.evictions.pages += 1;
        self.remove_leaf(id, slots);
        true
    }

    /// Forgets the snapshot of a node that could not be made.
    pub fn unplace(&mut self, at: NodeId) {
        self.free_place(at);
        self.saved.remove(&at);
        if let Some(node) = self.nodes.get_mut(&at) {
            node.place = None;
        }
    }

    fn free_place(&mut self, at: NodeId) {
        let free = match self.nodes.get(&at).and_then(|node| node.place) {
            Some(place) if place < self.on_device => (&mut self.free_on_device, place),
            Some(place) => (&mut self.free_on_host, place),
            None => return,
        };
        free.0.push(free.1);
    }

    fn remove_leaf(&mut self, id: NodeId, slots: &mut Slots) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.leaves.remove(&id);
        self.children.remove(&(node.parent, node.chunk));
        slots.release(node.page);
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children -= 1;
            if parent.children == 0 {
                self.leaves.insert(node.parent);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, slots: &mut Slots) {
        for id in std::mem::take(&mut self.saved) {
            self.free_place(id);
        }
        for node in self.nodes.drain().map(|(_, node)| node) {
            slots.release(node.page);
        }
        self.children.clear();
        self.leaves.clear();
    }
}

#[cfg(test)]
mod tests;
