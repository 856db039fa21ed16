use super::*;

const COSTS: Costs = Costs { parity: 1e9, state_bytes: 1000.0, token_bytes: 0.0 };

/// Chunks of which each is one token over and over.
fn text(chunks: &[u32]) -> Vec<u32> {
    chunks.iter().flat_map(|&token| [token; PAGE_TOKENS]).collect()
}

/// Computes chunks as a sequence would, and ends.
fn insert(cache: &mut PrefixCache, slots: &mut Slots, chunks: &[u32]) -> NodeId {
    let tokens = text(chunks);
    let sequence = slots.open().unwrap();
    slots.reserve(sequence, tokens.len()).unwrap();
    let pages = slots.pages(sequence).to_vec();
    let node = cache.insert(ROOT, &tokens, &pages, slots);
    slots.close(sequence);
    node
}

#[test]
fn a_beginning_is_found_by_its_tokens_down_to_the_deepest_snapshot_within_the_limit() {
    let (mut cache, mut slots) = (PrefixCache::new(4, 0, COSTS), Slots::new(4, 16));
    let long = insert(&mut cache, &mut slots, &[1, 2, 3, 4]);
    let short = insert(&mut cache, &mut slots, &[1, 2]);
    assert_eq!((cache.pages(), slots.free_pages(), slots.idle_pages()), (4, 12, 4));
    let found = |cache: &PrefixCache, chunks: &[u32], limit| {
        let found = cache.find(&text(chunks), limit);
        (found.known, found.length)
    };
    assert_eq!(found(&cache, &[1, 2, 3, 4], 1000), (256, 0), "no state");
    assert_eq!(cache.place(short), Some(Placed { place: 0, offload: None }));
    assert_eq!(cache.place(short), None, "it has one");
    cache.place(long).unwrap();
    assert_eq!(found(&cache, &[1, 2, 3, 4, 5], 1000), (256, 256));
    assert_eq!(found(&cache, &[1, 2, 3, 4], 255), (256, 128));
    assert_eq!(found(&cache, &[1, 2, 9, 4], 1000), (128, 128));
    assert_eq!(found(&cache, &[2, 1], 1000), (0, 0));
    assert_eq!(cache.path(long)[..2], cache.path(short));
    cache.clear(&mut slots);
    assert_eq!((cache.snapshots(), slots.free_pages()), (0, 16));
}

#[test]
fn the_snapshot_that_saves_least_goes_first_and_one_that_saves_less_is_not_taken() {
    let (mut cache, mut slots) = (PrefixCache::new(2, 0, COSTS), Slots::new(4, 64));
    let long = insert(&mut cache, &mut slots, &[1; 8]);
    let middle = insert(&mut cache, &mut slots, &[2; 4]);
    let short = insert(&mut cache, &mut slots, &[3; 2]);
    cache.place(long).unwrap();
    cache.place(middle).unwrap();
    assert_eq!(cache.place(short), None);
    // One chunk more than another snapshot has is worth little, though the path is long.
    let longer = insert(&mut cache, &mut slots, &[1; 9]);
    assert_eq!(cache.place(longer), None);
    let other = insert(&mut cache, &mut slots, &[4; 5]);
    assert_eq!(cache.place(other), Some(Placed { place: 1, offload: None }));
    assert_eq!(cache.evictions(), Evictions { pages: 0, states: 1 });
    // The clock has moved on, so what is not used grows old: in the end even the longest goes.
    for chunk in 10..20 {
        let node = insert(&mut cache, &mut slots, &[chunk; 3]);
        cache.place(node);
    }
    assert!(cache.nodes[&long].place.is_none());
}

#[test]
fn snapshots_move_to_the_host_before_they_go() {
    let (mut cache, mut slots) = (PrefixCache::new(1, 1, COSTS), Slots::new(4, 64));
    let [a, b, c] = [4, 5, 6].map(|length| insert(&mut cache, &mut slots, &vec![length; length as usize]));
    assert_eq!(cache.place(a), Some(Placed { place: 0, offload: None }));
    assert_eq!(cache.place(b), Some(Placed { place: 0, offload: Some((0, 1)) }));
    assert_eq!(cache.find(&text(&[4; 4]), 1000).length, 256);
    assert_eq!(cache.take_up(a), Some(1));
    assert_eq!(cache.place(c), Some(Placed { place: 0, offload: Some((0, 1)) }));
    assert_eq!((cache.take_up(a), cache.take_up(b), cache.take_up(c)), (None, Some(1), Some(0)));
    assert_eq!((cache.evictions().states, cache.snapshots()), (1, 2));
}

#[test]
fn pages_go_from_the_ends_of_paths_and_first_those_that_no_snapshot_needs() {
    let (mut cache, mut slots) = (PrefixCache::new(4, 0, COSTS), Slots::new(4, 8));
    let saved = insert(&mut cache, &mut slots, &[1, 2]);
    cache.place(saved).unwrap();
    insert(&mut cache, &mut slots, &[1, 2, 3]);
    insert(&mut cache, &mut slots, &[4, 5]);
    assert_eq!(slots.free_pages(), 3);
    for _ in 0..3 {
        assert!(cache.evict_page(&mut slots));
    }
    assert_eq!((slots.free_pages(), cache.snapshots(), cache.pages()), (6, 1, 2));
    assert!(cache.evict_page(&mut slots) && cache.evict_page(&mut slots) && !cache.evict_page(&mut slots));
    assert_eq!((slots.free_pages(), cache.snapshots()), (8, 0));
    assert_eq!(cache.place(saved), None, "it is gone");
}

/// A small generator.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

#[test]
fn under_any_load_pages_hold_what_was_computed_into_them_and_all_come_back() {
    let mut hits = 0;
    for seed in 0..100u64 {
        let mut state = seed;
        let (mut cache, mut slots) = (PrefixCache::new(3, 2, COSTS), Slots::new(4, 24));
        // What was computed into each page and each place: all tokens down to its end.
        let mut pages = vec![Vec::new(); 24];
        let mut places = vec![Vec::new(); 5];
        let mut running = Vec::new();
        for _ in 0..100 {
            let chunks: Vec<u32> =
                (0..1 + random(&mut state, 6)).map(|_| random(&mut state, 2) as u32).collect();
            let tokens = text(&chunks);
            let found = cache.find(&tokens, tokens.len() - 1);
            let path = cache.path(found.node);
            let Some(sequence) = slots.open_with(&path) else {
                slots.close(running.swap_remove(random(&mut state, running.len())));
                continue;
            };
            if let Some(place) = cache.take_up(found.node) {
                hits += 1;
                assert_eq!(places[place], tokens[..found.length]);
            }
            while slots.reserve(sequence, tokens.len()).is_err() {
                if slots.idle_pages() > 0 {
                    assert!(cache.evict_page(&mut slots));
                } else {
                    slots.close(running.remove(0));
                }
            }
            for (index, &page) in slots.pages(sequence).iter().enumerate() {
                let content = tokens[..(index + 1) * PAGE_TOKENS].to_vec();
                match index < path.len() {
                    true => assert_eq!(pages[page as usize], content, "shared"),
                    false => pages[page as usize] = content,
                }
            }
            let all = slots.pages(sequence).to_vec();
            let node = cache.insert(found.node, &tokens, &all, &mut slots);
            if random(&mut state, 2) == 0
                && let Some(Placed { place, offload }) = cache.place(node)
            {
                if let Some((from, to)) = offload {
                    places[to] = places[from].clone();
                }
                places[place] = tokens;
            }
            if random(&mut state, 40) == 0 {
                cache.clear(&mut slots);
            }
            running.push(sequence);
        }
        running.into_iter().for_each(|sequence| slots.close(sequence));
        assert_eq!(slots.free_pages() + slots.idle_pages(), 24);
        assert_eq!(slots.idle_pages(), cache.pages());
        while cache.evict_page(&mut slots) {}
        assert_eq!((slots.free_pages(), cache.snapshots(), cache.free_on_device.len()), (24, 0, 3));
        assert_eq!(cache.free_on_host.len(), 2);
    }
    assert!(hits > 500, "only {hits} hits");
}
