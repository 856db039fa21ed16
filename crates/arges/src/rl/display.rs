//! What is to be seen while a run goes on: a few lines that are drawn anew on a terminal, else a line a batch.

use std::io::IsTerminal as _;

use arges_train::rl::RlRun;
use arges_train::rl::metrics::Values;
use arges_train::rl::run::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub struct Display {
    bar: ProgressBar,
    batches: u64,
    /// What is sampled, and what the last batch and evaluation gave.
    sampling: String,
    learned: String,
    evaluated: String,
    lost: usize,
}

impl Display {
    pub fn new(run: &RlRun) -> Self {
        let batches = run.config().batches;
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::with_draw_target(Some(batches), ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("batch {pos}/{len} [{wide_bar}] {eta} left\n{msg}");
        bar.set_style(style.expect("the template is valid").progress_chars("=> "));
        bar.set_position(run.batch());
        let empty = String::new;
        Self { bar, batches, sampling: empty(), learned: empty(), evaluated: empty(), lost: 0 }
    }

    pub fn show(&mut self, event: Event) {
        match event {
            Event::Sampling { ended, awaited, dropped, .. } => {
                let dropped =
                    if dropped == 0 { String::new() } else { format!(", {dropped} groups dropped") };
                self.sampling = format!("sampling: {ended} of {awaited} responses{dropped}");
            }
            Event::Step { batch, step, values } => self.step(batch, step, &values),
            Event::Evaluated { step, values } => {
                let rates = values.iter().filter(|(name, _)| name.matches('/').count() < 3);
                let told: Vec<String> = rates.map(|(name, value)| format!("{name} {value:.3}")).collect();
                self.evaluated = format!("step {step}: {}", told.join(", "));
                self.line(&self.evaluated.clone());
            }
            Event::Lost { reason } => {
                self.lost += 1;
                // The first tells what is wrong; metrics count the rest.
                if self.lost == 1 {
                    self.line(&format!("a response was lost: {reason}"));
                }
            }
            Event::Widened { window } => self.line(&format!("responses may have {window} tokens now")),
            Event::Biased { correlation } => {
                self.line(&format!("the reward model favours long answers: correlation {correlation:.2}"));
            }
            Event::Saved { path, .. } => self.line(&format!("saved {}", path.display())),
        }
        self.bar.set_message([&*self.sampling, &self.learned, &self.evaluated].join("\n"));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn step(&mut self, batch: u64, step: u64, values: &Values) {
        let value = |tag: &str| values.iter().find(|(name, _)| name == tag).map(|(_, value)| *value);
        let some = |tag: &str| value(tag).unwrap_or(0.0);
        let clipped = 100.0 * some("train/clipped_positive").max(some("train/clipped_negative"));
        let (entropy, norm) = (some("train/entropy"), some("train/gradient_norm"));
        let Some(reward) = value("rollout/reward_mean") else {
            self.learned =
                format!("step {step}: entropy {entropy:.3}, gradient {norm:.3}, clipped {clipped:.1}%");
            return;
        };
        self.learned = format!(
            "step {step}: reward {reward:.3}, length {:.0} (p99 {:.0}), entropy {entropy:.3}, gradient {norm:.3}, clipped \
             {clipped:.1}%, mismatch {:.1e}, {:.0} tokens/s sampled, {:.0} learned",
            some("length/mean"),
            some("length/p99"),
            some("train_infer_logprob_maxdiff"),
            some("perf/generated_tokens_per_second"),
            some("perf/trained_tokens_per_second"),
        );
        self.bar.set_position(batch);
        if self.bar.is_hidden() {
            eprintln!("batch {batch}/{}, {}", self.batches, self.learned);
        }
    }

    fn line(&self, text: &str) {
        match self.bar.is_hidden() {
            true => eprintln!("{text}"),
            false => self.bar.println(text),
        }
    }
}
