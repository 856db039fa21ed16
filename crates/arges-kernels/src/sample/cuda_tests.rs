use super::cuda::{Greedy, SOURCE};
use crate::device::cuda::Buffer;
use crate::testing::{CARDS, Random, assert_compiles, gpu};

#[test]
fn the_largest_sampleable_logit_is_chosen_with_its_logprob() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for (rows, vocabulary, sampleable) in [(1, 5, 5), (3, 512, 500), (9, 70_001, 70_001)] {
        let mut logits = random.normal(rows * vocabulary);
        // Equal ones: the lower id wins; and one that may not be sampled.
        (logits[1], logits[3]) = (9.0, 9.0);
        if sampleable < vocabulary {
            logits[vocabulary - 1] = 10.0;
        }
        let device = Buffer::from_slice(&cuda, &logits).unwrap();
        let (mut tokens, mut logprobs) =
            (Buffer::zeroed(&cuda, rows).unwrap(), Buffer::zeroed(&cuda, rows).unwrap());
        let mut greedy = Greedy::new(&cuda, vocabulary, rows).unwrap();
        greedy.run(&device, rows, sampleable, &mut tokens, &mut logprobs).unwrap();
        let (tokens, logprobs) = (tokens.to_vec().unwrap(), logprobs.to_vec().unwrap());
        for r in 0..rows {
            let row = &logits[r * vocabulary..][..vocabulary];
            let best = (0..sampleable).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            assert_eq!(tokens[r], best as i32, "row {r}");
            assert!((f64::from(logprobs[r]) - (f64::from(row[best]) - total.ln())).abs() < 1e-5, "row {r}");
        }
    }
}

#[test]
fn the_kernels_compile_for_every_architecture() {
    assert_compiles(SOURCE, &[], &CARDS);
}
