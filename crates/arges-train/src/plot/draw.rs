//! Draws a chart on a plotters backend.
//!
//! Places are in points of the chart's shown size. Backends know whole numbers only, so that they get [`UNITS`] a
//! point.

use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, PathElement};
use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, IntoFont, IntoTextStyle, RGBColor, ShapeStyle, TextStyle};

use super::chart::{Chart, Series};
use super::curve::{Point, pieces, thinned};

/// Shown size in points.
pub const WIDTH: u32 = 960;
pub const HEIGHT: u32 = 540;
/// Units of a backend that make a point.
pub const UNITS: u32 = 4;
/// The name under which the font is known; it is also what an SVG asks for.
pub const FONT: &str = "Ubuntu, Helvetica, Arial, sans-serif";

/// The colours of Okabe and Ito, which the colour-blind can tell apart, without yellow, too faint on white.
pub const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(60, 60, 60),
];
const BACKGROUND: RGBColor = RGBColor(255, 255, 255);
const GRID: RGBColor = RGBColor(230, 232, 236);
const FAINT_GRID: RGBColor = RGBColor(244, 245, 247);
const FRAME: RGBColor = RGBColor(140, 146, 156);
const TEXT: RGBColor = RGBColor(24, 28, 36);
const MUTED: RGBColor = RGBColor(70, 77, 90);

const MARGIN: f64 = 20.0;
const TITLE: f64 = 25.0;
const LABEL: f64 = 17.0;
const TICK: f64 = 16.0;
const LEGEND_ROW: f64 = 23.0;
const SWATCH: f64 = 24.0;

/// A place in points.
type Place = (f64, f64);

/// Draws the chart.
pub fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    medium: Medium,
    chart: &Chart,
) -> Result<(), String> {
    draw_all(&Canvas { area, medium }, chart).map_err(|error| error.to_string())
}

/// What a backend draws on. The two differ in how they join lines and in the height of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    Svg,
    Bitmap,
}

impl Medium {
    /// How far below a place, in sizes, text has to be put for its digits to be centred there.
    fn text_drop(self) -> f64 {
        match self {
            Self::Svg => 0.07,
            Self::Bitmap => 0.2,
        }
    }
}

type Drawn<DB> = Result<(), plotters::drawing::DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn draw_all<DB: DrawingBackend>(canvas: &Canvas<'_, DB>, chart: &Chart) -> Drawn<DB> {
    canvas.area.fill(&BACKGROUND)?;
    let widest = chart.y.ticks.iter().map(|tick| canvas.text_width(&tick.label, TICK)).fold(0.0, f64::max);
    let left = MARGIN + LABEL + 12.0 + widest + 8.0;
    canvas.text(&chart.title, TITLE, TEXT, (left, MARGIN + TITLE / 2.0), HPos::Left)?;
    let top = legend(canvas, chart, (left, MARGIN + TITLE + 10.0))?;
    let (right, bottom) = (f64::from(WIDTH) - MARGIN - 8.0, f64::from(HEIGHT) - MARGIN - LABEL - TICK - 14.0);
    let frame = Frame { chart, left, right, top, bottom };
    frame.grid(canvas)?;
    frame.labels(canvas)?;
    for series in &chart.series {
        frame.faint(canvas, series)?;
    }
    for series in &chart.series {
        frame.strong(canvas, series)?;
    }
    canvas.area.present()
}

/// Draws the legend from the left end of its first row, row after row, and gives the height at which it ends.
fn legend<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    chart: &Chart,
    (left, top): Place,
) -> Result<f64, plotters::drawing::DrawingAreaErrorKind<DB::ErrorType>> {
    let (mut x, mut y) = (left, top + LEGEND_ROW / 2.0);
    let mut is_empty = true;
    let entries =
        chart.series.iter().filter(|_| chart.series.len() > 1).map(|series| (Some(series), &series.label));
    for (series, label) in entries.chain(chart.note.iter().map(|note| (None, note))) {
        let swatch = if series.is_some() { SWATCH + 7.0 } else { 0.0 };
        // Other fonts than the embedded one, which an SVG may be shown in, are wider.
        let width = swatch + canvas.text_width(label, TICK) * 1.1;
        if x > left && x + width > f64::from(WIDTH) - MARGIN {
            (x, y) = (left, y + LEGEND_ROW);
        }
        if let Some(series) = series {
            let colour = colour(series);
            canvas.line(&[(x, y), (x + SWATCH, y)], colour, 2.5)?;
            if series.has_markers {
                canvas.marker((x + SWATCH / 2.0, y), colour)?;
            }
        }
        canvas.text(label, TICK, MUTED, (x + swatch, y), HPos::Left)?;
        x += width + 18.0;
        is_empty = false;
    }
    Ok(if is_empty { top + 6.0 } else { y + LEGEND_ROW / 2.0 + 8.0 })
}

fn colour(series: &Series) -> RGBColor {
    COLOURS[series.colour % COLOURS.len()]
}

/// The colour as it looks through mist.
fn faint(RGBColor(red, green, blue): RGBColor) -> RGBColor {
    let mix = |channel: u8| ((u32::from(channel) * 3 + 255 * 7) / 10) as u8;
    RGBColor(mix(red), mix(green), mix(blue))
}

/// Where the chart's curves are.
struct Frame<'a> {
    chart: &'a Chart,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> Option<f64> {
        self.chart.x.position(value).map(|position| self.left + position * (self.right - self.left))
    }

    fn y(&self, value: f64) -> Option<f64> {
        self.chart.y.position(value).map(|position| self.bottom - position * (self.bottom - self.top))
    }

    fn grid<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Drawn<DB> {
        let colour = |label: &str| if label.is_empty() { FAINT_GRID } else { GRID };
        for (tick, x) in self.chart.x.ticks.iter().filter_map(|tick| Some((tick, self.x(tick.value)?))) {
            canvas.line(&[(x, self.top), (x, self.bottom)], colour(&tick.label), 1.0)?;
            canvas.line(&[(x, self.bottom), (x, self.bottom + 5.0)], FRAME, 1.0)?;
            let place = (x, self.bottom + 8.0 + TICK / 2.0);
            canvas.text(&tick.label, TICK, MUTED, place, HPos::Center)?;
        }
        for (tick, y) in self.chart.y.ticks.iter().filter_map(|tick| Some((tick, self.y(tick.value)?))) {
            canvas.line(&[(self.left, y), (self.right, y)], colour(&tick.label), 1.0)?;
            canvas.text(&tick.label, TICK, MUTED, (self.left - 8.0, y), HPos::Right)?;
        }
        canvas.line(&[(self.left, self.bottom), (self.right, self.bottom)], FRAME, 1.0)
    }

    fn labels<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> Drawn<DB> {
        let middle = (self.left / 2.0 + self.right / 2.0, f64::from(HEIGHT) - MARGIN - LABEL / 2.0 + 4.0);
        canvas.text(&self.chart.x_label, LABEL, MUTED, middle, HPos::Center)?;
        let middle = (MARGIN + LABEL / 2.0 - 4.0, self.top / 2.0 + self.bottom / 2.0);
        canvas.upward_text(&self.chart.y_label, LABEL, MUTED, middle)
    }

    /// The curve with its noise, where there is one without.
    fn faint<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>, series: &Series) -> Drawn<DB> {
        if series.smooth.is_none() {
            return Ok(());
        }
        self.curve(canvas, &series.points, faint(colour(series)), 1.0)
    }

    /// The curve that counts.
    fn strong<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>, series: &Series) -> Drawn<DB> {
        let points = series.smooth.as_ref().unwrap_or(&series.points);
        self.curve(canvas, points, colour(series), 2.0)?;
        if !series.has_markers {
            return Ok(());
        }
        let places = points.iter().filter_map(|point| self.place(point));
        places.into_iter().try_for_each(|place| canvas.marker(place, colour(series)))
    }

    fn curve<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        points: &[Point],
        colour: RGBColor,
        width: f64,
    ) -> Drawn<DB> {
        let places: Vec<Option<Place>> = points.iter().map(|point| self.place(point)).collect();
        pieces(&places).try_for_each(|piece| match piece[..] {
            [place] => canvas.dot(place, width, colour),
            _ => canvas.line(&thinned(&piece, 1.0), colour, width),
        })
    }

    fn place(&self, point: &Point) -> Option<Place> {
        Some((self.x(point.x)?, self.y(point.y)?))
    }
}

/// A backend that takes points.
struct Canvas<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    medium: Medium,
}

impl<DB: DrawingBackend> Canvas<'_, DB> {
    fn line(&self, places: &[Place], colour: RGBColor, width: f64) -> Drawn<DB> {
        let style = ShapeStyle { color: colour.into(), filled: false, stroke_width: units(width) as u32 };
        let places: Vec<_> = places.iter().map(|&place| backend(place)).collect();
        if self.medium == Medium::Svg || places.len() == 2 {
            return self.area.draw(&PathElement::new(places, style));
        }
        // The joints that the bitmap backend makes are as long as their angle is sharp; these are round.
        places.windows(2).try_for_each(|ends| self.area.draw(&PathElement::new(ends.to_vec(), style)))?;
        let joint = |place| Circle::new(place, units(width / 2.0), style.filled());
        places.into_iter().try_for_each(|place| self.area.draw(&joint(place)))
    }

    fn dot(&self, place: Place, radius: f64, colour: RGBColor) -> Drawn<DB> {
        let style = ShapeStyle { color: colour.into(), filled: true, stroke_width: 0 };
        self.area.draw(&Circle::new(backend(place), units(radius), style))
    }

    /// A ring that curves do not shine through.
    fn marker(&self, place: Place, colour: RGBColor) -> Drawn<DB> {
        self.dot(place, 4.25, colour)?;
        self.dot(place, 2.25, BACKGROUND)
    }

    /// A line of text that is centred about the place's height.
    fn text(&self, text: &str, size: f64, colour: RGBColor, (x, y): Place, side: HPos) -> Drawn<DB> {
        let place = (x, y + size * self.medium.text_drop());
        let style = (FONT, size * f64::from(UNITS)).into_text_style(self.area).color(&colour);
        self.area.draw_text(text, &style.pos(Pos::new(side, VPos::Center)), backend(place))
    }

    /// A line of text that is read from below, about its middle.
    fn upward_text(&self, text: &str, size: f64, colour: RGBColor, (x, y): Place) -> Drawn<DB> {
        let place = (x + size * self.medium.text_drop(), y);
        let font = (FONT, size * f64::from(UNITS)).into_font().transform(FontTransform::Rotate270);
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(HPos::Center, VPos::Center));
        self.area.draw_text(text, &style, backend(place))
    }

    /// Width of a line of text. A font that cannot be measured cannot be drawn either, which then is told.
    fn text_width(&self, text: &str, size: f64) -> f64 {
        let style = (FONT, size * f64::from(UNITS)).into_text_style(self.area);
        self.area
            .estimate_text_size(text, &style)
            .map_or(0.0, |(width, _)| f64::from(width) / f64::from(UNITS))
    }
}

fn units(points: f64) -> i32 {
    (points * f64::from(UNITS)).round() as i32
}

fn backend((x, y): Place) -> (i32, i32) {
    (units(x), units(y))
}
