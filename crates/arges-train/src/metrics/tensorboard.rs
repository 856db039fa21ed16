//! TensorBoard's event files: records of a protobuf message each, written by hand.
//!
//! The messages are `Event` of TensorFlow's `core/util/event.proto` and `Summary` of `core/framework/summary.proto`;
//! the records are those of a TFRecord file.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::jsonl::Appender;
use super::{Metrics, MetricsError};

/// A TensorBoard event file while it is written.
#[derive(Debug)]
pub struct EventFile(Appender);

impl EventFile {
    /// Starts a new file in `run`, whose events are of `first_step` and after. What earlier files hold of these
    /// steps TensorBoard forgets.
    pub fn create(run: &Path, first_step: u64) -> Result<Self, MetricsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut file =
            create_new(run, now.as_secs()).map_err(|error| MetricsError::io("create", run, error))?;
        file.append(&record(&version_event(now.as_secs_f64())))?;
        file.append(&record(&start_event(now.as_secs_f64(), first_step)))?;
        Ok(Self(file))
    }

    pub fn write(&mut self, metrics: &Metrics) -> Result<(), MetricsError> {
        self.0.append(&record(&scalars_event(metrics)))
    }
}

/// Files of a directory sort by time, as TensorBoard reads them; the last number tells those of one second apart.
fn create_new(run: &Path, seconds: u64) -> io::Result<Appender> {
    let (host, process) = (host_name(), std::process::id());
    let mut number = 0;
    loop {
        let path = run.join(format!("events.out.tfevents.{seconds:010}.{host}.{process}.{number}"));
        match Appender::open(&path, OpenOptions::new().create_new(true)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other,
        }
    }
}

/// The machine's name, as far as it can be part of a file's name.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    if name.is_empty() { "arges".to_owned() } else { name }
}

/// A TFRecord: the length, its checksum, the data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_checksum(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted as TFRecord does so that data which hold checksums stay well checked.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The first event, which tells the file's kind.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, time);
    event.bytes(3, b"brain.Event:2");
    event.0
}

/// A `SessionLog` of status START: what was told of `first_step` and after no longer holds.
fn start_event(time: f64, first_step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut session_log = Message::default();
    session_log.integer(1, START);
    let mut event = Message::default();
    event.double(1, time);
    event.integer(2, first_step);
    event.bytes(7, &session_log.0);
    event.0
}

/// A `Summary` of simple values.
fn scalars_event(metrics: &Metrics) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in &metrics.values {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, *value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, metrics.time);
    event.integer(2, metrics.step);
    event.bytes(5, &summary.0);
    event.0
}

/// A protobuf message as it is built, field after field.
#[derive(Default)]
struct Message(Vec<u8>);

/// How a field's value is stored.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

impl Message {
    fn key(&mut self, field: u64, wire: Wire) {
        self.varint(field << 3 | wire as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, Wire::Varint);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Wire::Fixed64);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Wire::Fixed32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, Wire::Bytes);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Metrics, MetricsWriter};
    use super::*;

    fn event_files(run: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        files.sort();
        files
    }

    /// The data of every record, their checksums checked.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(12);
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(head[8..], masked_checksum(&head[..8]).to_le_bytes());
            let (data, rest) = rest.split_at(length);
            let (checksum, rest) = rest.split_at(4);
            assert_eq!(checksum, masked_checksum(data).to_le_bytes());
            records.push(data.to_vec());
            bytes = rest;
        }
        records
    }

    #[test]
    fn checksums_are_those_of_rfc_3720_and_of_tfrecord() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // The first bytes of the event files that TensorFlow writes: 24 is the length of a version event.
        assert_eq!(masked_checksum(&24u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn events_are_these_very_bytes() {
        assert_eq!(version_event(1.0), *b"\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2");
        assert_eq!(start_event(1.0, 300), *b"\x09\0\0\0\0\0\0\xf0\x3f\x10\xac\x02\x3a\x02\x08\x01");
        let values = vec![("a/b".to_owned(), 1.0), ("c".to_owned(), 0.0)];
        let scalars = scalars_event(&Metrics { step: 5, time: 1.0, values });
        let expected = b"\x09\0\0\0\0\0\0\xf0\x3f\x10\x05\x2a\x16\
            \x0a\x0a\x0a\x03a/b\x15\0\0\x80\x3f\x0a\x08\x0a\x01c\x15\0\0\0\0";
        assert_eq!(scalars, *expected);
    }

    #[test]
    fn a_file_holds_its_version_the_start_and_an_event_a_step() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(run.path(), 7).unwrap();
        let metrics = Metrics { step: 8, time: 3.5, values: vec![("train/loss".to_owned(), f64::NAN)] };
        writer.write(&metrics).unwrap();
        let files = event_files(run.path());
        let [file] = &files[..] else { panic!("{files:?}") };
        let records = records(&fs::read(file).unwrap());
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        assert!(records[1].ends_with(b"\x10\x08\x3a\x02\x08\x01"), "START of step 8");
        assert_eq!(records[2], scalars_event(&metrics));
    }

    #[test]
    fn files_opened_within_a_second_are_told_apart() {
        let run = tempfile::tempdir().unwrap();
        (0..3).for_each(|_| drop(MetricsWriter::open(run.path(), 0).unwrap()));
        assert_eq!(event_files(run.path()).len(), 3);
    }
}
