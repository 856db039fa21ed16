//! How many tokens prompts and answers have.

use std::fmt;
use std::str::FromStr;

use super::workload::Draws;

/// A distribution of lengths, in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    Fixed(usize),
    /// Every length from the first to the second, each as likely.
    Uniform(usize, usize),
    /// Many short and a few long ones, as users have: the median, and the standard deviation of the logarithm.
    LogNormal(usize, f64),
}

/// Lengths beyond which a log-normal distribution is cut, as multiples of its median.
const LONGEST: f64 = 32.0;

impl Lengths {
    /// A length of at least 1.
    pub fn draw(self, draws: &mut Draws) -> usize {
        match self {
            Self::Fixed(length) => length,
            Self::Uniform(low, high) => low + draws.below(high - low + 1),
            Self::LogNormal(median, sigma) => {
                let factor = (sigma * draws.normal()).exp().min(LONGEST);
                ((median as f64 * factor).round() as usize).max(1)
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let length = |text: &str| match text.parse::<usize>() {
            Ok(0) => Err("lengths are at least 1 token".to_owned()),
            Ok(length) => Ok(length),
            Err(error) => Err(format!("`{text}` is no number of tokens: {error}")),
        };
        if let Some(rest) = text.strip_prefix("lognormal:") {
            let (median, sigma) = rest.split_once(':').ok_or("expected lognormal:MEDIAN:SIGMA")?;
            let deviation: f64 = sigma.parse().map_err(|error| format!("`{sigma}` is no number: {error}"))?;
            if !(0.0..=10.0).contains(&deviation) {
                return Err(format!("SIGMA is from 0 to 10, not {sigma}"));
            }
            return Ok(Self::LogNormal(length(median)?, deviation));
        }
        match text.split_once("..") {
            None => length(text).map(Self::Fixed),
            Some((low, high)) => {
                let (low, high) = (length(low)?, length(high)?);
                if low > high {
                    return Err(format!("{low} is more than {high}"));
                }
                Ok(Self::Uniform(low, high))
            }
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Uniform(low, high) => write!(f, "{low}..{high}"),
            Self::LogNormal(median, sigma) => write!(f, "lognormal:{median}:{sigma}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_they_are_read() {
        for text in ["7", "3..9", "lognormal:200:0.8"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for wrong in ["0", "-1", "9..3", "0..3", "3..", "lognormal:5", "lognormal:5:x", "lognormal:5:-1", "x"]
        {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn draws_keep_to_the_distribution() {
        let mut draws = Draws::new(1, 0);
        let mut drawn = |lengths: &str| {
            let lengths: Lengths = lengths.parse().unwrap();
            let mut all: Vec<usize> = (0..2000).map(|_| lengths.draw(&mut draws)).collect();
            all.sort_unstable();
            all
        };
        assert!(drawn("5").iter().all(|&length| length == 5));
        let uniform = drawn("10..13");
        assert_eq!((uniform[0], uniform[1999]), (10, 13));
        let users = drawn("lognormal:100:1");
        assert!((85..115).contains(&users[1000]), "{}", users[1000]);
        assert!(users[1900] > 400 && users[1999] <= 3200, "{} {}", users[1900], users[1999]);
    }
}
