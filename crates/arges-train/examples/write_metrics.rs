//! Writes metrics into a new directory, as a run does that is resumed once; `tests/tensorboard` reads them.

use std::error::Error;
use std::path::{Path, PathBuf};

use arges_train::metrics::{Metrics, MetricsWriter};

fn main() -> Result<(), Box<dyn Error>> {
    let run = PathBuf::from(std::env::args_os().nth(1).ok_or("the directory is missing")?);
    std::fs::create_dir(&run)?;
    write(&run, 1..=20, 0, 10.0)?;
    write(&run, 13..=15, 12, 20.0)
}

/// Goes on after `last_step` with these steps, whose loss is `loss` and the step.
fn write(
    run: &Path,
    steps: std::ops::RangeInclusive<u64>,
    last_step: u64,
    loss: f64,
) -> Result<(), Box<dyn Error>> {
    let mut writer = MetricsWriter::open(run, last_step)?;
    for step in steps {
        let time = 1.7e9 + step as f64 / 4.0;
        let scalars =
            |values: &[(&str, f64)]| values.iter().map(|&(tag, value)| (tag.to_owned(), value)).collect();
        let values = scalars(&[("train/loss", loss + step as f64), ("train/lr", f64::NAN)]);
        writer.write(&Metrics { step, time, values })?;
        if step % 5 == 0 {
            writer.write(&Metrics {
                step,
                time,
                values: scalars(&[("eval/loss", 0.5), ("eval/zero", 0.0)]),
            })?;
        }
    }
    Ok(())
}
