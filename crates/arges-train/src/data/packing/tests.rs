use proptest::prelude::*;

use super::*;
use crate::data::Sample;

/// A document whose tokens are its own number, so that they are found again in a batch.
fn document(number: usize, length: usize) -> Document {
    let sample = Sample { tokens: vec![number as u32; length], learn: vec![true; length] };
    Document { id: DocumentId { source: number % 3, position: number as u64, piece: 0 }, sample }
}

fn documents(lengths: &[usize]) -> Vec<Document> {
    lengths.iter().enumerate().map(|(number, length)| document(number, *length)).collect()
}

/// The numbers of the documents of each batch.
fn packed(lengths: &[usize], plan: TrainingPlan) -> Vec<Vec<u32>> {
    let numbers = |batch: &PackedBatch| {
        let ends = batch.batch.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        ends.map(|end| batch.batch.tokens[end - 1]).collect()
    };
    pack_all(documents(lengths), plan).iter().map(numbers).collect()
}

#[test]
fn a_document_that_does_not_fit_is_passed_over_and_comes_first_in_the_next_batch() {
    let plan = TrainingPlan::new(10, 8);
    assert_eq!(packed(&[6, 5, 4, 3], plan), [vec![0, 2], vec![1, 3]]);
}

#[test]
fn a_batch_has_no_more_sequences_than_its_plan() {
    let plan = TrainingPlan::new(100, 2);
    assert_eq!(packed(&[1, 1, 1, 1, 1], plan), [vec![0, 1], vec![2, 3], vec![4]]);
}

#[test]
fn no_more_than_so_many_documents_are_passed_over() {
    let mut lengths = vec![9];
    lengths.resize(1 + LOOKAHEAD, 5);
    lengths.push(1);
    let plan = TrainingPlan::new(10, 8);
    assert_eq!(packed(&lengths, plan)[0], [0], "the last would fit, but stands behind {LOOKAHEAD} others");
    lengths.remove(1);
    assert_eq!(packed(&lengths, plan)[0], [0, LOOKAHEAD as u32]);
}

proptest! {
    #[test]
    fn every_document_is_in_one_batch_and_every_batch_within_its_plan(
        lengths in prop::collection::vec(2usize..=16, 0..120),
        max_sequences in 1usize..6,
    ) {
        let plan = TrainingPlan::new(16, max_sequences);
        let batches = pack_all(documents(&lengths), plan);
        let mut seen = vec![0; lengths.len()];
        for PackedBatch { batch, parts } in &batches {
            prop_assert!(batch.tokens.len() <= plan.max_tokens && batch.lengths.len() <= max_sequences);
            prop_assert_eq!(batch.tokens.len(), batch.lengths.iter().sum::<usize>());
            prop_assert_eq!(parts.len(), batch.lengths.len());
            let mut start = 0;
            for (&length, &(source, targets)) in batch.lengths.iter().zip(parts) {
                let number = batch.tokens[start] as usize;
                prop_assert_eq!((length, source, targets), (lengths[number], number % 3, length - 1));
                seen[number] += 1;
                start += length;
            }
        }
        prop_assert!(seen.iter().all(|times| *times == 1));
    }
}
