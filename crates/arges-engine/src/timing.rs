//! What steps take, measured as they run, and what follows for the next.
//!
//! A row more in a step of decoding costs less than a token is worth while weights are read anyway, and more where
//! arithmetic is the limit; and so for a prompt's tokens beside it. Neither is known before it is measured, and both
//! change with the number of sequences.

/// What a step computed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Sequences that decode.
    pub decoders: usize,
    /// Rows that were drafts.
    pub drafts: usize,
    /// Tokens of prompts, as work of tokens without context.
    pub prompts: f64,
}

/// How many times longer than without prompts a step of decoding may take with them. It is less than what is promised
/// of the slowest steps, which vary.
const SLOWDOWN: f64 = 2.0;
/// Work of prompts that a step may have in any case.
const LEAST_WORK: f64 = 16.0;
/// Work of the first step of a prompt beside decoding.
const FIRST_WORK: f64 = 64.0;
/// How much of the way, in the logarithm, the work of prompts moves after a step that was too slow, and after one that
/// was faster than need be. Times vary, and it is the slow steps that clients notice.
const DOWN: f64 = 0.3;
const UP: f64 = 0.1;
/// Steps after which one without prompts is run, to measure what that takes now.
const MEASURE_AFTER: u32 = 64;
/// Weight of a new observation.
const RATE: f64 = 0.1;
/// What an old observation weighs beside the next one, in the fit of rows and time.
const FADE: f64 = 0.97;

/// Weighted sums of rows `x` and seconds `y` of steps without prompts.
#[derive(Debug, Clone, Copy, Default)]
struct Fit {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Fit {
    fn add(&mut self, x: f64, y: f64) {
        for (sum, value) in [
            (&mut self.n, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * FADE + value;
        }
    }

    /// Seconds of no row and of each row; `None` while the numbers of rows hardly differed.
    fn line(&self) -> Option<(f64, f64)> {
        let (x, y) = (self.x / self.n, self.y / self.n);
        let spread = self.xx / self.n - x * x;
        if self.n < 8.0 || spread < 0.05 {
            return None;
        }
        let slope = ((self.xy / self.n - x * y) / spread).clamp(0.0, y / x);
        Some((y - slope * x, slope))
    }
}

/// Of steps with about as many decoding sequences.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Seconds without prompts.
    alone: Option<f64>,
    /// Work of prompts that a step may have.
    work: Option<f64>,
    /// Steps with prompts since one without.
    since: u32,
}

#[derive(Debug, Default)]
pub(crate) struct StepTimes {
    fit: Fit,
    /// By the logarithm of the number of decoding sequences.
    buckets: [Bucket; 16],
}

impl StepTimes {
    fn bucket(&mut self, decoders: usize) -> &mut Bucket {
        &mut self.buckets[(decoders.max(1).ilog2() as usize).min(15)]
    }

    /// Takes what a step took.
    pub fn record(&mut self, load: Load, seconds: f64) {
        if load.decoders == 0 {
            return;
        }
        let bucket = self.bucket(load.decoders);
        if load.prompts > 0.0 {
            bucket.since += 1;
            bucket.adapt(load.prompts, seconds);
            return;
        }
        bucket.since = 0;
        // Something else may have run: it counts for no more than twice what is usual.
        let usual = bucket.alone.unwrap_or(seconds);
        let seconds = seconds.min(2.0 * usual);
        if load.drafts == 0 || bucket.alone.is_none() {
            bucket.alone = Some(usual + RATE * (seconds - usual));
        }
        self.fit.add((load.decoders + load.drafts) as f64, seconds);
    }

    /// What a drafted row costs in tokens, where so many sequences decode: a draft is worth it if it is right with a
    /// greater probability.
    pub fn price(&self, decoders: usize) -> f64 {
        match self.fit.line() {
            // Not known: worth a try.
            None => 0.3,
            Some((none, each)) => {
                let rows = decoders as f64;
                (each * rows / (none + each * rows)).clamp(0.02, 1.0)
            }
        }
    }

    /// Work of prompts that the next step may have, where so many sequences decode.
    pub fn prompt_work(&mut self, decoders: usize) -> f64 {
        if decoders == 0 {
            return f64::INFINITY;
        }
        let bucket = self.bucket(decoders);
        if bucket.alone.is_none() || bucket.since >= MEASURE_AFTER {
            return 0.0;
        }
        bucket.work.unwrap_or(FIRST_WORK)
    }
}

impl Bucket {
    /// Moves the work towards that which takes as long as it may.
    fn adapt(&mut self, work: f64, seconds: f64) {
        let (Some(alone), allowed) = (self.alone, self.work.unwrap_or(FIRST_WORK)) else { return };
        let room = (SLOWDOWN - 1.0) * alone;
        let taken = (seconds - alone).max(room / 8.0);
        let aim = work * room / taken;
        // A step that had less work than it might says nothing of more.
        if aim < allowed || work > 0.6 * allowed {
            let pace = if aim < allowed { DOWN } else { UP };
            let factor = (aim / allowed).powf(pace).clamp(0.5, 2.0);
            self.work = Some((allowed * factor).max(LEAST_WORK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of a step on a machine that reads weights for 10 ms, and takes as long for so many rows.
    fn takes(rows: f64) -> f64 {
        0.01 + 0.01 * rows / 50.0
    }

    #[test]
    fn prompts_get_as_much_of_a_step_as_takes_no_longer_than_decoding_itself() {
        let mut times = StepTimes::default();
        assert_eq!(times.prompt_work(0), f64::INFINITY);
        assert_eq!(times.prompt_work(4), 0.0, "first without, to know what that takes");
        let alone = takes(4.0);
        for _ in 0..300 {
            let prompts = times.prompt_work(4);
            times.record(Load { decoders: 4, drafts: 0, prompts }, takes(4.0 + prompts));
        }
        times.record(Load { decoders: 4, drafts: 0, prompts: 0.0 }, alone);
        let slowdown = takes(4.0 + times.prompt_work(4)) / alone;
        assert!((slowdown - SLOWDOWN).abs() < 0.1, "{slowdown}");
        // A single slow step does not cost much.
        let before = times.prompt_work(4);
        times.record(Load { decoders: 4, drafts: 0, prompts: before }, 1.0);
        assert!(times.prompt_work(4) >= before / 2.0);
        assert_eq!(times.prompt_work(64), 0.0, "of as many nothing is known");
    }

    #[test]
    fn now_and_then_a_step_goes_without_prompts() {
        let mut times = StepTimes::default();
        times.record(Load { decoders: 1, ..Load::default() }, 0.01);
        let steps = (0..1000).filter(|_| {
            let prompts = times.prompt_work(1);
            times.record(Load { decoders: 1, drafts: 0, prompts }, takes(1.0 + prompts));
            prompts == 0.0
        });
        assert_eq!(steps.count(), 15);
    }

    #[test]
    fn drafts_are_cheap_beside_few_sequences_and_dear_beside_many() {
        let mut times = StepTimes::default();
        assert!(times.price(1) < 0.5, "worth a try");
        for step in 0..100 {
            let drafts = step % 4;
            times.record(Load { decoders: 2, drafts, prompts: 0.0 }, takes((2 + drafts) as f64));
        }
        let [one, many] = [1, 500].map(|decoders| times.price(decoders));
        assert!(one < 0.03 && many > 0.85, "{one} {many}");
    }
}
