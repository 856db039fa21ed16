//! What is asked: a request for every number, and when it is asked. Both follow from the seed alone, so that two
//! servers get the same requests in whatever order they answer.

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};

use super::lengths::Lengths;

/// Words of which prompts consist; most tokenizers have one token for each, with the space before it.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "for", "that", "on", "with", "as", "it", "by", "from", "at", "are",
    "this", "be", "or", "an", "we", "was", "not", "have", "which", "can", "more", "all", "time", "one",
    "will", "first", "people", "new", "work", "may", "other", "part", "use", "made", "water", "over", "two",
    "after", "long", "day", "where", "most", "way", "down", "number", "world", "under", "year", "light",
    "small", "house", "place", "great", "group", "line", "city", "point", "side",
];

/// What requests are like.
#[derive(Debug, Clone)]
pub struct Workload {
    pub seed: u64,
    /// Tokens of a prompt, the shared beginning not counted.
    pub prompt: Lengths,
    pub output: Lengths,
    /// Tokens of the beginning that prompts share.
    pub shared_prefix: usize,
    /// How many such beginnings there are.
    pub prefixes: usize,
    /// Prompts are token ids below this, else words.
    pub vocab_size: Option<u32>,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub prompt: Prompt,
    pub max_tokens: usize,
}

/// Streams of random numbers, of which each purpose and each request has its own.
const ARRIVALS: u64 = u64::MAX;
const PREFIXES: u64 = 1 << 40;

impl Workload {
    /// Request `index`.
    pub fn request(&self, index: u64) -> Request {
        let mut draws = Draws::new(self.seed, index);
        let own = self.prompt.draw(&mut draws);
        let max_tokens = self.output.draw(&mut draws);
        let prefix = draws.below(self.prefixes.max(1)) as u64;
        let mut prefix = Draws::new(self.seed, PREFIXES + prefix);
        let prompt = match self.vocab_size {
            Some(vocab_size) => {
                let mut ids: Vec<u32> = (0..self.shared_prefix).map(|_| prefix.id(vocab_size)).collect();
                ids.extend((0..own).map(|_| draws.id(vocab_size)));
                Prompt::Ids(ids)
            }
            None => {
                let mut words: Vec<&str> = (0..self.shared_prefix).map(|_| prefix.word()).collect();
                words.extend((0..own).map(|_| draws.word()));
                Prompt::Text(words.join(" "))
            }
        };
        Request { prompt, max_tokens }
    }

    /// Seconds from the start at which requests arrive: a Poisson process of `rate` a second.
    pub fn arrivals(&self, rate: f64) -> impl Iterator<Item = f64> + use<> {
        let mut draws = Draws::new(self.seed, ARRIVALS);
        let mut time = 0.0;
        std::iter::repeat_with(move || {
            time += -(1.0 - draws.fraction()).ln() / rate;
            time
        })
    }
}

/// Random numbers.
#[derive(Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// From 0 up to and without 1.
    pub fn fraction(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.fraction() * limit as f64) as usize
    }

    /// From the standard normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.fraction(), self.fraction());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    fn id(&mut self, vocab_size: u32) -> u32 {
        self.below(vocab_size as usize) as u32
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 7,
            prompt: Lengths::Uniform(5, 9),
            output: Lengths::Fixed(3),
            shared_prefix: 20,
            prefixes: 2,
            vocab_size: Some(100),
        }
    }

    fn ids(request: Request) -> Vec<u32> {
        match request.prompt {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn a_request_follows_from_seed_and_number() {
        let (a, b) = (workload(), Workload { seed: 8, ..workload() });
        assert_eq!(a.request(3), a.request(3));
        assert_ne!(a.request(3), a.request(4));
        assert_ne!(a.request(3), b.request(3));
    }

    #[test]
    fn prompts_share_their_beginnings() {
        let prompts: Vec<Vec<u32>> = (0..40).map(|index| ids(workload().request(index))).collect();
        let mut beginnings: Vec<&[u32]> = prompts.iter().map(|ids| &ids[..20]).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        assert_eq!(beginnings.len(), 2);
        assert!(prompts.iter().all(|ids| (25..=29).contains(&ids.len()) && ids.iter().all(|id| *id < 100)));
        let mut ends: Vec<&[u32]> = prompts.iter().map(|ids| &ids[20..]).collect();
        ends.sort_unstable();
        ends.dedup();
        assert_eq!(ends.len(), 40);
    }

    #[test]
    fn texts_have_as_many_words() {
        let words = Workload { vocab_size: None, prompt: Lengths::Fixed(5), ..workload() };
        let Prompt::Text(text) = words.request(0).prompt else { panic!("no text") };
        assert_eq!(text.split(' ').count(), 25);
    }

    #[test]
    fn arrivals_have_the_rate_and_vary() {
        let times: Vec<f64> = workload().arrivals(50.0).take(5000).collect();
        assert!(times.is_sorted());
        assert!((times[4999] - 100.0).abs() < 5.0, "{}", times[4999]);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (mean, square) =
            (gaps.iter().sum::<f64>() / 4999.0, gaps.iter().map(|gap| gap * gap).sum::<f64>() / 4999.0);
        // An exponential distribution's standard deviation is its mean.
        assert!(((square - mean * mean).sqrt() / mean - 1.0).abs() < 0.1);
    }
}
