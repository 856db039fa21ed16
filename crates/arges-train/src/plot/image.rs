//! Charts as files.

use std::sync::OnceLock;

use plotters::prelude::{BitMapBackend, IntoDrawingArea, SVGBackend};
use plotters::style::{FontStyle, register_font};

use super::chart::Chart;
use super::draw::{self, FONT, HEIGHT, Medium, UNITS, WIDTH};

/// Units of a drawing that make a pixel of a PNG, which has two pixels for each of the SVG.
const UNITS_PER_PIXEL: u32 = UNITS / 2;

/// The chart as SVG.
pub fn svg(chart: &Chart) -> Result<Vec<u8>, String> {
    register()?;
    let (width, height) = (WIDTH * UNITS, HEIGHT * UNITS);
    let mut svg = String::new();
    draw::draw(&SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area(), Medium::Svg, chart)?;
    // The backend knows whole units only, so that they have to be small, and takes them for pixels.
    let shown = format!("{} stroke-linejoin=\"round\" stroke-linecap=\"round\"", size(WIDTH, HEIGHT));
    Ok(svg.replacen(&size(width, height), &shown, 1).into_bytes())
}

fn size(width: u32, height: u32) -> String {
    format!("width=\"{width}\" height=\"{height}\"")
}

/// The chart as PNG.
pub fn png(chart: &Chart) -> Result<Vec<u8>, String> {
    register()?;
    let (width, height) = (WIDTH * UNITS, HEIGHT * UNITS);
    let mut pixels = vec![0; (width * height * 3) as usize];
    draw::draw(
        &BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area(),
        Medium::Bitmap,
        chart,
    )?;
    let pixels = shrunk(&pixels, width as usize, UNITS_PER_PIXEL as usize);
    encode(&pixels, width / UNITS_PER_PIXEL, height / UNITS_PER_PIXEL).map_err(|error| error.to_string())
}

fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// RGB pixels of which each is the mean of `side` × `side` of a larger image `width` wide: smooth edges.
fn shrunk(pixels: &[u8], width: usize, side: usize) -> Vec<u8> {
    let rows = pixels.chunks_exact(width * 3).collect::<Vec<_>>();
    let mean = |rows: &[&[u8]], column: usize, channel: usize| {
        let values = rows
            .iter()
            .flat_map(|row| (0..side).map(move |x| u32::from(row[(column * side + x) * 3 + channel])));
        (values.sum::<u32>() / (side * side) as u32) as u8
    };
    rows.chunks_exact(side)
        .flat_map(|rows| {
            (0..width / side).flat_map(move |column| [0, 1, 2].map(|channel| mean(rows, column, channel)))
        })
        .collect()
}

/// Makes the embedded font known, once.
fn register() -> Result<(), String> {
    static IS_KNOWN: OnceLock<bool> = OnceLock::new();
    let register = || register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok();
    if *IS_KNOWN.get_or_init(register) { Ok(()) } else { Err("the embedded font cannot be read".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_the_means_of_squares() {
        let wide =
            [[0, 0, 0], [4, 40, 0], [9, 9, 9], [9, 9, 9], [0, 0, 0], [0, 0, 200], [9, 9, 9], [9, 9, 9]];
        assert_eq!(shrunk(wide.as_flattened(), 4, 2), [1, 10, 50, 9, 9, 9]);
    }
}
