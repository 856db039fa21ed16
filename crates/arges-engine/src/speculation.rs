//! Drafts of what a sequence may say next, taken from where its own tokens said the same before (prompt lookup decoding,
//! Saxena 2023).
//!
//! A draft costs a row of a step, whether it is right or not. It is worth that where its probability of being right,
//! learned as the sequence grows, is above what a row costs in tokens.

/// Tokens that must be the same as before.
const CONTEXT: usize = 3;
/// Weight of a new observation.
const RATE: f64 = 0.1;
/// Most places that are remembered.
const MOST_PLACES: usize = 1 << 16;

pub(crate) struct Drafter {
    /// For a hash of [`CONTEXT`] tokens, the place after their last occurrence; 0 for none. Places with the same hash
    /// displace each other.
    places: Vec<u32>,
    /// Tokens before this place have been entered.
    entered: usize,
    /// The last guess, whether or not it was drafted, and the length of the sequence then.
    guess: Vec<u32>,
    guessed_at: usize,
    /// Probability that a guess is right if all before it in the draft are.
    right: f64,
}

impl Drafter {
    pub fn new() -> Self {
        Self { places: Vec::new(), entered: CONTEXT, guess: Vec::new(), guessed_at: 0, right: 0.6 }
    }

    /// The tokens to try after `tokens`, `most` at most; the first is tried where it is right with a probability above
    /// `price`, the next where both are, and so on.
    pub fn draft(&mut self, tokens: &[u32], price: f64, most: usize) -> &[u32] {
        self.learn(tokens);
        self.enter(tokens);
        self.guess.clear();
        self.guessed_at = tokens.len();
        let Some(from) = self.place(tokens) else { return &[] };
        for place in from..from + most.max(1) {
            // Past the end goes on with the draft itself: what repeats has a period.
            let token = tokens.get(place).or_else(|| self.guess.get(place - tokens.len()));
            let Some(&token) = token else { break };
            self.guess.push(token);
        }
        let worth = if price <= 0.0 { most as f64 } else { price.ln() / self.right.ln() };
        &self.guess[..self.guess.len().min(most).min(worth as usize)]
    }

    /// Holds the last guess against what came.
    fn learn(&mut self, tokens: &[u32]) {
        let came = tokens.get(self.guessed_at..).unwrap_or_default();
        for (guess, came) in self.guess.iter().zip(came) {
            let right = f64::from(u8::from(guess == came));
            self.right = (self.right + RATE * (right - self.right)).min(0.99);
            if guess != came {
                break;
            }
        }
    }

    fn enter(&mut self, tokens: &[u32]) {
        let size = (2 * tokens.len()).next_power_of_two().clamp(256, MOST_PLACES);
        if self.places.len() < size {
            self.places = vec![0; size];
            self.entered = CONTEXT;
        }
        for place in self.entered..tokens.len() {
            let slot = self.slot(&tokens[place - CONTEXT..place]);
            self.places[slot] = place as u32;
        }
        self.entered = tokens.len().max(CONTEXT);
    }

    /// What came after the same tokens as the last ones.
    fn place(&self, tokens: &[u32]) -> Option<usize> {
        let last = tokens.len().checked_sub(CONTEXT)?;
        let place = self.places[self.slot(&tokens[last..])] as usize;
        let same = place >= CONTEXT && tokens[place - CONTEXT..place] == tokens[last..];
        same.then_some(place)
    }

    fn slot(&self, context: &[u32]) -> usize {
        let mix = |hash: u64, &token: &u32| (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (context.iter().fold(0, mix) >> 40) as usize & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_same_tokens_last_time_is_tried() {
        let tokens = [1, 2, 3, 4, 5, 1, 2, 3, 6, 9, 1, 2, 3];
        let mut drafter = Drafter::new();
        assert_eq!(drafter.draft(&tokens[..2], 0.0, 2), [0; 0]);
        assert_eq!(drafter.draft(&tokens[..5], 0.0, 2), [0; 0]);
        assert_eq!(drafter.draft(&tokens[..8], 0.0, 2), [4, 5]);
        assert_eq!(drafter.draft(&tokens, 0.0, 2), [6, 9]);
    }

    #[test]
    fn a_draft_goes_on_from_itself_where_a_period_is_shorter() {
        let mut drafter = Drafter::new();
        assert_eq!(drafter.draft(&[7, 8, 7, 8, 7, 8, 7], 0.0, 5), [8, 7, 8, 7, 8]);
    }

    #[test]
    fn drafts_grow_where_they_prove_right_and_stop_where_they_do_not() {
        let mut drafter = Drafter::new();
        let mut tokens: Vec<u32> = (0..10).collect();
        for _ in 0..60 {
            tokens.push(tokens[tokens.len() - 10]);
            drafter.draft(&tokens, 0.3, 16);
        }
        assert_eq!(drafter.draft(&tokens, 0.3, 16).len(), 16);
        // The same again and again, with something new each time the draft is known.
        for new in 100..160 {
            tokens.extend([0, 1, 2]);
            drafter.draft(&tokens, 0.3, 16);
            tokens.push(new);
            drafter.draft(&tokens, 0.3, 16);
        }
        tokens.extend([0, 1, 2]);
        assert_eq!(drafter.draft(&tokens, 0.3, 16), [0; 0]);
        assert_eq!(drafter.draft(&tokens, 0.0, 1).len(), 1, "nothing is too dear where rows are free");
    }
}
