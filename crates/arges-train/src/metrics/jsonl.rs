//! Metrics as lines of JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value};

use super::{Metrics, MetricsError};

/// A file that grows by whole records or not at all.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Appender {
    /// Goes on at the end of a file, or at the start of a new one.
    pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<Self> {
        let file = options.append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Appends a record. Of one that does not fit on the disk nothing stays.
    pub fn append(&mut self, record: &[u8]) -> Result<(), MetricsError> {
        if let Err(error) = self.file.write_all(record) {
            // The write's failure is the one to tell, and opening the run again cuts off what is torn.
            let _ = self.file.set_len(self.bytes);
            return Err(MetricsError::io("write", &self.path, error));
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

/// `metrics.jsonl` while it is written.
#[derive(Debug)]
pub struct Log(Appender);

impl Log {
    /// Opens the file for appending after its last line of `last_step` or before.
    pub fn open(path: &Path, last_step: u64) -> Result<Self, MetricsError> {
        if path.exists() {
            cut(path, last_step)?;
        }
        Appender::open(path, OpenOptions::new().create(true))
            .map(Self)
            .map_err(|error| MetricsError::io("open", path, error))
    }

    pub fn write(&mut self, metrics: &Metrics) -> Result<(), MetricsError> {
        self.0.append(&line(metrics))
    }
}

/// Reads a file of metrics but for a torn last line.
pub fn read(path: &Path) -> Result<Vec<Metrics>, MetricsError> {
    let bytes = read_bytes(path)?;
    lines(path, &bytes).map(|line| line.map(|(_, metrics)| metrics)).collect()
}

/// Leaves only whole lines of steps up to `last_step`.
fn cut(path: &Path, last_step: u64) -> Result<(), MetricsError> {
    let bytes = read_bytes(path)?;
    let mut kept = Vec::with_capacity(bytes.len());
    for line in lines(path, &bytes) {
        let (line, metrics) = line?;
        if metrics.step <= last_step {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    if kept == bytes {
        Ok(())
    } else {
        replace(path, &kept).map_err(|error| MetricsError::io("write", path, error))
    }
}

/// Puts a new file in the place of an old one, which is whole until then.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("jsonl.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, MetricsError> {
    fs::read(path).map_err(|error| MetricsError::io("read", path, error))
}

/// Every line with its metrics. What follows the last line break and is no metrics is torn, and left out.
fn lines<'a>(
    path: &'a Path,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<(&'a [u8], Metrics), MetricsError>> + 'a {
    bytes.split_inclusive(|&byte| byte == b'\n').enumerate().filter_map(move |(index, line)| {
        let (text, is_whole) = line.strip_suffix(b"\n").map_or((line, false), |text| (text, true));
        match parse(text) {
            Ok(metrics) => Some(Ok((text, metrics))),
            Err(_) if !is_whole => None,
            Err(reason) => Some(Err(MetricsError::Line { path: path.to_owned(), line: index + 1, reason })),
        }
    })
}

fn line(metrics: &Metrics) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("step".to_owned(), metrics.step.into());
    object.insert("time".to_owned(), number(metrics.time));
    object.extend(metrics.values.iter().map(|(tag, value)| (tag.clone(), number(*value))));
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A number, or `null` for what JSON has no number for.
fn number(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn parse(line: &[u8]) -> Result<Metrics, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    // `shift_remove` keeps the order of the other fields.
    let step = object.shift_remove("step").ok_or("field `step` is missing")?;
    let step = step.as_u64().ok_or_else(|| format!("field `step`: {step} is no step"))?;
    let time = object.shift_remove("time").ok_or("field `time` is missing")?;
    let time = scalar("time", &time)?;
    let values = object.into_iter().map(|(tag, value)| scalar(&tag, &value).map(|value| (tag, value)));
    Ok(Metrics { step, time, values: values.collect::<Result<_, _>>()? })
}

fn scalar(tag: &str, value: &Value) -> Result<f64, String> {
    match value {
        Value::Null => Ok(f64::NAN),
        Value::Number(number) => {
            number.as_f64().ok_or_else(|| format!("field `{tag}`: {number} is out of range"))
        }
        other => Err(format!("field `{tag}`: {other} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FILE_NAME, MetricsWriter, read};
    use super::*;

    fn metrics(step: u64, loss: f64) -> Metrics {
        let values = vec![("train/loss".to_owned(), loss), ("train/lr".to_owned(), 0.25)];
        Metrics { step, time: 1_700_000_000.5 + step as f64, values }
    }

    fn steps(run: &Path) -> Vec<u64> {
        read(run).unwrap().iter().map(|metrics| metrics.step).collect()
    }

    fn written(run: &Path, steps: std::ops::RangeInclusive<u64>, last_step: u64) {
        let mut writer = MetricsWriter::open(run, last_step).unwrap();
        steps.for_each(|step| writer.write(&metrics(step, 2.5)).unwrap());
    }

    #[test]
    fn what_is_written_is_read_back_in_order() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(run.path(), 0).unwrap();
        let all = [metrics(1, 2.5), metrics(2, -1e-300), metrics(u64::MAX, 1e300)];
        all.iter().for_each(|metrics| writer.write(metrics).unwrap());
        assert_eq!(read(run.path()).unwrap(), all);
        let text = fs::read_to_string(run.path().join(FILE_NAME)).unwrap();
        let first = r#"{"step":1,"time":1700000001.5,"train/loss":2.5,"train/lr":0.25}"#;
        assert_eq!(text.lines().next(), Some(first));
    }

    #[test]
    fn values_that_are_not_finite_are_null_and_read_as_nan() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(run.path(), 0).unwrap();
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            writer.write(&metrics(1, loss)).unwrap();
        }
        let text = fs::read_to_string(run.path().join(FILE_NAME)).unwrap();
        assert_eq!(text.matches(r#""train/loss":null"#).count(), 3);
        assert!(read(run.path()).unwrap().iter().all(|metrics| metrics.values[0].1.is_nan()));
    }

    #[test]
    fn a_resumed_run_cuts_off_the_steps_after_its_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        written(run.path(), 1..=9, 0);
        written(run.path(), 6..=7, 5);
        assert_eq!(steps(run.path()), [1, 2, 3, 4, 5, 6, 7]);
        assert!(!run.path().join("metrics.jsonl.tmp").exists());
        written(run.path(), 1..=2, 0);
        assert_eq!(steps(run.path()), [1, 2]);
    }

    #[test]
    fn a_line_torn_at_any_byte_is_passed_over_and_cut_off() {
        let run = tempfile::tempdir().unwrap();
        written(run.path(), 1..=2, 0);
        let path = run.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        let first_line = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for end in first_line..whole.len() - 1 {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(steps(run.path()), [1], "torn at {end}");
            drop(Log::open(&path, 9).unwrap());
            assert_eq!(fs::read(&path).unwrap(), whole[..first_line], "torn at {end}");
        }
    }

    #[test]
    fn a_last_line_without_its_line_break_gets_it_before_others_follow() {
        let run = tempfile::tempdir().unwrap();
        written(run.path(), 1..=2, 0);
        let path = run.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        written(run.path(), 3..=3, 2);
        assert_eq!(steps(run.path()), [1, 2, 3]);
    }

    #[test]
    fn a_broken_line_is_named_with_its_file_and_number() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(FILE_NAME);
        let good = r#"{"step": 1, "time": 2}"#;
        for (bad, reason) in [
            ("{", "EOF"),
            ("[1]", "expected a map"),
            (r#"{"time": 1}"#, "field `step` is missing"),
            (r#"{"step": -1, "time": 1}"#, "field `step`: -1 is no step"),
            (r#"{"step": 1}"#, "field `time` is missing"),
            (r#"{"step": 1, "time": 1, "train/loss": "low"}"#, "field `train/loss`: \"low\" is no number"),
        ] {
            fs::write(&path, format!("{good}\n{bad}\n{good}\n")).unwrap();
            let place = format!("{}:2: ", path.display());
            for error in [read(run.path()).unwrap_err(), Log::open(&path, 1).unwrap_err()] {
                let message = error.to_string();
                assert!(message.starts_with(&place) && message.contains(reason), "{message}");
            }
        }
    }

    #[test]
    fn a_run_without_metrics_is_named() {
        let run = tempfile::tempdir().unwrap();
        let message = read(run.path()).unwrap_err().to_string();
        assert!(message.contains(&run.path().join(FILE_NAME).display().to_string()), "{message}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told() {
        let mut full = Appender::open(Path::new("/dev/full"), &mut OpenOptions::new()).unwrap();
        let message = full.append(b"{}\n").unwrap_err().to_string();
        assert!(message.starts_with("cannot write /dev/full"), "{message}");
    }
}
