use super::*;

const PAGE: usize = 4;

/// Caches of which only the bookkeeping exists.
struct Pages {
    total: usize,
    /// Pages held by each slot; `None` for a free slot.
    held: Vec<Option<usize>>,
    /// Tokens with which all requests begin.
    common: usize,
    /// Of these, tokens that are in the caches.
    cached: usize,
}

impl Pages {
    fn new(slots: usize, total: usize) -> Self {
        Self { total, held: vec![None; slots], common: 0, cached: 0 }
    }
}

impl Room for Pages {
    type Slot = usize;

    fn open(&mut self, _: Rank, progress: Progress) -> Option<Opened<usize>> {
        let slot = self.held.iter().position(Option::is_none)?;
        self.held[slot] = Some(0);
        if !self.reserve(slot, progress.length) {
            self.held[slot] = None;
            return None;
        }
        let computed = self.whole_pages(self.cached.min(progress.rows_from));
        Some(Opened { slot, computed, stop: None })
    }

    fn reserve(&mut self, slot: usize, length: usize) -> bool {
        let held = self.held[slot].expect("an open slot");
        let more = self.pages_for(length).saturating_sub(held);
        let enough = more <= self.free_pages();
        if enough {
            self.held[slot] = Some(held + more);
        }
        enough
    }

    fn close(&mut self, _: Rank, slot: usize) {
        assert!(self.held[slot].take().is_some(), "slot {slot} is closed twice");
    }

    fn free_pages(&self) -> usize {
        self.total - self.held.iter().flatten().sum::<usize>()
    }

    fn pages_for(&self, length: usize) -> usize {
        length.div_ceil(PAGE)
    }

    fn pages_in_use(&self, _: Rank, _: Progress) -> usize {
        0
    }

    fn common(&self, _: Rank, _: Rank) -> usize {
        self.common
    }

    fn whole_pages(&self, length: usize) -> usize {
        length / PAGE * PAGE
    }
}

/// A scheduler with its caches, and sequences that are nothing but a number of tokens left to generate.
struct World {
    scheduler: Scheduler<usize>,
    pages: Pages,
    budget: Budget,
    step: Step<usize>,
}

fn budget(tokens: usize, rows: usize) -> Budget {
    Budget { tokens, rows, work: f64::INFINITY, parity: f64::INFINITY }
}

impl World {
    fn new(slots: usize, pages: usize, tokens: usize) -> Self {
        let (budget, step) = (budget(tokens, tokens), Step::default());
        Self { scheduler: Scheduler::new(), pages: Pages::new(slots, pages), budget, step }
    }

    fn enqueue(&mut self, arrival: u64, length: usize) -> Rank {
        let rank = Rank::new(0, arrival);
        self.scheduler.enqueue(rank, length, length - 1);
        rank
    }

    /// Runs a step; each sequence whose last token was computed gets another.
    fn step(&mut self) -> Vec<(Rank, Range<usize>, LogitRows)> {
        self.scheduler.plan(&mut self.pages, self.budget, &mut self.step);
        for piece in &self.step.pieces {
            self.scheduler.advance(piece.rank, piece.tokens.len());
            if piece.rows != LogitRows::None {
                self.scheduler.append(piece.rank);
            }
        }
        self.step.pieces.iter().map(|piece| (piece.rank, piece.tokens.clone(), piece.rows)).collect()
    }
}

#[test]
fn decoding_goes_first_and_prompts_share_what_is_left() {
    let mut world = World::new(4, 100, 10);
    let a = world.enqueue(0, 3);
    assert_eq!(world.step(), [(a, 0..3, LogitRows::Last)]);
    let b = world.enqueue(1, 40);
    let c = world.enqueue(2, 6);
    let d = world.enqueue(3, 3);
    let half_each = [
        (a, 3..4, LogitRows::All),
        (b, 0..5, LogitRows::None),
        (c, 0..1, LogitRows::None),
        (d, 0..3, LogitRows::Last),
    ];
    assert_eq!(world.step(), half_each, "half to the first, the rest to the shortest");
    let next = [(a, 4..5, LogitRows::All), (d, 3..4, LogitRows::All), (b, 5..9, LogitRows::None)];
    assert_eq!(world.step(), [&next[..], &[(c, 1..5, LogitRows::None)]].concat());
    world.scheduler.remove(a, &mut world.pages);
    world.scheduler.remove(c, &mut world.pages);
    world.scheduler.remove(d, &mut world.pages);
    assert_eq!(world.step(), [(b, 9..19, LogitRows::None)], "alone it gets all");
    let urgent = Rank::new(1, 4);
    world.scheduler.enqueue(urgent, 8, 7);
    assert_eq!(world.step(), [(urgent, 0..8, LogitRows::Last), (b, 19..21, LogitRows::None)]);
}

#[test]
fn higher_priorities_are_admitted_first_and_equal_ones_by_arrival() {
    let mut world = World::new(8, 100, 3);
    let ranks = [(0, 0), (5, 1), (-1, 2), (5, 3)].map(|(priority, arrival)| Rank::new(priority, arrival));
    for rank in ranks {
        world.scheduler.enqueue(rank, 1, 0);
    }
    let order: Vec<Rank> = world.step().into_iter().map(|(rank, ..)| rank).collect();
    assert_eq!(order, [ranks[1], ranks[3], ranks[0]]);
    assert_eq!(world.scheduler.first_waiting(), Some(ranks[2]));
}

#[test]
fn requests_wait_for_a_slot() {
    let mut world = World::new(1, 100, 10);
    let a = world.enqueue(0, 2);
    let b = world.enqueue(1, 2);
    assert_eq!(world.step(), [(a, 0..2, LogitRows::Last)]);
    assert_eq!((world.scheduler.running(), world.scheduler.waiting()), (1, 1));
    world.scheduler.remove(a, &mut world.pages);
    assert_eq!(world.step(), [(b, 0..2, LogitRows::Last)]);
}

#[test]
fn requests_wait_until_their_pages_and_one_for_each_other_are_free() {
    let mut world = World::new(8, 4, 100);
    let a = world.enqueue(0, 8);
    let b = world.enqueue(1, 8);
    assert_eq!(world.step(), [(a, 0..8, LogitRows::Last)], "two pages are free, but one is to grow into");
    world.scheduler.remove(a, &mut world.pages);
    assert_eq!(world.step(), [(b, 0..8, LogitRows::Last)]);
}

#[test]
fn the_last_in_order_is_set_back_when_pages_run_out_and_comes_back_whole() {
    let mut world = World::new(8, 4, 100);
    let a = world.enqueue(0, 3);
    let b = world.enqueue(1, 3);
    let c = world.enqueue(2, 3);
    // A page each for a, b; c waits, since the last page alone is not enough for it and the others' growth.
    assert_eq!(world.step().len(), 2);
    world.step();
    // Both grow into a second page; all four are held.
    world.step();
    assert_eq!(world.pages.free_pages(), 0);
    for _ in 0..3 {
        assert_eq!(world.step().len(), 2);
    }
    // The ninth token of each needs a third page.
    assert_eq!(world.step(), [(a, 8..9, LogitRows::All)]);
    assert_eq!(world.step.preempted, [b]);
    assert_eq!(world.scheduler.first_waiting(), Some(b), "before c, at its old place");
    world.scheduler.remove(a, &mut world.pages);
    let back = world.step();
    assert_eq!(back[0], (b, 0..9, LogitRows::Last));
    assert_eq!(world.step.admitted[0], b);
    world.scheduler.remove(b, &mut world.pages);
    world.scheduler.remove(c, &mut world.pages);
    assert_eq!(world.pages.free_pages(), 4);
    assert!(world.scheduler.is_idle());
}

#[test]
fn nobody_is_admitted_into_the_pages_of_one_that_was_set_back() {
    let mut world = World::new(8, 6, 100);
    world.enqueue(0, 8);
    world.step();
    // As many pages as it needs to run beside the first.
    let b = world.enqueue(1, 7);
    world.step();
    world.enqueue(2, 1);
    let mut steps = 0;
    while world.step.preempted.is_empty() {
        world.step();
        steps += 1;
        assert!(steps < 20);
    }
    assert_eq!(world.step.preempted, [b]);
    assert!(world.step.admitted.is_empty());
}

#[test]
fn pieces_with_logits_of_every_token_keep_to_the_row_budget() {
    let mut world = World::new(2, 100, 10);
    world.budget.rows = 4;
    let scored = Rank::new(0, 0);
    world.scheduler.enqueue(scored, 11, 0);
    let mut place = 0;
    while place < 11 {
        world.scheduler.plan(&mut world.pages, world.budget, &mut world.step);
        let [piece] = &world.step.pieces[..] else { panic!("{:?}", world.step) };
        assert_eq!((piece.tokens.clone(), piece.rows), (place..11.min(place + 4), LogitRows::All));
        place = piece.tokens.end;
        world.scheduler.advance(scored, piece.tokens.len());
        world.scheduler.skip_rows(scored, place);
    }
    // Computed again, only the last token still needs its logits.
    let progress = world.scheduler.running[&scored].progress;
    assert_eq!(
        Progress { computed: 0, ..progress }.next_piece(world.budget, None),
        Some((0..10, LogitRows::None))
    );
    assert_eq!(
        Progress { computed: 10, ..progress }.next_piece(world.budget, None),
        Some((10..11, LogitRows::All))
    );
}

#[test]
fn the_end_of_a_prompt_waits_for_a_row_of_logits() {
    let progress = Progress { length: 8, computed: 0, rows_from: 7 };
    let piece = |tokens, rows| progress.next_piece(budget(tokens, rows), None);
    assert_eq!(piece(100, 1), Some((0..8, LogitRows::Last)));
    assert_eq!(piece(100, 0), Some((0..7, LogitRows::None)));
    assert_eq!(piece(3, 0), Some((0..3, LogitRows::None)));
    assert_eq!(piece(0, 5), None);
    let middle = Progress { length: 8, computed: 2, rows_from: 4 };
    assert_eq!(middle.next_piece(budget(100, 100), None), Some((2..4, LogitRows::None)));
}

#[test]
fn prompts_keep_to_their_work_which_grows_with_their_place() {
    let mut world = World::new(8, 1000, 300);
    world.budget.parity = 100.0;
    world.budget.work = 100.0;
    let a = world.enqueue(0, 900);
    assert_eq!(world.step(), [(a, 0..100, LogitRows::None)]);
    assert_eq!(world.step(), [(a, 100..150, LogitRows::None)]);
    let b = world.enqueue(1, 60);
    // Half of the work to each, at two and a half times the work a token, and at once.
    assert_eq!(world.step(), [(a, 150..170, LogitRows::None), (b, 0..50, LogitRows::None)]);
    world.budget.work = 0.0;
    assert_eq!(world.step(), []);
}

#[test]
fn guesses_take_what_the_others_leave_and_are_tried_once() {
    let mut world = World::new(8, 100, 8);
    let [a, b] = [0, 1].map(|arrival| world.enqueue(arrival, 2));
    world.step();
    assert_eq!(world.scheduler.decoding().collect::<Vec<_>>(), [(a, 3), (b, 3)]);
    world.scheduler.propose(a, 20);
    world.scheduler.propose(b, 20);
    world.scheduler.plan(&mut world.pages, world.budget, &mut world.step);
    let pieces: Vec<_> = world.step.pieces.iter().map(|piece| (piece.tokens.clone(), piece.drafts)).collect();
    assert_eq!(pieces, [(2..9, 6), (2..3, 0)]);
    world.scheduler.plan(&mut world.pages, world.budget, &mut world.step);
    assert!(world.step.pieces.iter().all(|piece| piece.drafts == 0 && piece.tokens == (2..3)));
}

#[test]
fn requests_that_begin_alike_wait_for_the_first_to_get_there_and_others_pass_them() {
    let mut world = World::new(8, 1000, 300);
    world.pages.common = 514;
    let [a, b] = [0, 1].map(|arrival| world.enqueue(arrival, 600));
    // Too short to have much in common.
    let c = world.enqueue(2, 40);
    assert_eq!(world.step(), [(a, 0..260, LogitRows::None), (c, 0..40, LogitRows::Last)]);
    world.scheduler.remove(c, &mut world.pages);
    assert_eq!(world.step(), [(a, 260..512, LogitRows::None)]);
    assert!(world.step.pieces[0].branches);
    assert_eq!(world.scheduler.first_waiting(), Some(b));
    world.pages.cached = 512;
    let pieces = world.step();
    assert_eq!(pieces, [(a, 512..600, LogitRows::Last), (b, 512..600, LogitRows::Last)]);
}

/// A small generator for the random workload below.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

#[test]
fn any_workload_runs_to_its_end_in_order_within_the_budget_and_leaves_no_page_behind() {
    let mut preemptions = 0;
    for seed in 0..200u64 {
        let mut state = seed;
        let total = 6 + random(&mut state, 20);
        let tokens = 4 + random(&mut state, 20);
        let mut world = World::new(4, total, tokens);
        let mut left = BTreeMap::new();
        for arrival in 0..20 {
            let prompt = 1 + random(&mut state, total * PAGE - 1);
            let rank = Rank::new(random(&mut state, 2) as i32, arrival);
            world.scheduler.enqueue(rank, prompt, prompt - 1);
            left.insert(rank, 1 + random(&mut state, total * PAGE - prompt + 1));
        }
        let mut computed: BTreeMap<Rank, usize> = BTreeMap::new();
        for steps in 0.. {
            assert!(steps < 100_000, "seed {seed} never ends");
            if world.scheduler.is_idle() {
                break;
            }
            let pieces = world.step();
            assert!(!pieces.is_empty(), "seed {seed} is stuck");
            assert!(pieces.iter().map(|(_, tokens, _)| tokens.len()).sum::<usize>() <= tokens);
            for rank in &world.step.preempted {
                preemptions += 1;
                computed.insert(*rank, 0);
            }
            for (rank, tokens, rows) in pieces {
                assert!(!world.step.preempted.contains(&rank));
                let done = computed.entry(rank).or_default();
                assert_eq!(*done, tokens.start, "tokens are computed in order");
                *done = tokens.end;
                if rows != LogitRows::None {
                    let left = left.get_mut(&rank).expect("a known request");
                    *left -= 1;
                    if *left == 0 {
                        world.scheduler.remove(rank, &mut world.pages);
                    }
                }
            }
        }
        assert!(left.values().all(|&left| left == 0));
        assert_eq!(world.pages.free_pages(), total);
    }
    assert!(preemptions > 500, "only {preemptions} preemptions were tried");
}
