//! What a chart shows: which metrics, as which curves, on which axes, under what words.

use super::axis::{Axis, Scale};
use super::curve::{Point, bulk, half_life, range, smoothed};
use super::{PlotOptions, RunMetrics, XAxis};

/// The metric that counts the tokens trained on.
pub const TOKENS: &str = "train/tokens";

/// Curves on common axes.
pub struct Chart {
    /// The metric's tag, or a name for several.
    pub name: String,
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// How to read the curves.
    pub note: Option<String>,
}

/// One curve.
pub struct Series {
    pub label: String,
    /// Index of its colour.
    pub colour: usize,
    pub points: Vec<Point>,
    /// The same without noise.
    pub smooth: Option<Vec<Point>>,
    /// Points are so few that each is marked.
    pub has_markers: bool,
}

/// Metrics that share a chart.
struct Group {
    name: String,
    title: String,
    /// Tags, and what sets each apart.
    tags: Vec<(String, String)>,
}

/// A tag's parts: `eval/<source>/loss`; the source may hold slashes itself.
#[derive(Clone, Copy)]
struct Tag<'a> {
    phase: &'a str,
    source: Option<&'a str>,
    metric: &'a str,
}

impl<'a> Tag<'a> {
    fn new(tag: &'a str) -> Self {
        let (phase, rest) = tag.split_once('/').unwrap_or(("", tag));
        match rest.rsplit_once('/') {
            Some((source, metric)) => Self { phase, source: Some(source), metric },
            None => Self { phase, source: None, metric: rest },
        }
    }

    fn title(&self) -> String {
        let phase = match self.phase {
            "eval" => "Evaluation ",
            "train" if self.metric == "loss" => "Training ",
            "train" | "" => "",
            other => &format!("{other} "),
        };
        let title = capitalised(&format!("{phase}{}", words(self.metric)));
        self.source.map_or(title.clone(), |source| format!("{title}: {source}"))
    }
}

/// The charts that the metrics of these runs make: first those of several metrics, then one of each.
pub fn charts(runs: &[RunMetrics], options: &PlotOptions) -> Vec<Chart> {
    let mut tags: Vec<&str> = Vec::new();
    for (tag, _) in runs.iter().flat_map(|run| &run.metrics).flat_map(|metrics| &metrics.values) {
        if !tags.contains(&tag.as_str()) {
            tags.push(tag);
        }
    }
    let single = |tag: &&str| {
        let tags = vec![(tag.to_string(), String::new())];
        Group { name: tag.to_string(), title: Tag::new(tag).title(), tags }
    };
    let groups = joined(&tags).into_iter().chain(by_source(&tags)).chain(tags.iter().map(single));
    groups.map(|group| chart(runs, group, options)).collect()
}

/// Metrics of training that evaluation has too.
fn joined(tags: &[&str]) -> Vec<Group> {
    let metrics =
        tags.iter().filter_map(|tag| tag.strip_prefix("train/").filter(|metric| !metric.contains('/')));
    let both = metrics.filter(|metric| tags.contains(&&*format!("eval/{metric}")));
    let group = |metric: &str| {
        let tags = [("train", "training"), ("eval", "evaluation")];
        let tags = tags.map(|(phase, label)| (format!("{phase}/{metric}"), label.to_owned()));
        Group { name: metric.to_owned(), title: capitalised(&words(metric)), tags: tags.into() }
    };
    both.map(group).collect()
}

/// Metrics of several sources, as long as colours can tell them apart.
fn by_source(tags: &[&str]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for &tag in tags {
        let parts = Tag::new(tag);
        let Some(source) = parts.source else { continue };
        let name = format!("{}/{} by source", parts.phase, parts.metric);
        let entry = (tag.to_owned(), source.to_owned());
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.tags.push(entry),
            None => {
                let title = format!("{} by source", Tag { source: None, ..parts }.title());
                groups.push(Group { name, title, tags: vec![entry] });
            }
        }
    }
    groups.retain(|group| (2..=super::draw::COLOURS.len()).contains(&group.tags.len()));
    groups
}

fn chart(runs: &[RunMetrics], group: Group, options: &PlotOptions) -> Chart {
    let metric = Tag::new(&group.tags[0].0).metric.to_owned();
    let mut series = series(runs, &group, options.x);
    let x_label = x_label(&mut series, options.x);
    let note = smooth(&mut series);
    let scale =
        if (options.log || metric == "lr") && has_logarithms(&series) { Scale::Log } else { Scale::Linear };
    let (y, beyond) = y_axis(&series, scale);
    let beyond = (beyond > 0).then(|| format!("{beyond} of the values lie beyond the axis"));
    let note = [note, beyond].into_iter().flatten().collect::<Vec<_>>().join("; ");
    Chart {
        name: group.name,
        title: group.title,
        x_label,
        y_label: match metric.as_str() {
            "loss" => "loss (nats per token)".to_owned(),
            "entropy" => "entropy (nats per token)".to_owned(),
            other => words(other),
        },
        x: x_axis(&series),
        y,
        series,
        note: (!note.is_empty()).then_some(note),
    }
}

/// A curve for each run and tag that has values. Runs have colours; where there is one run, tags have.
fn series(runs: &[RunMetrics], group: &Group, x: XAxis) -> Vec<Series> {
    let by_run = runs.len() > 1 && (group.tags.len() == 1 || joins_phases(group));
    let mut series = Vec::new();
    for (run_index, run) in runs.iter().enumerate() {
        for (tag_index, (tag, tag_label)) in group.tags.iter().enumerate() {
            let points = points(run, tag, x);
            let label = match (runs.len(), tag_label.as_str()) {
                (1, label) => label.to_owned(),
                (_, "") => run.name.clone(),
                (_, label) => format!("{}, {label}", run.name),
            };
            let colour = if by_run { run_index } else { run_index * group.tags.len() + tag_index };
            let has_markers = tag.starts_with("eval/") && points.len() <= MAX_MARKERS;
            series.push(Series { label, colour, points, smooth: None, has_markers });
        }
    }
    series.retain(|series| !series.points.is_empty());
    series
}

/// Points beyond which markers would hide the curve.
const MAX_MARKERS: usize = 150;

/// Whether markers alone tell the group's tags apart.
fn joins_phases(group: &Group) -> bool {
    group.tags.iter().all(|(tag, _)| Tag::new(tag).source.is_none())
}

/// Values further out are shown there, so that differences of any two are finite.
const LARGEST: f64 = 1e300;

fn points(run: &RunMetrics, tag: &str, x: XAxis) -> Vec<Point> {
    let start = run.metrics.first().map_or(0.0, |metrics| metrics.time);
    let mut tokens = 0.0;
    let mut points = Vec::new();
    for metrics in &run.metrics {
        let value = |tag: &str| metrics.values.iter().find(|(name, _)| name == tag).map(|(_, value)| *value);
        tokens = value(TOKENS).unwrap_or(tokens);
        let x = match x {
            XAxis::Step => metrics.step as f64,
            XAxis::Tokens => tokens,
            XAxis::Time => metrics.time - start,
        };
        if let Some(y) = value(tag).filter(|_| x.is_finite()) {
            points.push(Point { step: metrics.step, x, y: y.clamp(-LARGEST, LARGEST) });
        }
    }
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

/// The words under the axis; a unit of time that suits is put in place of seconds.
fn x_label(series: &mut [Series], x: XAxis) -> String {
    match x {
        XAxis::Step => "step".to_owned(),
        XAxis::Tokens => "tokens trained on".to_owned(),
        XAxis::Time => {
            let points = || series.iter().flat_map(|series| &series.points);
            let longest = points().fold(0.0f64, |longest, point| longest.max(point.x));
            let units = [(3600.0, "hours"), (60.0, "minutes")];
            let (seconds, unit) =
                units.into_iter().find(|(seconds, _)| longest >= 2.0 * seconds).unwrap_or((1.0, "seconds"));
            series.iter_mut().flat_map(|series| &mut series.points).for_each(|point| point.x /= seconds);
            format!("time since the start ({unit})")
        }
    }
}

/// Smooths what is noisy, each curve with the half-life that suits it, and says so.
fn smooth(series: &mut [Series]) -> Option<String> {
    let half_lives: Vec<Option<f64>> = series.iter().map(|series| half_life(&series.points)).collect();
    let first = half_lives.iter().flatten().next().copied()?;
    let is_common = half_lives.iter().flatten().all(|&half_life| half_life == first);
    for (series, half_life) in series.iter_mut().zip(half_lives) {
        let Some(half_life) = half_life else { continue };
        series.smooth = Some(smoothed(&series.points, half_life));
        if !is_common {
            series.label = format!("{} (half-life {half_life} steps)", series.label);
        }
    }
    let note = "faint: every step, strong: smoothed";
    Some(if is_common { format!("{note}, half-life {first} steps") } else { note.to_owned() })
}

/// Whether nothing of the curves is lost on a logarithmic axis but zeros.
fn has_logarithms(series: &[Series]) -> bool {
    range(series.iter().flat_map(|series| &series.points).map(|point| point.y))
        .is_some_and(|(low, high)| low >= 0.0 && high > 0.0)
}

/// A range that starts at 0 where that is close.
fn with_zero((low, high): (f64, f64), share: f64) -> (f64, f64) {
    if low > 0.0 && low <= share * high { (0.0, high) } else { (low, high) }
}

pub fn x_axis(series: &[Series]) -> Axis {
    let places = range(series.iter().flat_map(|series| &series.points).map(|point| point.x));
    Axis::new(Scale::Linear, with_zero(places.unwrap_or((0.0, 1.0)), 0.05), 8)
}

/// Decades that a logarithmic axis shows at most.
const MAX_DECADES: f64 = 8.0;

/// The axis of values, and how many values lie beyond it: where single values of a noisy curve are far from all
/// others, these are what is shown.
pub fn y_axis(series: &[Series], scale: Scale) -> (Axis, usize) {
    let places =
        |points: &[Point]| points.iter().filter_map(|point| scale.place(point.y)).collect::<Vec<_>>();
    let raw: Vec<Vec<f64>> = series.iter().map(|series| places(&series.points)).collect();
    let full = range(raw.iter().flatten().copied()).unwrap_or((0.0, 1.0));
    let shown = series.iter().zip(&raw).flat_map(|(series, raw)| match &series.smooth {
        Some(smooth) => {
            [places(smooth), bulk(raw.clone()).map_or(Vec::new(), |ends| vec![ends.0, ends.1])].concat()
        }
        None => raw.clone(),
    });
    let shown = range(shown).unwrap_or(full);
    let (low, high) = if full.1 - full.0 > 2.0 * (shown.1 - shown.0) { shown } else { full };
    let low = if scale == Scale::Log { low.max(high - MAX_DECADES) } else { low };
    let margin = (high - low) * 0.04;
    let beyond = raw.iter().flatten().filter(|&&place| place < low - margin || place > high + margin).count();
    let start = if scale == Scale::Linear && low >= 0.0 { with_zero((low, high), 0.1).0 } else { low };
    let start = if scale == Scale::Linear && start == 0.0 { start } else { start - margin };
    (Axis::new(scale, (start, high + margin), 6), beyond)
}

/// A metric's name as one says it.
fn words(metric: &str) -> String {
    match metric {
        "lr" => "learning rate".to_owned(),
        "balance_loss" => "load-balancing loss".to_owned(),
        other => other.replace('_', " "),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A run whose metrics are these at every one of `steps`.
    fn run(name: &str, steps: u64, values: impl Fn(u64) -> Vec<(&'static str, f64)>) -> RunMetrics {
        let owned =
            |values: Vec<(&str, f64)>| values.into_iter().map(|(tag, y)| (tag.to_owned(), y)).collect();
        let metrics =
            (1..=steps).map(|step| Metrics { step, time: 60.0 * step as f64, values: owned(values(step)) });
        RunMetrics { name: name.to_owned(), metrics: metrics.collect() }
    }

    fn named<'a>(charts: &'a [Chart], name: &str) -> &'a Chart {
        charts.iter().find(|chart| chart.name == name).unwrap_or_else(|| panic!("no chart {name}"))
    }

    fn options(x: XAxis) -> PlotOptions {
        PlotOptions { x, ..PlotOptions::default() }
    }

    #[test]
    fn metrics_that_belong_together_share_a_chart() {
        let tags = ["train/loss", "eval/loss", "eval/a/b/loss", "eval/c/loss", "train/lr", "speed"];
        let charts = charts(&[run("x", 3, |_| tags.map(|tag| (tag, 1.0)).into())], &PlotOptions::default());
        let names: Vec<_> = charts.iter().map(|chart| &*chart.name).collect();
        assert_eq!(names, [&["loss", "eval/loss by source"], &tags[..]].concat());
        let titles: Vec<_> = charts.iter().map(|chart| &*chart.title).collect();
        let expected =
            ["Loss", "Evaluation loss by source", "Training loss", "Evaluation loss", "Evaluation loss: a/b"];
        assert_eq!(titles[..5], expected);
        assert_eq!(titles[5..], ["Evaluation loss: c", "Learning rate", "Speed"]);
        let labels =
            |name| named(&charts, name).series.iter().map(|series| &*series.label).collect::<Vec<_>>();
        assert_eq!(labels("loss"), ["training", "evaluation"]);
        assert_eq!(labels("eval/loss by source"), ["a/b", "c"]);
    }

    #[test]
    fn runs_have_a_colour_each_and_evaluation_has_markers() {
        let values = |_| vec![("train/loss", 1.0), ("eval/loss", 2.0)];
        let charts = charts(&[run("x", 3, values), run("y", 3, values)], &PlotOptions::default());
        let series: Vec<_> = named(&charts, "loss").series.iter().collect();
        let look = series.iter().map(|series| (&*series.label, series.colour, series.has_markers));
        let expected = [
            ("x, training", 0, false),
            ("x, evaluation", 0, true),
            ("y, training", 1, false),
            ("y, evaluation", 1, true),
        ];
        assert_eq!(look.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_horizontal_axis_tells_steps_tokens_or_time() {
        // Evaluation does not count tokens: those of the last step hold.
        let values =
            |step| if step == 4 { vec![("eval/loss", 1.0)] } else { vec![(TOKENS, 100.0 * step as f64)] };
        for (x, place, label) in [
            (XAxis::Step, 4.0, "step"),
            (XAxis::Tokens, 300.0, "tokens trained on"),
            (XAxis::Time, 3.0, "time since the start (minutes)"),
        ] {
            let charts = charts(&[run("x", 4, values)], &options(x));
            let chart = named(&charts, "eval/loss");
            assert_eq!((chart.series[0].points[0].x, &*chart.x_label), (place, label));
        }
    }

    #[test]
    fn axes_are_logarithmic_for_rates_and_where_asked_for_but_never_where_values_are_negative() {
        let values =
            |step| vec![("train/lr", 1e-3), ("train/loss", step as f64), ("reward", step as f64 - 2.0)];
        let runs = [run("x", 5, values)];
        let scales = |options: &PlotOptions| {
            charts(&runs, options).iter().map(|chart| chart.y.scale).collect::<Vec<_>>()
        };
        assert_eq!(scales(&PlotOptions::default()), [Scale::Log, Scale::Linear, Scale::Linear]);
        let log = PlotOptions { log: true, ..PlotOptions::default() };
        assert_eq!(scales(&log), [Scale::Log, Scale::Log, Scale::Linear]);
    }

    #[test]
    fn spikes_of_a_noisy_curve_do_not_set_the_axis_and_are_counted() {
        let noisy = |step: u64| 1.0 + (step * 61 % 100) as f64 / 100.0;
        let values = |step| vec![("train/gradient_norm", if step % 400 == 0 { 1e4 } else { noisy(step) })];
        let charts = charts(&[run("x", 1_000, values)], &PlotOptions::default());
        let note = charts[0].note.as_deref().unwrap();
        assert!(note.contains("half-life 5 steps; 2 of the values lie beyond the axis"), "{note}");
        assert!(charts[0].y.ticks.iter().all(|tick| tick.value < 1e4));
    }

    #[test]
    fn half_lives_that_differ_are_told_of_each_run() {
        let values = |step: u64| vec![("train/loss", (step * 61 % 100) as f64)];
        let charts =
            charts(&[run("long", 4_000, values), run("short", 400, values)], &PlotOptions::default());
        let labels: Vec<_> = charts[0].series.iter().map(|series| &*series.label).collect();
        assert_eq!(labels, ["long (half-life 20 steps)", "short (half-life 2 steps)"]);
    }
}
