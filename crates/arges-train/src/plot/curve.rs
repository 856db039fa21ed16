//! A metric over a run: its points, what is noise in them, and how few of them show the same.

/// A value at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub step: u64,
    /// Place on the horizontal axis.
    pub x: f64,
    /// NaN where there is no value.
    pub y: f64,
}

/// Fewer points than these are shown as they are.
const MIN_POINTS: usize = 200;
/// Steps of a run that make a half-life.
const HALF_LIVES: f64 = 200.0;
/// Noise, as a share of the range, up to which a curve is smooth as it is.
const SMOOTH: f64 = 1e-3;

/// Half-life in steps that suits the curve, or none where there is nothing to smooth.
pub fn half_life(points: &[Point]) -> Option<f64> {
    let finite: Vec<_> = points.iter().filter(|point| point.y.is_finite()).collect();
    if finite.len() < MIN_POINTS {
        return None;
    }
    let steps = finite[finite.len() - 1].step.saturating_sub(finite[0].step);
    let mut deviations: Vec<f64> =
        finite.windows(3).map(|w| (w[1].y - (w[0].y + w[2].y) / 2.0).abs()).collect();
    let (low, high) = bulk(finite.iter().map(|point| point.y).collect())?;
    let middle = deviations.len() / 2;
    let median = *deviations.select_nth_unstable_by(middle, f64::total_cmp).1;
    (median > SMOOTH * (high - low)).then(|| super::axis::nice((steps as f64 / HALF_LIVES).max(1.0)))
}

/// The exponentially weighted mean about each point, in which one `half_life` steps away, to either side, counts
/// half: unlike one of the past alone it does not lag behind. Gaps stay.
pub fn smoothed(points: &[Point], half_life: f64) -> Vec<Point> {
    let before = weighted(points.iter(), half_life);
    let mut after = weighted(points.iter().rev(), half_life);
    after.reverse();
    let mean = |(point, (before, after)): (&Point, (Weighted, Weighted))| {
        // The point itself is part of both.
        let (sum, weight) = (before.sum + after.sum - point.y, before.weight + after.weight - 1.0);
        Point { y: sum / weight, ..*point }
    };
    points.iter().zip(before.into_iter().zip(after)).map(mean).collect()
}

/// A sum of values by their weights, and of the weights.
#[derive(Clone, Copy, Default)]
struct Weighted {
    sum: f64,
    weight: f64,
}

/// For each point the sum over it and those that came before it.
fn weighted<'a>(points: impl Iterator<Item = &'a Point>, half_life: f64) -> Vec<Weighted> {
    let mut total = Weighted::default();
    let mut last = None;
    let add = |point: &Point| {
        if point.y.is_nan() {
            return total;
        }
        let decay = 0.5f64
            .powf(last.replace(point.step).unwrap_or(point.step).abs_diff(point.step) as f64 / half_life);
        total = Weighted { sum: total.sum * decay + point.y, weight: total.weight * decay + 1.0 };
        total
    };
    points.map(add).collect()
}

/// The range of all values but a few that lie far out.
pub fn bulk(mut values: Vec<f64>) -> Option<(f64, f64)> {
    const TAIL: f64 = 0.005;
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let tail = (TAIL * last as f64).round() as usize;
    Some((values[tail], values[last - tail]))
}

/// Smallest and largest of the finite values.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let widen = |range: Option<(f64, f64)>, value: f64| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    };
    values.into_iter().filter(|value| value.is_finite()).fold(None, widen)
}

/// Splits a line at its gaps.
pub fn pieces(line: &[Option<(f64, f64)>]) -> impl Iterator<Item = Vec<(f64, f64)>> + '_ {
    line.split(Option::is_none)
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.iter().flatten().copied().collect())
}

/// Leaves of a line, whose x rise, the first, lowest, highest and last point in each column `width` wide, which
/// draws the same.
pub fn thinned(line: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    let column = |point: &(f64, f64)| (point.0 / width).floor();
    let mut kept = Vec::new();
    for points in line.chunk_by(|a, b| column(a) == column(b)) {
        let by_height = |&a: &usize, &b: &usize| points[a].1.total_cmp(&points[b].1);
        let lowest = (0..points.len()).min_by(by_height).unwrap_or(0);
        let highest = (0..points.len()).max_by(by_height).unwrap_or(0);
        let mut indices = vec![0, lowest, highest, points.len() - 1];
        indices.sort_unstable();
        indices.dedup();
        kept.extend(indices.into_iter().map(|index| points[index]));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: u64, value: impl Fn(f64) -> f64) -> Vec<Point> {
        (0..count).map(|step| Point { step, x: step as f64, y: value(step as f64) }).collect()
    }

    /// A value from -1 to 1 that looks random.
    fn noise(x: f64) -> f64 {
        ((x * 12.9898).sin() * 43_758.545).fract()
    }

    #[test]
    fn only_many_and_noisy_points_are_smoothed() {
        assert_eq!(half_life(&points(1_000, noise)), Some(5.0));
        assert_eq!(half_life(&points(10_000, |x| 8.0 / (1.0 + x / 50.0) + 0.1 * noise(x))), Some(50.0));
        let spiky = points(1_000, |x| noise(x) + if x == 500.0 { 1e6 } else { 0.0 });
        assert_eq!(half_life(&spiky), Some(5.0), "one spike is no range");
        assert_eq!(half_life(&points(199, noise)), None);
        assert_eq!(half_life(&points(1_000, |x| (x / 300.0).cos())), None, "a cosine");
        assert_eq!(half_life(&points(1_000, |x| x)), None, "a line");
        assert_eq!(half_life(&points(1_000, |_| 3.0)), None, "a constant");
        assert_eq!(half_life(&points(1_000, |_| f64::NAN)), None, "gaps");
    }

    #[test]
    fn a_point_one_half_life_away_counts_half() {
        let smooth = smoothed(&points(3, |x| [8.0, f64::NAN, 2.0][x as usize]), 2.0);
        let expected = [(8.0 + 2.0 * 0.5) / 1.5, f64::NAN, (8.0 * 0.5 + 2.0) / 1.5];
        assert!(smooth[1].y.is_nan());
        assert!([0, 2].iter().all(|&index| (smooth[index].y - expected[index]).abs() < 1e-12), "{smooth:?}");
    }

    #[test]
    fn the_mean_does_not_lag_behind() {
        let smooth = smoothed(&points(1_000, |x| x), 10.0);
        assert!(smooth[400..600].iter().all(|point| (point.y - point.x).abs() < 1e-6));
    }

    #[test]
    fn the_mean_of_a_constant_is_the_constant() {
        assert!(smoothed(&points(500, |_| 3.0), 7.0).iter().all(|point| (point.y - 3.0).abs() < 1e-12));
    }

    #[test]
    fn a_thinned_line_keeps_ends_and_extremes_of_each_column() {
        let line: Vec<_> = (0..10_000).map(|x| (f64::from(x) / 100.0, noise(f64::from(x)))).collect();
        let thin = thinned(&line, 1.0);
        assert!(thin.len() <= 400, "{}", thin.len());
        assert_eq!((thin[0], thin[thin.len() - 1]), (line[0], line[9_999]));
        let heights = |line: &[(f64, f64)]| {
            let in_column = |column: f64| line.iter().filter(move |p| p.0.floor() == column).map(|p| p.1);
            (0..100).map(|column| range(in_column(f64::from(column)))).collect::<Vec<_>>()
        };
        assert_eq!(heights(&thin), heights(&line));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn gaps_split_a_line() {
        let line = [None, Some((0.0, 1.0)), Some((1.0, 2.0)), None, None, Some((4.0, 5.0))];
        assert_eq!(pieces(&line).collect::<Vec<_>>(), [vec![(0.0, 1.0), (1.0, 2.0)], vec![(4.0, 5.0)]]);
    }
}
