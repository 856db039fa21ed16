//! Charts of figures that are no metrics of a run, such as those of `arges bench serve`.

use std::fs;
use std::path::Path;

use super::PlotError;
use super::axis::Scale;
use super::chart::{Chart, Series, x_axis, y_axis};
use super::curve::Point;
use super::image;

/// Lines over a common horizontal axis.
#[derive(Debug, Clone, Default)]
pub struct LineChart {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    /// How to read the lines.
    pub note: Option<String>,
    /// Logarithmic values.
    pub log: bool,
    pub lines: Vec<Line>,
}

/// One line.
#[derive(Debug, Clone, Default)]
pub struct Line {
    pub label: String,
    /// Places `(x, y)` in order of `x`.
    pub points: Vec<(f64, f64)>,
    /// Whether each point is marked.
    pub has_markers: bool,
}

impl LineChart {
    /// Draws the chart as what the path's extension says: `svg` or `png`.
    ///
    /// # Errors
    /// Another extension, and a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PlotError> {
        let failed = |reason: String| PlotError::Draw { path: path.to_owned(), reason };
        let render = match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => image::svg,
            Some("png") => image::png,
            _ => return Err(failed("the name must end in .svg or .png".to_owned())),
        };
        let bytes = render(&self.chart()).map_err(failed)?;
        fs::write(path, bytes).map_err(|source| PlotError::Write { path: path.to_owned(), source })
    }

    fn chart(&self) -> Chart {
        let point = |&(x, y): &(f64, f64)| Point { step: 0, x, y };
        let series: Vec<Series> = (self.lines.iter().enumerate())
            .map(|(colour, line)| Series {
                label: line.label.clone(),
                colour,
                points: line.points.iter().map(point).collect(),
                smooth: None,
                has_markers: line.has_markers,
            })
            .collect();
        let scale = if self.log { Scale::Log } else { Scale::Linear };
        Chart {
            name: String::new(),
            title: self.title.clone(),
            x_label: self.x_label.clone(),
            y_label: self.y_label.clone(),
            x: x_axis(&series),
            y: y_axis(&series, scale).0,
            series,
            note: self.note.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_drawn_as_the_extension_says() {
        let line = |label: &str, y| Line {
            label: label.to_owned(),
            points: vec![(0.0, y), (1.0, 2.0 * y)],
            has_markers: true,
        };
        let chart = LineChart {
            title: "Latency".to_owned(),
            log: true,
            lines: vec![line("first <token>", 0.1), line("whole", 10.0)],
            ..LineChart::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        chart.write(&path("a.svg")).unwrap();
        let svg = fs::read_to_string(path("a.svg")).unwrap();
        assert!(svg.contains("Latency") && svg.contains("first &lt;token&gt;") && svg.contains("whole"));
        chart.write(&path("a.png")).unwrap();
        assert!(fs::read(path("a.png")).unwrap().starts_with(b"\x89PNG"));
        let message = chart.write(&path("a.jpg")).unwrap_err().to_string();
        assert!(message.contains("a.jpg") && message.contains(".svg or .png"), "{message}");
    }
}
