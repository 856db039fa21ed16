//! Axes: which values they show, where, and with which ticks.

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// By the decimal logarithm; values that are not positive have no place.
    Log,
}

impl Scale {
    /// A value's place on an endless axis.
    pub fn place(self, value: f64) -> Option<f64> {
        match self {
            Self::Linear => value.is_finite().then_some(value),
            Self::Log => (value > 0.0 && value.is_finite()).then(|| value.log10()),
        }
    }
}

/// A part of an axis, with its ticks.
#[derive(Debug, Clone)]
pub struct Axis {
    pub scale: Scale,
    /// The places at both ends.
    start: f64,
    end: f64,
    pub ticks: Vec<Tick>,
}

/// A value that is marked on an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    pub value: f64,
    /// Empty where there is only a line.
    pub label: String,
}

impl Axis {
    /// An axis of the places from `start` to `end`, with about as many ticks as `count` says.
    pub fn new(scale: Scale, (start, end): (f64, f64), count: usize) -> Self {
        let (start, end) = widened(scale, start, end);
        let ticks = match scale {
            Scale::Linear => linear_ticks(start, end, count),
            Scale::Log => log_ticks(start, end, count),
        };
        Self { scale, start, end, ticks }
    }

    /// How far along the axis a value lies: 0 at its start, 1 at its end. What lies beyond is moved to the end.
    pub fn position(&self, value: f64) -> Option<f64> {
        self.scale.place(value).map(|place| ((place - self.start) / (self.end - self.start)).clamp(0.0, 1.0))
    }
}

/// The range, made wide enough for its ticks to differ.
fn widened(scale: Scale, start: f64, end: f64) -> (f64, f64) {
    let middle = start / 2.0 + end / 2.0;
    let least = match scale {
        Scale::Linear if middle == 0.0 => 1e-12,
        Scale::Linear => middle.abs() * 1e-6,
        Scale::Log => 0.01,
    };
    if end - start >= least {
        return (start, end);
    }
    let is_one_value = scale == Scale::Linear && start == end && middle != 0.0;
    let half = if is_one_value { middle.abs() * 0.1 } else { least };
    (middle - half, middle + half)
}

/// The least of 1, 2 and 5 times a power of ten that is `value` or more.
pub fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|&nice| nice >= value * 0.999)
        .unwrap_or(10.0 * power)
}

fn linear_ticks(start: f64, end: f64, count: usize) -> Vec<Tick> {
    let values = multiples(start, end, nice((end - start) / count as f64));
    let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let step = if values.len() > 1 { values[1] - values[0] } else { largest };
    values.iter().map(|&value| Tick { value, label: label(value, step, largest) }).collect()
}

/// The multiples of `step` in a range.
fn multiples(start: f64, end: f64, step: f64) -> Vec<f64> {
    let first = (start / step - 1e-6).ceil();
    let count = (end / step + 1e-6).floor() - first;
    // Adding 0 makes of -0 a plain 0.
    (0..=count.max(0.0) as usize).map(|index| (first + index as f64) * step + 0.0).collect()
}

/// Powers of ten, with lines between; or 1, 2 and 5 times such; or, in a narrow range, evenly spaced values.
fn log_ticks(start: f64, end: f64, count: usize) -> Vec<Tick> {
    if end - start < 0.7 {
        return linear_ticks(10f64.powf(start), 10f64.powf(end), count);
    }
    let is_wide = end - start > 2.5;
    let stride = ((end - start) / count as f64).ceil().max(1.0) as i32;
    let in_range = |value: &f64| (start - 1e-9..=end + 1e-9).contains(&value.log10());
    let powers = start.floor() as i32..=end.ceil() as i32;
    let ticks = powers.flat_map(|power| {
        (1..10).map(move |digit| {
            let value = f64::from(digit) * 10f64.powi(power);
            let is_labelled =
                if is_wide { digit == 1 && power % stride == 0 } else { matches!(digit, 1 | 2 | 5) };
            Tick { value, label: if is_labelled { label(value, value, value) } else { String::new() } }
        })
    });
    ticks.filter(|tick| in_range(&tick.value) && (stride == 1 || !tick.label.is_empty())).collect()
}

const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];

/// A tick's value in few characters: `1k`, `10M`, `0.25`, `3e-4`.
fn label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(0.999e-2..1e15).contains(&largest) {
        let exponent = (value.abs().log10() + 1e-9).floor() as i32;
        let decimals = decimals(step / 10f64.powi(exponent));
        let digits = format!("{:.decimals$}", value / 10f64.powi(exponent));
        return format!("{}e{exponent}", trimmed(&digits));
    }
    match UNITS.iter().find(|(unit, _)| value.abs() >= *unit * (1.0 - 1e-9)) {
        Some((unit, suffix)) => {
            format!("{}{suffix}", trimmed(&format!("{:.*}", decimals(step / unit), value / unit)))
        }
        None => format!("{value:.*}", decimals(step)),
    }
}

/// Decimals that a multiple of `step` has.
fn decimals(step: f64) -> usize {
    (-step.log10() - 1e-6).ceil().clamp(0.0, 12.0) as usize
}

fn trimmed(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| &*tick.label).filter(|label| !label.is_empty()).collect()
    }

    fn linear(start: f64, end: f64) -> Axis {
        Axis::new(Scale::Linear, (start, end), 6)
    }

    fn log(start: f64, end: f64) -> Axis {
        Axis::new(Scale::Log, (start.log10(), end.log10()), 6)
    }

    #[test]
    fn linear_ticks_are_round_and_short() {
        assert_eq!(labels(&linear(0.0, 10_000.0)), ["0", "2k", "4k", "6k", "8k", "10k"]);
        assert_eq!(labels(&linear(0.0, 1_200.0)), ["0", "200", "400", "600", "800", "1k", "1.2k"]);
        assert_eq!(labels(&linear(0.0, 3e6)), ["0", "500k", "1M", "1.5M", "2M", "2.5M", "3M"]);
        assert_eq!(labels(&linear(0.0, 5e10)), ["0", "10B", "20B", "30B", "40B", "50B"]);
        assert_eq!(labels(&linear(1.9, 4.1)), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
        assert_eq!(labels(&linear(0.0, 3e-4)), ["0", "5e-5", "1e-4", "1.5e-4", "2e-4", "2.5e-4", "3e-4"]);
        assert_eq!(labels(&linear(9.8e-5, 1.02e-4)), ["9.8e-5", "9.9e-5", "1e-4", "1.01e-4", "1.02e-4"]);
        assert_eq!(labels(&linear(-0.25, 0.25)), ["-0.2", "-0.1", "0", "0.1", "0.2"]);
    }

    #[test]
    fn log_ticks_are_powers_of_ten_or_parts_of_them_or_evenly_spaced() {
        assert_eq!(labels(&log(1e-7, 1e-3)), ["1e-7", "1e-6", "1e-5", "1e-4", "1e-3"]);
        assert_eq!(labels(&log(0.9, 11.0)), ["1", "2", "5", "10"]);
        assert_eq!(labels(&log(2.0, 4.0)), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
        assert_eq!(labels(&log(1e-30, 1e30)).len(), 7);
    }

    #[test]
    fn every_range_has_ticks_that_differ() {
        for (start, end) in [
            (0.0f64, 0.0f64),
            (5.0, 5.0),
            (-3.0, -3.0),
            (1e16, 1e16 + 2.0),
            (1e-300, 2e-300),
            (-1e300, 1e300),
        ] {
            for scale in [Scale::Linear, Scale::Log] {
                if scale == Scale::Log && start.abs() > 300.0 {
                    continue;
                }
                let axis = Axis::new(scale, (start, end), 6);
                let mut labels = labels(&axis);
                assert!(labels.len() >= 2 && labels.len() < 20, "{start} {end} {scale:?}: {labels:?}");
                labels.dedup();
                assert!(labels.len() >= 2, "{start} {end} {scale:?}: {labels:?}");
            }
        }
    }

    #[test]
    fn values_lie_between_the_ends() {
        let axis = log(1.0, 100.0);
        assert_eq!(
            [0.5, 1.0, 10.0, 100.0, 1e9].map(|value| axis.position(value)),
            [0.0, 0.0, 0.5, 1.0, 1.0].map(Some)
        );
        assert_eq!([0.0, -1.0, f64::NAN].map(|value| axis.position(value)), [None; 3]);
        assert_eq!(linear(0.0, 8.0).position(2.0), Some(0.25));
    }

    #[test]
    fn nice_numbers_are_one_two_and_five() {
        assert_eq!([0.011, 1.0, 1.5, 3.0, 7.0, 199.0].map(nice), [0.02, 1.0, 2.0, 5.0, 10.0, 200.0]);
    }
}
