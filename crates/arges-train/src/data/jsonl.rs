//! A JSONL file that is read line by line in any order.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::DataError;

const BUFFER_BYTES: usize = 1 << 20;

/// An open file and where each of its lines begins. Blank lines are no lines.
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// Begin and length in bytes, line by line.
    lines: Vec<(u64, u64)>,
    bytes: u64,
}

impl JsonLines {
    /// Reads through the file once, to find its lines.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let read_error = |source| DataError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let (mut lines, mut begin, mut line) = (Vec::new(), 0, Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(read_error)? as u64;
            if length == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                lines.push((begin, length));
            }
            begin += length;
        }
        Ok(Self { path: path.to_owned(), file: reader.into_inner(), lines, bytes: begin })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines that are not blank.
    pub fn len(&self) -> u64 {
        self.lines.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The JSON of a line, or why it is none.
    pub fn read(&mut self, line: u64) -> Result<Result<Value, String>, DataError> {
        let (begin, length) = self.lines[line as usize];
        let mut bytes = vec![0; length as usize];
        let outcome = self.file.seek(SeekFrom::Start(begin)).and_then(|_| self.file.read_exact(&mut bytes));
        outcome.map_err(|source| DataError::Read { path: self.path.clone(), source })?;
        Ok(serde_json::from_slice(&bytes).map_err(|error| not_json(&error)))
    }

    /// The number in the file of a line, from 1, for messages; counts through the file.
    pub fn line_number(&self, line: u64) -> u64 {
        let (begin, _) = self.lines[line as usize];
        let count = || -> std::io::Result<u64> {
            let mut reader = BufReader::new(File::open(&self.path)?.take(begin));
            let mut breaks = 0;
            loop {
                let buffer = reader.fill_buf()?;
                if buffer.is_empty() {
                    return Ok(breaks);
                }
                breaks += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
                let length = buffer.len();
                reader.consume(length);
            }
        };
        1 + count().unwrap_or(line)
    }
}

/// The reason without the number of the line, which is always 1 here and not that of the file.
fn not_json(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or(&reason);
    format!("is not JSON: {reason} at column {}", error.column())
}
