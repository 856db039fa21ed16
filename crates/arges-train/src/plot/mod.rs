//! Charts of the metrics of runs, as SVG and PNG.
//!
//! [`read`](crate::metrics::read) gives the metrics, `curve` turns those of one tag into points and smooths them,
//! `chart` says which curves share a chart, and under what words, `axis` places values and ticks, `draw` draws a
//! chart on whatever the plotters crate can draw on, and `image` makes files of it. The font is embedded, since
//! machines that train often have none. Figures from elsewhere are drawn by the same hand: [`LineChart`].

mod axis;
mod chart;
mod curve;
mod draw;
mod image;
mod lines;

pub use lines::{Line, LineChart};

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::metrics::{self, Metrics, MetricsError};
use chart::Chart;

/// Where the charts go and what they show.
#[derive(Debug, Clone, Default)]
pub struct PlotOptions {
    /// Directory of the charts; by default `plots` in the first run's.
    pub directory: Option<PathBuf>,
    /// The charts to draw: tags (`train/loss`) and names of those that join several (`loss`). None stands for all.
    pub metrics: Vec<String>,
    pub x: XAxis,
    /// Logarithmic values, in every chart that has positive values.
    pub log: bool,
}

/// What the horizontal axis tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XAxis {
    #[default]
    Step,
    /// Tokens trained on: the metric `train/tokens`.
    Tokens,
    /// Time since the run's first metrics.
    Time,
}

/// What can go wrong with charts.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// No run was given.
    #[error("no run to plot")]
    NoRun,
    /// The metrics of a run cannot be read.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A run has not got to its first metrics.
    #[error("{}: no metrics yet", path.display())]
    Empty { path: PathBuf },
    /// Tokens are the horizontal axis, and a run does not count them.
    #[error("{}: no metric `{}`, which the axis of tokens needs", path.display(), chart::TOKENS)]
    NoTokens { path: PathBuf },
    /// No run has the metric.
    #[error("no metric `{tag}`; there are {}", known.join(", "))]
    UnknownMetric { tag: String, known: Vec<String> },
    /// A chart cannot be drawn.
    #[error("cannot draw {}: {reason}", path.display())]
    Draw { path: PathBuf, reason: String },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// A run's name and metrics.
struct RunMetrics {
    name: String,
    metrics: Vec<Metrics>,
}

/// Draws a chart of every metric of the runs, and of metrics that belong together, and gives the files' paths.
///
/// A file is named by its tag: `train-loss.svg` and `train-loss.png` show `train/loss`, `loss.svg` that of training
/// and of evaluation.
///
/// # Errors
/// A run without metrics, a metric that no run has, and files that cannot be written.
pub fn plot(runs: &[PathBuf], options: &PlotOptions) -> Result<Vec<PathBuf>, PlotError> {
    let first = runs.first().ok_or(PlotError::NoRun)?;
    let directory = options.directory.clone().unwrap_or_else(|| first.join("plots"));
    let charts = chosen(chart::charts(&read(runs, options.x)?, options), &options.metrics)?;
    fs::create_dir_all(&directory).map_err(|source| PlotError::Write { path: directory.clone(), source })?;
    let mut paths = Vec::with_capacity(2 * charts.len());
    let mut names = HashSet::new();
    for chart in &charts {
        let stem = directory.join(file_stem(&chart.name, &mut names));
        for (extension, render) in [("svg", image::svg as Render), ("png", image::png)] {
            let path = stem.with_added_extension(extension);
            let bytes = render(chart).map_err(|reason| PlotError::Draw { path: path.clone(), reason })?;
            fs::write(&path, bytes).map_err(|source| PlotError::Write { path: path.clone(), source })?;
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Makes a file of a chart.
type Render = fn(&Chart) -> Result<Vec<u8>, String>;

fn read(runs: &[PathBuf], x: XAxis) -> Result<Vec<RunMetrics>, PlotError> {
    let names = names(runs);
    let read = |(path, name): (&PathBuf, String)| {
        let metrics = metrics::read(path)?;
        let file = || path.join(metrics::FILE_NAME);
        if metrics.is_empty() {
            return Err(PlotError::Empty { path: file() });
        }
        let counts_tokens =
            metrics.iter().flat_map(|metrics| &metrics.values).any(|(tag, _)| tag == chart::TOKENS);
        if x == XAxis::Tokens && !counts_tokens {
            return Err(PlotError::NoTokens { path: file() });
        }
        Ok(RunMetrics { name, metrics })
    };
    runs.iter().zip(names).map(read).collect()
}

/// The runs' directories, by their last names where these differ.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let short: Option<Vec<String>> = runs.iter().map(|path| last(path)).collect();
    let is_distinct = |names: &Vec<String>| names.iter().collect::<HashSet<_>>().len() == names.len();
    short.filter(is_distinct).unwrap_or_else(|| runs.iter().map(|path| path.display().to_string()).collect())
}

/// The charts of these names, or all where none are given.
fn chosen(charts: Vec<Chart>, tags: &[String]) -> Result<Vec<Chart>, PlotError> {
    if let Some(tag) = tags.iter().find(|tag| charts.iter().all(|chart| chart.name != **tag)) {
        let known = charts.into_iter().map(|chart| chart.name).collect();
        return Err(PlotError::UnknownMetric { tag: tag.clone(), known });
    }
    Ok(charts.into_iter().filter(|chart| tags.is_empty() || tags.contains(&chart.name)).collect())
}

/// A file's name for a chart's, which no other chart has taken.
fn file_stem(name: &str, taken: &mut HashSet<String>) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let mut stem = plain.clone();
    let mut number = 2;
    while !taken.insert(stem.to_lowercase()) {
        stem = format!("{plain}-{number}");
        number += 1;
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricsWriter;

    /// A run of `losses`, one a step.
    fn run(directory: &Path, name: &str, losses: &[f64]) -> PathBuf {
        let run = directory.join(name);
        fs::create_dir_all(&run).unwrap();
        let mut writer = MetricsWriter::open(&run, 0).unwrap();
        for (step, &loss) in (1..).zip(losses) {
            let values = vec![("train/loss".to_owned(), loss), ("eval/a & <b>/loss".to_owned(), loss)];
            writer.write(&Metrics { step, time: step as f64, values }).unwrap();
        }
        run
    }

    fn file_names(paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_metric_has_an_svg_and_a_png() {
        let directory = tempfile::tempdir().unwrap();
        let run = run(directory.path(), "run", &[3.0, f64::NAN, 1e300, 2.0]);
        let paths = plot(std::slice::from_ref(&run), &PlotOptions::default()).unwrap();
        let expected = ["train-loss.svg", "train-loss.png", "eval-a----b--loss.svg", "eval-a----b--loss.png"];
        assert_eq!(file_names(&paths), expected);
        assert!(paths.iter().all(|path| path.parent() == Some(&run.join("plots"))));
        let svg = fs::read_to_string(&paths[2]).unwrap();
        assert!(svg.starts_with("<svg width=\"960\" height=\"540\" stroke-linejoin"), "{}", &svg[..80]);
        assert!(svg.contains("Evaluation loss: a &amp; &lt;b&gt;") && svg.trim_end().ends_with("</svg>"));
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&paths[1]).unwrap()));
        assert_eq!(decoder.read_info().unwrap().info().size(), (1920, 1080));
    }

    #[test]
    fn metrics_without_a_single_value_are_drawn_empty() {
        let directory = tempfile::tempdir().unwrap();
        let run = run(directory.path(), "run", &[f64::NAN]);
        let options =
            PlotOptions { metrics: vec!["train/loss".to_owned()], log: true, ..PlotOptions::default() };
        assert_eq!(plot(&[run], &options).unwrap().len(), 2);
    }

    #[test]
    fn chosen_metrics_go_where_they_should() {
        let directory = tempfile::tempdir().unwrap();
        let runs = ["a", "b"].map(|name| run(directory.path(), name, &[2.0, 1.0]));
        let elsewhere = directory.path().join("deep/down");
        let metrics = vec!["train/loss".to_owned()];
        let options = PlotOptions { directory: Some(elsewhere.clone()), metrics, ..PlotOptions::default() };
        let paths = plot(&runs, &options).unwrap();
        assert_eq!(paths, [elsewhere.join("train-loss.svg"), elsewhere.join("train-loss.png")]);
        let unknown = PlotOptions { metrics: vec!["loss".to_owned()], ..PlotOptions::default() };
        let message = plot(&runs, &unknown).unwrap_err().to_string();
        assert_eq!(message, "no metric `loss`; there are train/loss, eval/a & <b>/loss");
    }

    #[test]
    fn runs_that_cannot_be_drawn_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = directory.path().join("nothing");
        let (empty, some) = (run(directory.path(), "empty", &[]), run(directory.path(), "some", &[1.0]));
        for (run, x, reason) in [
            (&nothing, XAxis::Step, "cannot read"),
            (&empty, XAxis::Step, "no metrics yet"),
            (&some, XAxis::Tokens, "no metric `train/tokens`"),
        ] {
            let message = plot(std::slice::from_ref(run), &PlotOptions { x, ..PlotOptions::default() })
                .unwrap_err()
                .to_string();
            let file = run.join("metrics.jsonl").display().to_string();
            assert!(message.contains(&file) && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn runs_and_files_of_one_name_are_told_apart() {
        assert_eq!(names(&["x/a".into(), "y/b".into()]), ["a", "b"]);
        assert_eq!(names(&["x/a".into(), "y/a".into()]), ["x/a", "y/a"]);
        let mut taken = HashSet::new();
        let stems = ["a/b", "a-b", "A:b"].map(|name| file_stem(name, &mut taken));
        assert_eq!(stems, ["a-b", "a-b-2", "A-b-3"]);
    }
}
